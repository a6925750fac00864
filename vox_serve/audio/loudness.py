"""Decides whether audio is audible."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

WINDOW_SECONDS = 0.04
LOUD = 0.02
"""Root mean square of a window, where full scale is 1.  A vowel of intelligible speech is
louder; the hiss and clicks of a model that says nothing are softer."""


def loudness(samples: npt.NDArray[np.int16], sample_rate: int) -> npt.NDArray[np.float64]:
    """Root mean square of each whole window of mono samples `[T]`; full scale is 1."""
    window = max(1, round(WINDOW_SECONDS * sample_rate))
    count = len(samples) // window
    windows = samples[: count * window].reshape(count, window) / 32768
    loud: npt.NDArray[np.float64] = np.sqrt(np.square(windows).mean(axis=1))
    return loud


def audible_seconds(pcm: bytes, sample_rate: int) -> float:
    """The audible seconds of 16-bit mono PCM."""
    loud = loudness(np.frombuffer(pcm, "<i2"), sample_rate) >= LOUD
    return float(loud.sum() * WINDOW_SECONDS)


class Ear:
    """Listens to 16-bit mono samples until a part of them is audible.

    Args:
        sample_rate: in Hz.
    """

    def __init__(self, sample_rate: int) -> None:
        self._sample_rate = sample_rate
        self._rest = b""
        self.heard = False
        """Whether a window of the sound so far was loud enough to be audible."""

    def listen(self, pcm: bytes) -> None:
        if self.heard:
            return
        pcm = self._rest + pcm
        found = loudness(np.frombuffer(pcm, "<i2"), self._sample_rate)
        self.heard = bool((found >= LOUD).any())
        used = 2 * len(found) * max(1, round(WINDOW_SECONDS * self._sample_rate))
        self._rest = pcm[used:]
