"""What the engine has said of one request, and its reader has yet to take."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from vox_serve.messages import Audio, Event


class Events(asyncio.Queue[Event]):
    """A queue that has the engine wait when too much audio lies in it unread.

    Args:
        limit: bytes of audio above which `hold(True)` is called; `hold(False)` is at half of it.
        hold: tells the engine to speak no further part of the text, or to go on.
    """

    def __init__(
        self, limit: float = math.inf, hold: Callable[[bool], None] = lambda held: None
    ) -> None:
        super().__init__()
        self._limit = limit
        self._hold = hold
        self._held = False
        self._unread = 0

    def end(self) -> None:
        """The engine says no more, so there is nothing to hold back any longer."""
        self._limit = math.inf
        if self._held:
            self._set_held(False)

    def _put(self, item: Event) -> None:
        super()._put(item)
        if isinstance(item, Audio):
            self._unread += len(item.pcm)
            if not self._held and self._unread > self._limit:
                self._set_held(True)

    def _get(self) -> Event:
        item = super()._get()
        if isinstance(item, Audio):
            self._unread -= len(item.pcm)
            if self._held and self._unread <= self._limit / 2:
                self._set_held(False)
        return item

    def _set_held(self, held: bool) -> None:
        self._held = held
        self._hold(held)
