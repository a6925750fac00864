"""One answer's PCM to the bytes that its client asked for, without holding up others.

Encoding is work for a processor.  A frame at a time takes about a millisecond and is done in the
event loop; longer pieces are encoded in a thread, so that they do not delay other streams.
"""

from __future__ import annotations

import asyncio

from vox_serve.audio.formats import SAMPLE_BYTES, AudioFormat

INLINE_SECONDS = 0.25
"""Sound that is encoded in the event loop: at most 5 ms in the most costly format."""


class Encoding:
    """Takes the PCM of one stream, piece by piece.

    Lives in the event loop.  `close` may be called at any time, also while a thread encodes.

    Args:
        audio_format: what comes out.
        sample_rate: of the PCM, in Hz.
        speed: how fast the speech is to be; the pitch stays.

    Raises:
        InvalidRequest: the speed is out of range.
    """

    def __init__(self, audio_format: AudioFormat, sample_rate: int, speed: float = 1.0) -> None:
        self._inline_bytes = round(INLINE_SECONDS * sample_rate) * SAMPLE_BYTES
        self._encoder = audio_format.encoder(sample_rate, speed)
        self._thread: asyncio.Future[bytes] | None = None

    async def encode(self, pcm: bytes) -> bytes:
        """Take whole samples; give what is ready, which may be nothing."""
        if len(pcm) <= self._inline_bytes:
            return self._encoder.encode(pcm)
        self._thread = asyncio.get_running_loop().run_in_executor(None, self._encoder.encode, pcm)
        return await asyncio.shield(self._thread)  # cancelled or not, the thread goes on

    def finish(self) -> bytes:
        """The rest."""
        return self._encoder.finish()

    def close(self) -> None:
        """Free what it holds, as soon as no thread uses it.  May be called again."""
        if self._thread is None or self._thread.done():
            self._free()
        else:
            self._thread.add_done_callback(self._free)

    def _free(self, thread: asyncio.Future[bytes] | None = None) -> None:
        if thread is not None and not thread.cancelled():
            thread.exception()  # its result is no longer wanted
        self._encoder.close()
