"""Fixtures: a small random checkpoint, and engines that run it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

from plugins.csm.tests.checkpoints import Frames, write_checkpoint
from tests.conftest import run_engine
from vox_serve import LoadOptions
from vox_serve.config import EngineConfig
from vox_serve.engine.engine import Engine
from vox_serve.messages import SpeechRequest
from vox_serve.plugins import load_plugins
from vox_serve.testing import watch_frames
from vox_serve_csm.checkpoint import load_model
from vox_serve_csm.model import CsmModel

MakeEngine = Callable[..., Engine]
FRAMES = 40
SECONDS_PER_FRAME = 0.08
# Named only if the distribution, and so its entry point, is not installed.
PLUGINS = () if "csm" in load_plugins().models else ("vox_serve_csm.plugin",)


@attrs.frozen
class Checkpoint:
    """A checkpoint directory, and transformers' model with the same weights."""

    directory: Path
    reference: Any


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The small checkpoint that most tests share; they must not change it."""
    directory = tmp_path_factory.mktemp("csm")
    return Checkpoint(directory, write_checkpoint(directory))


@pytest.fixture
def make_engine(checkpoint: Checkpoint) -> MakeEngine:
    def make(directory: Path = checkpoint.directory, **settings: Any) -> Engine:
        config = EngineConfig(str(directory), **{"max_batch_size": 8, **settings})
        return Engine(load(directory), config)

    return make


def load(directory: Path, dtype: str = "float32", device: str = "cpu") -> CsmModel:
    return load_model(LoadOptions(directory, device, dtype))


def record(engine: Engine) -> dict[str, Frames]:
    """Record the codes of all later frames by request, including end frames."""
    frames: dict[str, Frames] = defaultdict(list)
    watch_frames(engine, lambda sequence, frame: frames[sequence.id].append(frame.codes))
    return frames


def request(name: str, text: str, frames: int = FRAMES, **fields: Any) -> SpeechRequest:
    fields.setdefault("sampling", {"temperature": 0.0})
    return SpeechRequest(name, text, max_seconds=frames * SECONDS_PER_FRAME, **fields)


def spoken_alone(engine: Engine, text: str, **fields: Any) -> Frames:
    frames = record(engine)
    engine.add(request("alone", text, **fields))
    run_engine(engine)
    return frames["alone"]
