"""How much sound goes to the client at once.

Decoding is per frame; handing over each frame by itself costs both processes a wake-up that no
client
hears once the client has some sound in hand.
"""

from __future__ import annotations

FRAMES = (1, 1, 2, 4, 8)
"""Of the first, second ... pacing; the last stays."""


class Pacing:
    """One request's sound on its way out.  The samples never depend on it, only their packing.

    Args:
        frame_seconds: of sound in what `add` takes, a codec step.
    """

    def __init__(self, frame_seconds: float) -> None:
        self._frame_seconds = frame_seconds
        self._waiting: list[bytes] = []
        self._deliveries = 0
        self._began = 0.0
        self._sent_seconds = 0.0

    def add(self, pcm: bytes, now: float, step_seconds: float) -> bytes:
        """Take a frame; returns what is to be sent now, or nothing.

        Held back is only what the client does not need before the frame after: it has more sound
        left, if it plays since the first pacing, than two steps take.

        Args:
            now: of any clock that goes on steadily, in seconds.
            step_seconds: until the next call, as the last step went.
        """
        self._waiting.append(pcm)
        enough = len(self._waiting) >= FRAMES[min(self._deliveries, len(FRAMES) - 1)]
        lead = self._sent_seconds - (now - self._began)
        if not enough and lead > self._frame_seconds + 2 * step_seconds:
            return b""
        if self._deliveries == 0:
            self._began = now
        self._deliveries += 1
        self._sent_seconds += len(self._waiting) * self._frame_seconds
        return self.rest()

    def rest(self) -> bytes:
        """What is still held back."""
        pcm = b"".join(self._waiting)
        self._waiting = []
        return pcm
