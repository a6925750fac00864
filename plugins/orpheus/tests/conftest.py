"""Fixtures: a small random checkpoint, and engines that run it."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

from plugins.orpheus.tests.checkpoints import FIRST, write_checkpoint
from tests.conftest import Spoken, run_engine
from vox_serve import LoadOptions
from vox_serve.config import EngineConfig
from vox_serve.engine.engine import Engine
from vox_serve.messages import SpeechRequest
from vox_serve.plugins import load_plugins
from vox_serve.testing import watch_frames
from vox_serve_orpheus.checkpoint import load_model
from vox_serve_orpheus.model import OrpheusModel

MakeEngine = Callable[..., Engine]
TOKENS = 200
RATE = 7 * 24000 / 2048
# Named only if the distribution, and so its entry point, is not installed.
PLUGINS = () if "orpheus" in load_plugins().models else ("vox_serve_orpheus.plugin",)


@attrs.frozen
class Checkpoint:
    """A checkpoint directory, and models of transformers and snac with the same weights."""

    directory: Path
    model: Any
    codec: Any


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The small checkpoint that most tests share; they must not change it."""
    directory = tmp_path_factory.mktemp("orpheus")
    return Checkpoint(directory, *write_checkpoint(directory))


@pytest.fixture
def directory(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    """A copy of the small checkpoint that a test may change."""
    return Path(shutil.copytree(checkpoint.directory, tmp_path / "checkpoint"))


@pytest.fixture
def make_engine(checkpoint: Checkpoint) -> MakeEngine:
    def make(directory: Path = checkpoint.directory, **settings: Any) -> Engine:
        config = EngineConfig(str(directory), **{"max_batch_size": 8, **settings})
        return Engine(load(directory), config)

    return make


def load(directory: Path, device: str = "cpu") -> OrpheusModel:
    return load_model(LoadOptions(directory, device, "float32"))


def record(engine: Engine) -> dict[str, list[int]]:
    """Record the tokens of all later frames by request, including end tokens."""
    tokens: dict[str, list[int]] = defaultdict(list)
    watch_frames(engine, lambda sequence, frame: tokens[sequence.id].append(frame.codes[0] + FIRST))
    return tokens


def request(name: str, text: str, tokens: int = TOKENS, **fields: Any) -> SpeechRequest:
    greedy = {"temperature": 0.0, "repetition_penalty": 1.0}
    fields["sampling"] = greedy | fields.get("sampling", {})
    return SpeechRequest(name, text, max_seconds=tokens / RATE, **fields)


def spoken_alone(engine: Engine, text: str, **fields: Any) -> tuple[list[int], Spoken]:
    tokens = record(engine)
    engine.add(request("alone", text, **fields))
    spoken = run_engine(engine)
    return tokens["alone"], spoken["alone"]
