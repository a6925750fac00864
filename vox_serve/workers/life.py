"""When a worker counts as hung, when it may start again, and which conversations it remembers.

Plain values without an event loop; `client.EngineClient` acts on them.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque

from vox_serve.errors import ConversationLost
from vox_serve.messages import Alive

SILENCE_SECONDS = 10.0
"""The most time without a sign of life.  One comes five times a second, whatever a model does."""
FIRST_DELAY, LONGEST_DELAY = 0.5, 30.0
RESTARTS, WINDOW_SECONDS = 10, 600.0
"""A worker is restarted this often within so many seconds, then given up."""


class Pulse:
    """The signs of life of one loaded worker.

    Adds up the ticks of whoever watches and looks at no clock: where the machine or the container
    was stopped as a whole, the worker has not been silent.

    Args:
        limit: seconds that a step or a single call of the model may take.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._silence_limit = max(1.0, min(SILENCE_SECONDS, limit))
        self._silent = 0.0
        self._stepless = 0.0
        self._calls: dict[int, tuple[str, float]] = {}

    def stepped(self) -> None:
        """The worker's loop has reported a step, or that it is idle."""
        self._stepless = 0.0

    def beat(self, alive: Alive) -> None:
        """The worker's heartbeat has come, with the calls that are in progress."""
        self._silent = 0.0
        known = self._calls
        self._calls = {n: known.get(n, (name, 0.0)) for n, name in alive.calls}

    def tick(self, seconds: float) -> str | None:
        """So much time has passed: why the worker counts as hung, or None."""
        self._silent += seconds
        self._stepless += seconds
        self._calls = {n: (name, age + seconds) for n, (name, age) in self._calls.items()}
        if self._silent > self._silence_limit:
            return f"the engine gave no sign of life for {self._silence_limit:g} seconds"
        for name, age in self._calls.values():
            if age > self._limit:
                return f"the model's {name} did not return within {self._limit:g} seconds"
        if self._stepless > self._limit:
            inside = "".join(f", inside the model's {name}" for name, _ in self._calls.values())
            return f"the engine made no step for {self._limit:g} seconds{inside}"
        return None


class Restarts:
    """Says when a worker that died may start again."""

    def __init__(self) -> None:
        self._times: deque[float] = deque()

    def next_delay(self) -> float | None:
        """Seconds to wait before the next start, each twice the last; None: give up."""
        now = time.monotonic()
        while self._times and now - self._times[0] > WINDOW_SECONDS:
            self._times.popleft()
        if len(self._times) >= RESTARTS:
            return None
        delay: float = min(LONGEST_DELAY, FIRST_DELAY * 2 ** len(self._times))
        self._times.append(now)
        return delay


class KnownConversations:
    """The ids of the conversations that the worker remembers, and of those that it lost.

    The server does not know what was said, only that something was, so that a turn of a lost
    conversation is refused and not spoken as the first of a new one.

    Args:
        idle_seconds: after which one is forgotten, as the engine does.
        limit: how many there may be.
    """

    def __init__(self, idle_seconds: float, limit: int) -> None:
        self._idle_seconds = idle_seconds
        self._limit = limit
        self._used: OrderedDict[str, float] = OrderedDict()
        self._lost: OrderedDict[str, float] = OrderedDict()

    @property
    def any(self) -> bool:
        """Is a conversation remembered?"""
        self._expire(self._used)
        return bool(self._used)

    def use(self, name: str) -> None:
        """A turn is going to be spoken.  Raises ConversationLost."""
        self._expire(self._lost)
        if name in self._lost:
            raise ConversationLost(
                f"conversation {name!r} was lost when the engine was restarted; "
                "delete it, or take another id",
                "conversation",
            )
        self._remember(self._used, name)

    def forget(self, name: str) -> bool:
        """Drop an id; True if it was of a lost conversation."""
        self._used.pop(name, None)
        return self._lost.pop(name, None) is not None

    def lose(self) -> None:
        """The worker is gone, and all that it remembered."""
        self._expire(self._used)
        for name in self._used:
            self._remember(self._lost, name)
        self._used.clear()

    def _remember(self, names: OrderedDict[str, float], name: str) -> None:
        names[name] = time.monotonic()
        names.move_to_end(name)
        while len(names) > self._limit:
            names.popitem(last=False)

    def _expire(self, names: OrderedDict[str, float]) -> None:
        oldest = time.monotonic() - self._idle_seconds
        while names and next(iter(names.values())) < oldest:
            names.popitem(last=False)
