"""Fixtures: small random checkpoints of each kind, and engines that run them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

from plugins.qwen3_tts.tests.cases import CLIP_FRAMES, Case
from plugins.qwen3_tts.tests.checkpoints import KINDS, clip, write_checkpoint
from vox_serve import LoadOptions
from vox_serve.config import EngineConfig
from vox_serve.engine.engine import Engine
from vox_serve.messages import Audio, Finished, SpeechRequest
from vox_serve.testing import watch_frames
from vox_serve.voice import Segment
from vox_serve_qwen3_tts.checkpoint import load_model
from vox_serve_qwen3_tts.model import QwenModel

MakeEngine = Callable[..., Engine]


@attrs.define
class Spoken:
    """Frames, including the end frame, and 16-bit samples."""

    frames: list[list[int]] = attrs.Factory(list)
    pcm: bytes = b""
    reason: str = ""


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A directory for each kind; tests must not change them."""
    folder = tmp_path_factory.mktemp("qwen")
    return {kind: write_checkpoint(folder / kind, kind) for kind in KINDS}


@pytest.fixture
def make_engine(checkpoints: dict[str, Path]) -> MakeEngine:
    def make(kind: str, **settings: Any) -> Engine:
        config = EngineConfig("small", **{"max_batch_size": 8, **settings})
        engine = Engine(load(checkpoints[kind]), config)
        if kind == "base":
            for name, text in VOICES.items():
                segment = Segment(0, text, audio=clip(CLIP_FRAMES))
                engine.prompts.voices.add(name, 0, [segment])
        return engine

    return make


VOICES = {"anna": "the assistant says hello.", "anna's vector": ""}


def load(directory: Path, dtype: str = "float32", device: str = "cpu") -> QwenModel:
    return load_model(LoadOptions(directory, device, dtype))


def request(case: Case, frames: int, **fields: Any) -> SpeechRequest:
    sampling = {
        "temperature": 0.0,
        "repetition_penalty": case.penalty,
        "language": case.language,
    }
    if case.instructions:
        sampling["instructions"] = case.instructions
    voice = case.voice if case.transcript is not None else f"{case.voice}'s vector"
    seconds = frames * 0.08
    if case.text_first is False:
        fields.setdefault("waits", 60.0)
    fields = {"sampling": sampling, "voice": voice, "max_seconds": seconds} | fields
    return SpeechRequest(case.name, case.text, **fields)


def run(engine: Engine, joining: dict[int, list[SpeechRequest]]) -> dict[str, Spoken]:
    """Step until everything is spoken; a request joins before the step with its number."""
    spoken: dict[str, Spoken] = defaultdict(Spoken)
    watch_frames(engine, lambda s, frame: spoken[s.id].frames.append(list(frame.codes)))
    number = 0
    while joining or engine.scheduler.has_work:
        for each in joining.pop(number, []):
            engine.add(each)
            if each.waits is not None:
                engine.more_text(each.id, "", end=True)
        for event in engine.step().events:
            if isinstance(event, Audio):
                spoken[event.request_id].pcm += event.pcm
            elif isinstance(event, Finished):
                spoken[event.request_id].reason = event.reason.value
        number += 1
    return spoken
