"""A sequence: one utterance inside the engine."""

from __future__ import annotations

import time
from enum import Enum

import attrs

from vox_serve.conversation import Conversation
from vox_serve.engine.pacing import Pacing
from vox_serve.messages import FinishReason, SpeechRequest
from vox_serve.model import Prompt
from vox_serve.sampling import Parameters
from vox_serve.voice import Segment, Voice


class SequenceStatus(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@attrs.define(eq=False)
class Turn:
    """A sequence's turn in a conversation, with the codes generated so far."""

    conversation: Conversation
    text: str
    voice: Voice
    before: tuple[Segment, ...]
    """The segments that its prompt holds."""
    kept: int = 0
    """How many of them are earlier turns; the others are the request's own context."""
    codes: list[tuple[float, ...]] = attrs.field(factory=list)


@attrs.define(eq=False)
class Live:
    """A text that grows while it is spoken."""

    request: SpeechRequest
    """With the text so far."""
    voice: Voice
    context: tuple[Segment, ...]
    tokens: list[int]
    rest: str
    """The end of the text, whose tokens further text may change."""
    ended: bool = False
    since: float = 0.0
    """When it last had text to speak, or got some."""


@attrs.define(eq=False)
class Sequence:
    """Prompt, sampling parameters, slot, frames so far.  Two sequences are never equal."""

    id: str
    prompt: Prompt
    sampling: Parameters
    seed: int
    max_frames: int
    continues: bool = False
    """Goes to the head of the queue."""
    more: bool = False
    """Another sequence with this id follows."""
    adapter: int = 0
    """The adapter that speaks, from 1; 0: none."""
    turn: Turn | None = None
    """The turn to remember; None outside a conversation."""
    live: Live | None = None
    """The text, if the request came before its text was complete."""
    slot: int = -1
    restored: int = 0
    """Positions of the prompt taken from the prefix cache."""
    prefilled: int = 0
    """Positions of the prompt that have been run or restored."""
    launched: int = 0
    """Frames begun on the device; a GPU's are read one step later."""
    frames: int = 0
    """Frames read by the host."""
    pacing: Pacing | None = None
    finish_reason: FinishReason | None = None
    arrival: float = attrs.field(factory=time.monotonic)
    """When the request came in, by `time.monotonic`, which all processes share."""

    @property
    def status(self) -> SequenceStatus:
        if self.finish_reason is not None:
            return SequenceStatus.FINISHED
        return SequenceStatus.WAITING if self.slot < 0 else SequenceStatus.RUNNING

    @property
    def ready(self) -> bool:
        """Whether the whole prompt has been run."""
        return self.prefilled == len(self.prompt)

    @property
    def open(self) -> bool:
        """Whether more text may follow."""
        return self.live is not None and not self.live.ended

    @property
    def waits_for_text(self) -> bool:
        """Whether it must pause, because the text so far is spoken.

        It also pauses at the frame cap, which grows with the text.
        """
        if not self.open:
            return False
        later = self.prompt.later
        begun = bool(self.prompt.inputs) and self.launched < self.max_frames
        return not begun or self.launched > (0 if later is None else len(later))

    @property
    def length(self) -> int:
        """Positions of the context that are filled once the last frame has been advanced."""
        return len(self.prompt) + self.launched
