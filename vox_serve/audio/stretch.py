"""Makes streamed speech faster or slower at the same pitch."""

from __future__ import annotations

from fractions import Fraction

import av.filter
import numpy as np
import numpy.typing as npt

from vox_serve.errors import InvalidRequest

MIN_SPEED = 0.25
MAX_SPEED = 4.0
BLOCK_SECONDS = 0.01
"""The length of each block fed to `atempo`.  Fixed, because its output depends on it slightly."""
TAIL_SECONDS = 1.0
"""Silence added at the end, because `atempo` does not output its last windows: up to 0.4 seconds,
at 8 kHz and speed 4."""


def check_speed(speed: float) -> None:
    """Raises InvalidRequest if `speed` is out of range."""
    if not MIN_SPEED <= speed <= MAX_SPEED:
        raise InvalidRequest(
            f"speed must be from {MIN_SPEED:g} to {MAX_SPEED:g}, not {speed:g}", "speed"
        )


def frame_of(samples: npt.NDArray[np.int16], sample_rate: int) -> av.AudioFrame:
    """An ffmpeg frame of mono samples `[T]`, at least one."""
    frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
    frame.sample_rate = sample_rate
    return frame


class Stretch:
    """Mono samples in, the same speech at another speed out.

    The output lasts 1 / speed as long, and does not depend on how the samples are divided into
    pieces.  ffmpeg's `atempo` (waveform similarity overlap-add) does the work.

    Args:
        sample_rate: in Hz.
        speed: 0.25 (slow) to 4 (fast).
    """

    def __init__(self, sample_rate: int, speed: float) -> None:
        self._rate = sample_rate
        self._speed = speed
        self._fed = self._given = 0  # samples
        self._graph = graph = av.filter.Graph()
        graph.threads = 1  # by default, each graph starts a thread per core that never works
        time_base = Fraction(1, sample_rate)
        block = max(1, round(BLOCK_SECONDS * sample_rate))
        graph.link_nodes(
            graph.add_abuffer(
                format="s16", sample_rate=sample_rate, layout="mono", time_base=time_base
            ),
            graph.add("apad", f"pad_dur={TAIL_SECONDS}"),
            graph.add("asetnsamples", f"n={block}:p=0"),
            *(graph.add("atempo", repr(tempo)) for tempo in tempos(speed)),
            graph.add("abuffersink"),
        ).configure()

    def feed(self, samples: npt.NDArray[np.int16]) -> npt.NDArray[np.int16]:
        """Process samples `[T]`; returns what is ready, which may be nothing."""
        if not len(samples):
            return samples
        self._fed += len(samples)
        self._graph.push(frame_of(samples, self._rate))
        out = self._pull()
        self._given += len(out)
        return out

    def finish(self) -> npt.NDArray[np.int16]:
        """The remaining samples."""
        self._graph.push(None)
        return self._pull()[: max(0, round(self._fed / self._speed) - self._given)]

    def _pull(self) -> npt.NDArray[np.int16]:
        pieces: list[npt.NDArray[np.int16]] = [np.empty(0, np.int16)]
        while True:
            try:
                frame = self._graph.pull()
            except (av.BlockingIOError, av.EOFError):
                return np.concatenate(pieces)
            assert isinstance(frame, av.AudioFrame)  # this graph has no pictures
            pieces.append(frame.to_ndarray()[0])


def tempos(speed: float) -> list[float]:
    """Factors from 0.5 to 2 whose product is `speed`.

    `atempo` rejects factors below 0.5, and drops samples above 2.
    """
    first = min(2.0, max(0.5, speed))
    return [first] if first == speed else [first, speed / first]
