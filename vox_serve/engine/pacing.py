"""Decides how much sound is sent to the client at once.

Sound is decoded frame by frame.  Sending each frame separately wakes up both processes, which no
client benefits from while it still has sound to play.
"""

from __future__ import annotations

FRAMES = (1, 1, 2, 4, 8)
"""How many frames the first, second ... piece has; later pieces have the last number."""


class Pacing:
    """Groups one request's frames.  This changes how samples are grouped, not the samples.

    Args:
        frame_seconds: length of the sound of one codec step, which `add` takes.
    """

    def __init__(self, frame_seconds: float) -> None:
        self._frame_seconds = frame_seconds
        self._waiting: list[bytes] = []
        self._deliveries = 0
        self._began = 0.0
        self._sent_seconds = 0.0

    def add(self, pcm: bytes, now: float, step_seconds: float) -> bytes:
        """Take the sound of a codec step; returns what to send now, which may be nothing.

        Sound is held back only if the client, playing since the first audio, still has more
        sound left than two steps take.

        Args:
            now: in seconds, of any monotonic clock.
            step_seconds: expected time to the next call: that of the last step.
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
        """The sound that is still held back."""
        pcm = b"".join(self._waiting)
        self._waiting = []
        return pcm
