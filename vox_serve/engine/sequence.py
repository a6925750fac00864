"""A sequence: one utterance inside the engine."""

from __future__ import annotations

import time
from enum import Enum

import attrs

from vox_serve.engine.messages import FinishReason
from vox_serve.model import Prompt
from vox_serve.sampling import SamplingParams


class SequenceStatus(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@attrs.define(eq=False)
class Sequence:
    """Prompt, sampling parameters, slot, frames so far.  Two sequences are never equal."""

    id: str
    prompt: Prompt
    sampling: SamplingParams
    seed: int
    max_frames: int
    slot: int = -1
    frames: int = 0
    finish_reason: FinishReason | None = None
    arrival: float = attrs.field(factory=time.monotonic)
    """When the request came in, by the machine's one monotonic clock."""

    @property
    def status(self) -> SequenceStatus:
        if self.finish_reason is not None:
            return SequenceStatus.FINISHED
        return SequenceStatus.WAITING if self.slot < 0 else SequenceStatus.RUNNING

    @property
    def length(self) -> int:
        """Positions of the context that are filled once the last frame has been advanced."""
        return len(self.prompt) + self.frames
