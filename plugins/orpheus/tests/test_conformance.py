"""Orpheus passes the conformance suite."""

from pathlib import Path

import pytest

from plugins.orpheus.tests.conftest import Checkpoint, load
from vox_serve.model import Model
from vox_serve.testing import ModelConformance


class TestOrpheus(ModelConformance):
    texts = ("hello there", "a second and longer text", "and a third")
    max_seconds = 0.35  # 28 tokens: the window of four frames is full
    plugin_module = "vox_serve_orpheus.plugin"
    directory: Path

    @pytest.fixture(autouse=True)
    def _checkpoint(self, checkpoint: Checkpoint) -> None:
        self.directory = checkpoint.directory

    def load(self, device: str) -> Model:
        return load(self.directory, device)
