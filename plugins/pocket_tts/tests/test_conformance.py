"""Pocket TTS passes the conformance suite."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest

from plugins.pocket_tts.tests.checkpoints import load
from plugins.pocket_tts.tests.conftest import Checkpoint
from vox_serve.model import Model
from vox_serve.testing import ModelConformance


class TestPocket(ModelConformance):
    greedy: ClassVar = {"noise_temperature": 0.0}
    drawn: ClassVar = {"noise_temperature": 1.0, "flow_steps": 2}
    plugin_module = "vox_serve_pocket_tts.plugin"
    directory: Path

    @pytest.fixture(autouse=True)
    def _checkpoint(self, checkpoint: Checkpoint) -> None:
        self.directory = checkpoint.directory

    def load(self, device: str) -> Model:
        return load(self.directory, device=device)
