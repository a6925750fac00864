"""Fixture: a small checkpoint with a voice, written once."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
from pocket_tts import TTSModel

from plugins.pocket_tts.tests.checkpoints import write_checkpoint, write_voice


@attrs.frozen(eq=False)
class Checkpoint:
    directory: Path
    reference: TTSModel


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    directory = tmp_path_factory.mktemp("pocket") / "small"
    reference = write_checkpoint(directory)
    write_voice(reference, directory, "anna")
    write_voice(reference, directory, "bert", seconds=1.7)
    return Checkpoint(directory, reference)
