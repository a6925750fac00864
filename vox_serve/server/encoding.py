"""Encodes one response's PCM in the requested format, without delaying other streams.

A single frame takes about a millisecond and is encoded in the event loop; longer pieces are encoded
in a thread.
"""

from __future__ import annotations

import asyncio

from vox_serve.audio.formats import SAMPLE_BYTES, AudioFormat

INLINE_SECONDS = 0.25
"""The longest audio encoded in the event loop; takes at most 5 ms in any format."""


class Encoding:
    """Encodes the PCM of one stream, piece by piece.

    Use it from the event loop.  `close` may be called at any time, even while a thread encodes.

    Args:
        audio_format: the output format.
        sample_rate: of the PCM, in Hz.
        speed: speaking rate; the pitch is unchanged.

    Raises:
        InvalidRequest: the speed is out of range.
    """

    def __init__(self, audio_format: AudioFormat, sample_rate: int, speed: float = 1.0) -> None:
        self._inline_bytes = round(INLINE_SECONDS * sample_rate) * SAMPLE_BYTES
        self._encoder = audio_format.encoder(sample_rate, speed)
        self._thread: asyncio.Future[bytes] | None = None

    async def encode(self, pcm: bytes) -> bytes:
        """Encode whole samples; returns the bytes that are ready, which may be none."""
        if len(pcm) <= self._inline_bytes:
            return self._encoder.encode(pcm)
        self._thread = asyncio.get_running_loop().run_in_executor(None, self._encoder.encode, pcm)
        return await asyncio.shield(self._thread)  # the thread continues if this is cancelled

    def finish(self) -> bytes:
        """The remaining bytes."""
        return self._encoder.finish()

    def close(self) -> None:
        """Free the encoder as soon as no thread uses it.  May be called more than once."""
        if self._thread is None or self._thread.done():
            self._free()
        else:
            self._thread.add_done_callback(self._free)

    def _free(self, thread: asyncio.Future[bytes] | None = None) -> None:
        if thread is not None and not thread.cancelled():
            thread.exception()  # mark it as retrieved: no one needs it any more
        self._encoder.close()
