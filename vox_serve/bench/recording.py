"""The client's record of each request, and figures of it.  All times are in seconds."""

from __future__ import annotations

from enum import Enum
from itertools import pairwise

import attrs

TOLERANCE = 0.010
"""How late audio may be, in seconds, before it counts as an underrun of the player."""
REFUSALS = (429, 503)
"""The statuses of a busy server."""


class Outcome(Enum):
    """How a request ended."""

    OK = "ok"
    REFUSED = "refused"
    FAILED = "failed"
    UNFINISHED = "unfinished"


@attrs.frozen
class Chunk:
    """Sound that arrived at one time, on the client's clock."""

    at: float
    seconds: float


@attrs.define
class Recording:
    """One request as the client saw it.

    `scheduled` is when it was due, `started` when it was sent, both on the client's clock.
    Figures that need sound are None where there was none.
    """

    text: str
    scheduled: float
    started: float = 0.0
    ended: float | None = None
    status: int | None = None
    failure: str | None = None
    detail: str = ""
    chunks: list[Chunk] = attrs.Factory(list)

    @property
    def outcome(self) -> Outcome:
        if self.ended is None:
            return Outcome.UNFINISHED
        if self.status in REFUSALS:
            return Outcome.REFUSED
        return Outcome.OK if self.failure is None else Outcome.FAILED

    @property
    def late(self) -> float:
        """How much later than due the client sent the request."""
        return self.started - self.scheduled

    @property
    def first_audio(self) -> float | None:
        """Time from when it was due to the first sound; a header alone does not count."""
        return self.chunks[0].at - self.scheduled if self.chunks else None

    @property
    def total(self) -> float | None:
        """Time from when it was due to its end."""
        return None if self.ended is None else self.ended - self.scheduled

    @property
    def audio(self) -> float:
        """Length of the sound that was received."""
        return sum(chunk.seconds for chunk in self.chunks)

    @property
    def real_time_factor(self) -> float | None:
        """Total time divided by audio length; below 1 is faster than real time."""
        return self.total / self.audio if self.total is not None and self.audio else None

    @property
    def gaps(self) -> list[float]:
        """Times between arrivals of sound."""
        return [later.at - earlier.at for earlier, later in pairwise(self.chunks)]

    @property
    def underruns(self) -> int:
        """How often a player that starts at the first sound runs dry, and waits for more."""
        waited, count = 0.0, 0
        for late in lateness(self.chunks):
            if late > waited + TOLERANCE:
                waited, count = late, count + 1
        return count

    @property
    def worst_underrun(self) -> float:
        """How long such a player is silent before the end; 0 if it never is."""
        return max(lateness(self.chunks), default=0.0)

    @property
    def viable(self) -> bool:
        """Whether it could be played while it arrived: complete, and without an underrun."""
        return self.outcome is Outcome.OK and self.worst_underrun <= TOLERANCE


def lateness(chunks: list[Chunk]) -> list[float]:
    """Per chunk: its arrival, less the first arrival, less the audio received before it.

    Above 0, playback that began with the first sound had nothing to play for that long.
    """
    received, late = 0.0, []
    for chunk in chunks:
        late.append(chunk.at - chunks[0].at - received)
        received += chunk.seconds
    return late


@attrs.define
class Run:
    """What was recorded at one rate, or with one number of clients.

    Args:
        load: requests per second, or clients.
        arrivals: when requests are due, in seconds after `began`; empty in a closed loop.
        began: on the client's clock.
        ended: on the client's clock; None while it runs.
        stall: how late the client's own event loop was at worst, in seconds.
    """

    load: float
    arrivals: list[float]
    began: float = 0.0
    ended: float | None = None
    stall: float = 0.0
    recordings: list[Recording] = attrs.Factory(list)

    def record(self, text: str, scheduled: float) -> Recording:
        """A new recording of this run."""
        recording = Recording(text, scheduled)
        self.recordings.append(recording)
        return recording
