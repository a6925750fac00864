"""Qwen3-TTS passes the conformance suite."""

from pathlib import Path

import pytest

from plugins.qwen3_tts.tests.conftest import load
from vox_serve.model import Model
from vox_serve.testing import ModelConformance


class OfKind(ModelConformance):
    texts = ("hello there", "a second and longer text", "and a third")
    plugin_module = "vox_serve_qwen3_tts.plugin"
    kind: str
    directory: Path

    @pytest.fixture(autouse=True)
    def _checkpoint(self, checkpoints: dict[str, Path]) -> None:
        self.directory = checkpoints[self.kind]

    def load(self, device: str) -> Model:
        return load(self.directory, device=device)


@pytest.mark.slow
class TestCustomVoice(OfKind):
    kind = "custom_voice"


class TestBase(OfKind):
    """The text is fed together with the frames."""

    kind = "base"
