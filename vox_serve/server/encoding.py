"""One answer's PCM to the bytes that its client asked for: stretched, then encoded.

Both are work for a processor.  A frame at a time takes about a millisecond and is done in the
event loop; what lasts longer is done in a thread, so that it holds up nobody else's sound.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from vox_serve.audio.formats import SAMPLE_BYTES, AudioFormat
from vox_serve.audio.stretch import Stretch

INLINE_SECONDS = 0.25
"""Sound that is encoded in the event loop: at most 5 ms, in the dearest format."""


class Encoding:
    """Takes the PCM of one stream, piece by piece.

    Lives in the event loop.  `close` may be called at any time, also while a thread encodes.

    Args:
        audio_format: what comes out.
        sample_rate: of the PCM, in Hz.
        speed: how fast the speech is to be; the pitch stays.

    Raises:
        InvalidRequest: this installation lacks the format, or the means to change the speed.
    """

    def __init__(self, audio_format: AudioFormat, sample_rate: int, speed: float = 1.0) -> None:
        self._inline_bytes = round(INLINE_SECONDS * sample_rate) * SAMPLE_BYTES
        self._stretch = Stretch(sample_rate, speed)
        self._encoder = audio_format.encoder(sample_rate)
        self._thread: asyncio.Future[bytes] | None = None

    @property
    def sounding(self) -> bool:
        """Has any sound come out, and not a header alone?"""
        return self._encoder.sounding

    async def encode(self, pcm: bytes) -> bytes:
        """Take whole samples; give what is ready, which may be nothing."""
        return await self._run(self._encode, pcm)

    async def finish(self) -> bytes:
        """The rest."""
        return await self._run(self._finish, b"")

    def close(self) -> None:
        """Free what it holds, as soon as no thread uses it.  May be called again."""
        if self._thread is None or self._thread.done():
            self._free()
        else:
            self._thread.add_done_callback(self._free)

    def _encode(self, pcm: bytes) -> bytes:
        return self._encoder.encode(self._stretch.feed(pcm))

    def _finish(self, pcm: bytes) -> bytes:
        rest = self._encoder.encode(self._stretch.finish())
        return rest + self._encoder.finish()

    async def _run(self, work: Callable[[bytes], bytes], pcm: bytes) -> bytes:
        if len(pcm) <= self._inline_bytes:
            return work(pcm)
        self._thread = asyncio.get_running_loop().run_in_executor(None, work, pcm)
        return await asyncio.shield(self._thread)  # cancelled or not, the thread goes on

    def _free(self, thread: asyncio.Future[bytes] | None = None) -> None:
        if thread is not None and not thread.cancelled():
            thread.exception()  # nobody waits for it any more
        self._encoder.close()
        self._stretch.close()


async def encode_whole(
    audio_format: AudioFormat, sample_rate: int, pcm: bytes, speed: float = 1.0
) -> bytes:
    """The complete file of `pcm`, with its true length.  Raises as `Encoding`."""

    def work() -> bytes:
        with contextlib.closing(Stretch(sample_rate, speed)) as stretch:
            stretched = stretch.feed(pcm) + stretch.finish()
        return audio_format.whole(sample_rate, stretched)

    if audio_format.is_raw and speed == 1:
        return work()
    return await asyncio.to_thread(work)
