"""A sequence: one utterance inside the engine."""

from __future__ import annotations

import time
from enum import Enum

import attrs

from vox_serve.engine.conversation import Conversation
from vox_serve.engine.pacing import Pacing
from vox_serve.messages import FinishReason
from vox_serve.model import Prompt
from vox_serve.sampling import SamplingParams
from vox_serve.voice import Segment, Voice


class SequenceStatus(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@attrs.define(eq=False)
class Turn:
    """What a sequence says in a conversation, with the codes that it came to."""

    conversation: Conversation
    text: str
    voice: Voice
    before: tuple[Segment, ...]
    """The turns that its prompt holds."""
    codes: list[tuple[int, ...]] = attrs.field(factory=list)


@attrs.define(eq=False)
class Sequence:
    """Prompt, sampling parameters, slot, frames so far.  Two sequences are never equal."""

    id: str
    prompt: Prompt
    sampling: SamplingParams
    seed: int
    max_frames: int
    continues: bool = False
    """Goes to the head of the queue."""
    more: bool = False
    """Another sequence of this id follows."""
    turn: Turn | None = None
    """What to remember of it; None outside a conversation."""
    slot: int = -1
    restored: int = 0
    """Positions of the prompt that came from a kept prefix."""
    prefilled: int = 0
    """Positions of the prompt that are in the slot."""
    launched: int = 0
    """Frames that were begun; on a GPU the host reads them later."""
    frames: int = 0
    """Frames that were read."""
    pacing: Pacing | None = None
    finish_reason: FinishReason | None = None
    arrival: float = attrs.field(factory=time.monotonic)
    """When the request came in, by the machine's one monotonic clock."""

    @property
    def status(self) -> SequenceStatus:
        if self.finish_reason is not None:
            return SequenceStatus.FINISHED
        return SequenceStatus.WAITING if self.slot < 0 else SequenceStatus.RUNNING

    @property
    def ready(self) -> bool:
        """Is the whole prompt in?"""
        return self.prefilled == len(self.prompt)

    @property
    def length(self) -> int:
        """Positions of the context that are filled once the last frame has been advanced."""
        return len(self.prompt) + self.launched
