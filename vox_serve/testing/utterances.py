"""Collects and compares an engine's results for requests."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Rows
from typing import Any

import attrs
import torch

from vox_serve.engine.engine import Engine
from vox_serve.engine.frames import Frame
from vox_serve.engine.sequence import Sequence
from vox_serve.messages import Audio, Failed, Finished


@attrs.define
class Utterance:
    """The result of one request: the numbers of every frame, sound, and how it ended."""

    codes: list[tuple[float, ...]] = attrs.field(factory=list)
    pcm: bytes = b""
    end: str = ""


def watch_frames(engine: Engine, see: Callable[[Sequence, Frame], None]) -> None:
    """Call `see` with every frame that the host reads from now on."""
    collect = engine.runner.collect

    def watched(sequences: Any) -> Any:
        reader = collect(sequences)
        read = reader.frames

        def frames() -> list[Frame]:
            found = read()
            for sequence, frame in zip(sequences, found, strict=True):
                if sequence.finish_reason is None:
                    see(sequence, frame)
            return found

        reader.frames = frames  # type: ignore[method-assign]  # a test double
        return reader

    engine.runner.collect = watched  # type: ignore[method-assign]  # a test double


def record(engine: Engine) -> dict[str, Utterance]:
    """Collect the results of requests from now on; `step` fills in the sound."""
    spoken: dict[str, Utterance] = {}

    def keep(sequence: Sequence, frame: Frame) -> None:
        if frame.finite and not frame.end:
            spoken.setdefault(sequence.id, Utterance()).codes.append(frame.codes)

    watch_frames(engine, keep)
    return spoken


def step(engine: Engine, spoken: dict[str, Utterance]) -> None:
    for event in engine.step().events:
        utterance = spoken.setdefault(event.request_id, Utterance())
        if isinstance(event, Audio):
            utterance.pcm += event.pcm
        elif isinstance(event, Finished):
            utterance.end = event.reason.value
        elif isinstance(event, Failed):
            utterance.end = event.error.code


def same_codes(expected: Rows[tuple[float, ...]], got: Rows[tuple[float, ...]], what: str) -> None:
    """Check that codes are equal, or latents up to rounding, which depends on the batch size."""
    assert len(got) == len(expected), f"{what}: {len(expected)} frames, or {len(got)}"
    wanted, found = torch.tensor(expected), torch.tensor(got)
    tolerance = 1e-3 if wanted.is_floating_point() else 0.0
    assert torch.allclose(found, wanted, rtol=tolerance, atol=tolerance), f"{what}: frames differ"


def same(expected: Utterance, got: Utterance, what: str) -> None:
    same_codes(expected.codes, got.codes, what)
    assert got.end == expected.end, f"{what}: one ends with {expected.end}, the other {got.end}"
    assert len(got.pcm) == len(expected.pcm), f"{what}: the sound differs in length"
