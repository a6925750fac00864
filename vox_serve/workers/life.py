"""Decides when a worker counts as hung and when it may restart.

Plain values without an event loop; `supervisor.Supervisor` acts on them.
"""

from __future__ import annotations

import time
from collections import deque

from vox_serve.messages import Alive

SILENCE_SECONDS = 10.0
"""The most seconds without a heartbeat.  One comes five times a second, whatever the model does."""
FIRST_DELAY, LONGEST_DELAY = 0.5, 30.0
RESTARTS, WINDOW_SECONDS = 10, 600.0
"""A worker is restarted at most RESTARTS times within WINDOW_SECONDS, then given up."""


class Pulse:
    """The signs of life of one loaded worker.

    Time is counted in ticks of the watcher, not read from a clock: if the whole machine or
    container was stopped, the worker does not count as silent.

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
        """Record that the worker's loop has reported a step, or that it is idle."""
        self._stepless = 0.0

    def beat(self, alive: Alive) -> None:
        """Record a heartbeat, which lists the calls in progress."""
        self._silent = 0.0
        known = self._calls
        self._calls = {n: known.get(n, (name, 0.0)) for n, name in alive.calls}

    def tick(self, seconds: float) -> str | None:
        """Let this much time pass; returns why the worker counts as hung, or None."""
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
    """Decides when a worker that died may start again."""

    def __init__(self) -> None:
        self._times: deque[float] = deque()

    def next_delay(self) -> float | None:
        """Seconds to wait before the next start, doubled each time; None: give up."""
        now = time.monotonic()
        while self._times and now - self._times[0] > WINDOW_SECONDS:
            self._times.popleft()
        if len(self._times) >= RESTARTS:
            return None
        delay: float = min(LONGEST_DELAY, FIRST_DELAY * 2 ** len(self._times))
        self._times.append(now)
        return delay
