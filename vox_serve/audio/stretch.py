"""Speech faster or slower at the same pitch, while it is made.

The stretching is ffmpeg's `atempo` (waveform similarity overlap-add) through PyAV, which is
optional: at speed 1 nothing is needed and nothing is changed.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from vox_serve.audio.formats import SAMPLE_BYTES, require_av
from vox_serve.errors import InvalidRequest

if TYPE_CHECKING:
    from av.filter import Graph

MIN_SPEED = 0.25
MAX_SPEED = 4.0
BLOCK_SECONDS = 0.01
"""What `atempo` gets at once.  It must not depend on the pieces of `feed`, because a few
samples of what comes out do."""
TAIL_SECONDS = 1.0
"""Silence after the end, because `atempo` keeps its last windows to itself: as much as 0.4
seconds, at 8 kHz and speed 4."""


def check_speed(speed: float) -> None:
    """Can this installation speak at `speed`?

    Raises:
        InvalidRequest: out of range, or PyAV is needed and missing.
    """
    if not MIN_SPEED <= speed <= MAX_SPEED:
        raise InvalidRequest(
            f"speed must be from {MIN_SPEED:g} to {MAX_SPEED:g}, not {speed:g}", "speed"
        )
    if speed != 1:
        require_av("a speed other than 1", "speed", "speed")


class Stretch:
    """16-bit little-endian mono PCM in, the same speech at another speed out.

    What comes out lasts 1 / speed as long and is the same however the samples are fed.  One
    thread at a time may use it; the threads may differ.

    Args:
        sample_rate: in Hz.
        speed: 0.25 (slow) to 4 (fast).

    Raises:
        InvalidRequest: as `check_speed`.
    """

    def __init__(self, sample_rate: int, speed: float) -> None:
        check_speed(speed)
        self._sample_rate = sample_rate
        self._speed = speed
        self._block = max(1, round(BLOCK_SECONDS * sample_rate)) * SAMPLE_BYTES
        self._rest = b""
        self._fed = self._given = 0  # bytes
        self._closed = False
        self._graph = None if speed == 1 else _graph(sample_rate, speed)

    def feed(self, pcm: bytes) -> bytes:
        """Take samples; give what is ready, which may be nothing.

        Raises:
            ValueError: half a sample, or it is closed.
        """
        if self._closed:
            raise ValueError("the stretch is closed")
        if len(pcm) % SAMPLE_BYTES:
            raise ValueError(f"{len(pcm)} bytes are no whole number of 16-bit samples")
        if self._graph is None:
            return pcm
        self._fed += len(pcm)
        out = self._through(self._graph, pcm)
        self._given += len(out)
        return out

    def finish(self) -> bytes:
        """The rest; closes it.

        Raises:
            ValueError: it is closed.
        """
        if self._closed:
            raise ValueError("the stretch is closed")
        out = b""
        if self._graph is not None:
            tail = bytes(round(TAIL_SECONDS * self._sample_rate) * SAMPLE_BYTES)
            out = self._through(self._graph, tail)
            samples = round(self._fed / SAMPLE_BYTES / self._speed)
            out = out[: max(0, samples * SAMPLE_BYTES - self._given)]
        self.close()
        return out

    def close(self) -> None:
        """Free the filters, also in the middle of a stream.  May be called again."""
        self._closed = True
        self._graph = None

    def _through(self, graph: Graph, pcm: bytes) -> bytes:
        """What comes out for `pcm`, up to its last whole block."""
        pcm = self._rest + pcm
        end = len(pcm) - len(pcm) % self._block
        self._rest = pcm[end:]
        blocks = (pcm[i : i + self._block] for i in range(0, end, self._block))
        return b"".join(self._push(graph, block) for block in blocks)

    def _push(self, graph: Graph, block: bytes) -> bytes:
        import av

        samples = np.frombuffer(block, np.int16)[None]
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate = self._sample_rate
        graph.push(frame)
        return _pull(graph)


def _tempos(speed: float) -> list[float]:
    """Factors from 0.5 to 2 whose product is `speed`: below, `atempo` refuses; above, it skips."""
    tempos = [min(2.0, max(0.5, speed))]
    return tempos if tempos[0] == speed else [*tempos, speed / tempos[0]]


def _graph(sample_rate: int, speed: float) -> Graph:
    import av.filter

    graph = av.filter.Graph()
    graph.threads = 1  # by default, each graph starts a thread per core that never works
    source = graph.add_abuffer(
        format="s16", sample_rate=sample_rate, layout="mono", time_base=Fraction(1, sample_rate)
    )
    filters = [graph.add("atempo", repr(tempo)) for tempo in _tempos(speed)]
    graph.link_nodes(source, *filters, graph.add("abuffersink")).configure()
    return graph


def _pull(graph: Graph) -> bytes:
    """All that is ready."""
    import av

    pieces: list[bytes] = []
    while True:
        try:
            frame = graph.pull()
        except av.BlockingIOError:
            return b"".join(pieces)
        assert isinstance(frame, av.AudioFrame)  # this graph has no pictures
        pieces.append(frame.to_ndarray().tobytes())
