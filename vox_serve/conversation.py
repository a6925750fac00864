"""Conversations: earlier turns, remembered as context for the next one.

The server keeps them, so that any worker can speak the next turn; the engine has those that it has
spoken, which is enough where no server is, as in a simulation.

A turn is a segment with the codes that were generated, because re-encoding generated sound would
give different codes.
"""

from __future__ import annotations

import threading
import time

import attrs

from vox_serve.errors import Conflict
from vox_serve.voice import Segment, Voice


@attrs.define(eq=False)
class Conversation:
    """Turns, oldest first.  One turn is spoken at a time."""

    id: str
    turns: tuple[Segment, ...] = ()
    speaking: bool = False
    kept_for: str | None = None
    """The request whose next part is expected; until it comes, no other request may speak."""
    voice: Voice | None = None
    """The voice of the last turn."""
    home: int | None = None
    """The replica that spoke the last turn and has its keys and values."""
    last_used: float = attrs.field(factory=time.monotonic)


class Conversations:
    """Args: seconds after which an idle conversation is forgotten, and the most to remember."""

    def __init__(self, idle_seconds: float, limit: int) -> None:
        self._idle_seconds = idle_seconds
        self._limit = limit
        self._lock = threading.RLock()  # turns are prepared in the loop and in a thread
        self._open: dict[str, Conversation] = {}

    def __len__(self) -> int:
        return len(self._open)

    def begin(self, name: str, request_id: str = "") -> Conversation:
        """The conversation with this id, existing or new, for one turn; call `end` afterwards.

        Raises:
            Conflict: a turn of it is being spoken, or another request's next part is expected.
        """
        with self._lock:
            self._expire()
            conversation = self._open.pop(name, None)
            if conversation is None:
                conversation = Conversation(name)
                self._make_room(name)
            self._open[name] = conversation  # the most recently used is last
            if conversation.speaking or conversation.kept_for not in (None, request_id):
                raise Conflict("the conversation's last turn is still being spoken", "conversation")
            conversation.speaking, conversation.kept_for = True, None
            return conversation

    def end(
        self,
        conversation: Conversation,
        turns: tuple[Segment, ...] | None = None,
        kept_for: str | None = None,
    ) -> None:
        """End the turn.

        Args:
            turns: all turns to remember; None keeps those remembered so far.
            kept_for: the request that will speak the next turn, if its text has more parts.
        """
        with self._lock:
            conversation.speaking, conversation.kept_for = False, kept_for
            conversation.last_used = time.monotonic()
            if turns is not None:
                conversation.turns = turns
            # If it was forgotten, another conversation may have its name.
            elif not (kept_for or conversation.turns) and self._is_open(conversation):
                del self._open[conversation.id]

    def kept_voice(self, request_id: str) -> Voice | None:
        """The voice of the previous part, for the request that speaks the next one."""
        with self._lock:
            for conversation in self._open.values():
                if conversation.kept_for == request_id:
                    return conversation.voice
        return None

    def release(self, request_id: str) -> None:
        """No longer expect a next part of this request."""
        with self._lock:
            for conversation in [c for c in self._open.values() if c.kept_for == request_id]:
                self.end(conversation)

    def forget(self, name: str) -> bool:
        """Drop a conversation, even while a turn is being spoken; False if there is none."""
        with self._lock:
            return self._open.pop(name, None) is not None

    def _is_open(self, conversation: Conversation) -> bool:
        return self._open.get(conversation.id) is conversation

    def _expire(self) -> None:
        oldest = time.monotonic() - self._idle_seconds
        for conversation in [c for c in self._open.values() if not (c.speaking or c.kept_for)]:
            if conversation.last_used < oldest:
                del self._open[conversation.id]

    def _make_room(self, name: str) -> None:
        """Drop the conversations idle for longest, to make room for one of this name.

        Those of the same key (the part of the name before the slash) are dropped first, so that a
        key cannot push out another key's conversations.
        """
        excess = len(self._open) + 1 - self._limit
        idle = [c for c in self._open.values() if not (c.speaking or c.kept_for)]
        key = name.rpartition("/")[0]
        idle.sort(key=lambda conversation: conversation.id.rpartition("/")[0] != key)
        for conversation in idle[: max(0, excess)]:
            del self._open[conversation.id]
