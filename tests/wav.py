"""The header of a wav file, byte by byte, to compare with what the server sends."""

from __future__ import annotations

import struct


def wav_header(sample_rate: int, data_bytes: int | None) -> bytes:
    """The 44 bytes before 16-bit mono PCM; without `data_bytes`, the length is unknown."""
    riff = data = 0xFFFFFFFF
    if data_bytes is not None:
        riff, data = data_bytes + 36, data_bytes
    fmt = (16, 1, 1, sample_rate, sample_rate * 2, 2, 16)
    return struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", riff, b"WAVE", b"fmt ", *fmt, b"data", data)
