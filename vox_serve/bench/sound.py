"""Computes the seconds of audio in the bytes of a response."""

from __future__ import annotations

import struct

from vox_serve.errors import VoxServeError

MAX_HEADER = 65_536
"""Bytes within which the samples of a wav must begin."""
PCM_TYPES = {
    "audio/pcm",
    "audio/x-pcm",
    "audio/raw",
    "audio/x-raw",
    "audio/l16",
    "application/octet-stream",
}
WAV_TYPES = {
    "audio/wav",
    "audio/x-wav",
    "audio/wave",
    "audio/vnd.wave",
    "application/octet-stream",
}
MEDIA_TYPES = {"wav": WAV_TYPES, "pcm": PCM_TYPES}


class NotAudio(VoxServeError):
    """A response that is not what was asked for; the message names the kind of failure."""


class Pcm:
    """16-bit mono samples without a header."""

    def __init__(self, sample_rate: int) -> None:
        self._bytes_per_second = 2 * sample_rate

    def seconds(self, data: bytes) -> float:
        """Seconds of sound in these bytes of the stream."""
        return len(data) / self._bytes_per_second


class Wav:
    """A wav file of any sample format, as it arrives; its header says how fast it plays."""

    def __init__(self) -> None:
        self._header = b""
        self._bytes_per_second = 0

    def seconds(self, data: bytes) -> float:
        """Seconds of sound in these bytes of the stream; the header does not count.

        Raises:
            NotAudio: this is not a wav.
        """
        if not self._bytes_per_second:
            self._header += data
            found = read_header(self._header)
            if found is None:
                return 0.0
            self._bytes_per_second, start = found
            data = self._header[start:]
        return len(data) / self._bytes_per_second


def read_header(data: bytes) -> tuple[int, int] | None:
    """Bytes per second, and where the samples begin; None if `data` ends before that.

    Raises:
        NotAudio: this is not a wav.
    """
    if not b"RIFF".startswith(data[:4]) or not b"WAVE".startswith(data[8:12]):
        raise NotAudio("no wav")
    position, bytes_per_second = 12, 0
    while len(data) >= position + 8:
        name, size = struct.unpack_from("<4sI", data, position)
        position += 8
        if name == b"data":
            if not bytes_per_second:
                raise NotAudio("wav without a format")
            return bytes_per_second, position
        if name == b"fmt " and len(data) >= position + 12:
            (bytes_per_second,) = struct.unpack_from("<I", data, position + 8)
        position += size + size % 2
    if position > MAX_HEADER:
        raise NotAudio(f"wav without samples in its first {MAX_HEADER} bytes")
    return None
