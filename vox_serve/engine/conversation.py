"""Conversations: turns that are remembered, so that the next one follows from them.

A turn is a segment whose codes are those that were generated (or, for what a client brings,
encoded once).  Re-encoding generated sound would give other codes.
"""

from __future__ import annotations

import threading
import time

import attrs

from vox_serve.errors import Conflict
from vox_serve.voice import Segment


@attrs.define(eq=False)
class Conversation:
    """Turns, oldest first.  One turn is spoken at a time."""

    id: str
    turns: tuple[Segment, ...] = ()
    busy: bool = False
    last_used: float = attrs.field(factory=time.monotonic)


class Conversations:
    """Args: seconds after which an idle one is forgotten, and how many there may be.

    Whoever ends a turn and begins the next of the same text holds `lock` from one to the other, or
    another turn could slip in between.
    """

    def __init__(self, idle_seconds: float, limit: int) -> None:
        self._idle_seconds = idle_seconds
        self._limit = limit
        self.lock = threading.RLock()  # turns are prepared in the loop and in a thread beside it
        self._open: dict[str, Conversation] = {}

    def __len__(self) -> int:
        return len(self._open)

    def begin(self, name: str) -> Conversation:
        """The conversation of this id, new or known, for one turn; `end` must follow.

        Raises:
            Conflict: a turn of it is being spoken.
        """
        with self.lock:
            self._expire()
            conversation = self._open.pop(name, None)
            if conversation is None:
                conversation = Conversation(name)
                self._make_room()
            self._open[name] = conversation  # the most recently used is last
            if conversation.busy:
                problem = f"conversation {name!r}: its last turn is still spoken"
                raise Conflict(problem, "conversation")
            conversation.busy = True
            return conversation

    def end(self, conversation: Conversation, turns: tuple[Segment, ...] | None = None) -> None:
        """The turn is over; `turns` are those to remember, None leaves them as they were."""
        with self.lock:
            conversation.busy = False
            conversation.last_used = time.monotonic()
            if turns is not None:
                conversation.turns = turns
            # One that was forgotten may have a successor of its name.
            elif not conversation.turns and self._open.get(conversation.id) is conversation:
                del self._open[conversation.id]

    def forget(self, name: str) -> bool:
        """Drop a conversation, also one that is being spoken; False if there is none."""
        with self.lock:
            return self._open.pop(name, None) is not None

    def _expire(self) -> None:
        oldest = time.monotonic() - self._idle_seconds
        for conversation in [c for c in self._open.values() if not c.busy]:
            if conversation.last_used < oldest:
                del self._open[conversation.id]

    def _make_room(self) -> None:
        """Drop those that were idle for longest, so that there is room for one more."""
        excess = len(self._open) + 1 - self._limit
        idle = [c for c in self._open.values() if not c.busy]
        for conversation in idle[: max(0, excess)]:
            del self._open[conversation.id]
