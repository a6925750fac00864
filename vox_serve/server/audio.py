"""PCM to what a client asked for: wav or raw pcm, whole or streamed."""

from __future__ import annotations

import struct

import attrs

UNKNOWN_SIZE = 0xFFFFFFFF
HEADER_BYTES = 44


def wav_header(sample_rate: int, data_bytes: int | None) -> bytes:
    """The 44-byte header of 16-bit mono PCM.

    `data_bytes` None is a stream whose length is not known yet: both size fields then hold
    0xFFFFFFFF, which readers take for "to the end of the file"; a 0 reads as empty.
    """
    riff, data = UNKNOWN_SIZE, UNKNOWN_SIZE
    if data_bytes is not None:
        riff, data = data_bytes + HEADER_BYTES - 8, data_bytes
    fmt = (16, 1, 1, sample_rate, sample_rate * 2, 2, 16)
    return struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", riff, b"WAVE", b"fmt ", *fmt, b"data", data)


@attrs.frozen
class AudioFormat:
    """How PCM leaves the server.

    Args:
        name: the value of the request's `format`.
        media_type: Content-Type.
        has_header: a WAV header comes first.
    """

    name: str
    media_type: str
    has_header: bool

    def header(self, sample_rate: int, data_bytes: int | None = None) -> bytes:
        """What comes before the samples; `data_bytes` None means a stream."""
        return wav_header(sample_rate, data_bytes) if self.has_header else b""


FORMATS = {
    "wav": AudioFormat("wav", "audio/wav", has_header=True),
    "pcm": AudioFormat("pcm", "audio/pcm", has_header=False),
}
