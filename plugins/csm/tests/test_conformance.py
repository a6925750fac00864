"""CSM passes the conformance suite."""

from pathlib import Path

import pytest

from plugins.csm.tests.conftest import Checkpoint, load
from vox_serve.model import Model
from vox_serve.testing import ModelConformance


class TestCsm(ModelConformance):
    texts = ("hello there", "a second and longer text", "and a third")
    plugin_module = "vox_serve_csm.plugin"
    directory: Path

    @pytest.fixture(autouse=True)
    def _checkpoint(self, checkpoint: Checkpoint) -> None:
        self.directory = checkpoint.directory

    def load(self, device: str) -> Model:
        return load(self.directory, device=device)
