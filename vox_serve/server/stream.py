"""Receives one request's audio from the engine; `response.py` sends it.

Whatever ends a request (the last audio, a client that leaves or does not read, a timeout, an
error), `close` takes effect exactly once: it frees the slot and closes the account.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

from litestar.types import Receive

from vox_serve.errors import Cancelled, RequestError, TimedOut
from vox_serve.messages import (
    Audio,
    EngineInfo,
    Event,
    Failed,
    Finished,
    SpeechRequest,
    Started,
)
from vox_serve.parts import Parts, private_conversation
from vox_serve.postprocess import SoundFacts
from vox_serve.server.account import Account
from vox_serve.server.errors import ClientGone
from vox_serve.server.requests import OpenRequests
from vox_serve.workers.interface import EngineClient
from vox_serve.workers.sound import ProcessedSound

PIECE_SECONDS = 1.0
"""About how much audio is sent at once; a client must read each piece within the send timeout."""
T = TypeVar("T")


class AudioStream:
    """The audio of one request, in pieces as they are generated.

    The next part of a long text is requested once the previous one has been read to its end, so a
    client that does not read delays only itself.

    Args:
        client: the engine.
        info: the model that the engine has loaded.
        request: what to say; see `parts.in_parts` for a long text.
        account: the request's account.
        opened: lists the request by name until it ends.

    Raises:
        RequestError: the request is not admitted.
    """

    def __init__(
        self,
        client: EngineClient,
        info: EngineInfo,
        request: SpeechRequest,
        account: Account,
        opened: OpenRequests | None = None,
    ) -> None:
        self.request = request
        self.text = request.text
        """What it says, with text that has been added."""
        self.account = account
        self.finished: Finished | None = None
        self._client = client
        self._piece_bytes = PIECE_SECONDS * 2.0 * info.sample_rate
        self._most_bytes = 4 * round(PIECE_SECONDS * info.sample_rate)
        self._parts = Parts(request, info.frame_rate, info.sample_rate)
        self._rest = b""
        self._began = account.arrival
        self._processed: ProcessedSound | None = None
        if client.postprocessing is not None:
            rate, voice = info.sample_rate, request.voice
            facts = SoundFacts(rate, info.model, account.name, request.speaker, voice)
            self._processed = client.postprocessing.begin(facts)
        self._cancelled_error = False
        self._events = client.submit(request)
        self._opened = OpenRequests() if opened is None else opened
        self._name = account.owner.own(account.name)
        self._opened.add(self._name, self)
        account.admitted(request, info, client.server.log_text)

    def more_text(self, text: str, end: bool = False) -> None:
        """Add to the text of a request that waits for it.

        Args:
            end: no more follows.
        """
        self._client.more_text(self.request.id, text, end)
        self._parts.more_text(text)
        self.text += text
        self.account.more_text(text)
        self._began = max(self._began, time.monotonic() - self.account.audio_seconds)

    async def next(self) -> bytes | None:
        """The PCM available, at most two seconds of it; None after the last.

        Raises:
            RequestError: the engine failed, or the request took too long.
        """
        try:
            pcm = await self._generated()
            if self._processed is not None:
                pcm = await self._postprocessed(self._processed, pcm)
            if self._cancelled_error:
                raise _cancelled_error()
        except RequestError as error:
            self.close(error)
            raise
        if pcm is not None:
            self.account.heard(len(pcm))
        return pcm

    async def _postprocessed(self, sound: ProcessedSound, pcm: bytes | None) -> bytes | None:
        """Postprocess samples, and further ones until some output is ready."""
        while True:
            ready = await self._in_time(partial(sound.process, pcm))
            if ready != b"":
                return ready
            pcm = await self._generated()

    async def _generated(self) -> bytes | None:
        """The next samples from the engine, or silence; None after the last."""
        if self._cancelled_error:
            raise _cancelled_error()
        pcm = bytearray(self._rest)
        while self.finished is None and (not pcm or self._more_fits(len(pcm))):
            pcm += self._handle(await self._in_time(self._events.get))
        self._rest = bytes(pcm[self._most_bytes :])
        del pcm[self._most_bytes :]
        return bytes(pcm) or None

    def _more_fits(self, count: int) -> bool:
        return count < self._piece_bytes and not self._events.empty()

    async def _in_time(self, work: Callable[[], Awaitable[T]]) -> T:
        """Await `work()` until the request's deadline.

        A stream's deadline grows with the audio already received, so that a client may read in
        real time.

        Raises:
            TimedOut: the engine or the client is too slow.
        """
        limit = self._client.server.request_timeout
        played = self.account.audio_seconds if self.account.mode == "stream" else 0.0
        left = self._began + limit + played - time.monotonic()
        try:
            if left <= 0:
                raise TimeoutError
            async with asyncio.timeout(left):
                return await work()
        except TimeoutError:
            raise TimedOut(f"the request took longer than {limit:g} seconds") from None

    def cancel(self) -> None:
        """End the request for another connection; a pending `next` raises Cancelled."""
        self.close(_cancelled_error())
        self._cancelled_error = True
        self._events.put_nowait(Failed(self.request.id, _cancelled_error()))

    def close(self, error: BaseException | None) -> None:
        """End the request; later calls do nothing.

        Args:
            error: why it ended; None if everything was sent.
        """
        if self.account.outcome is not None:
            return
        self.account.end(error, self.finished)
        self._opened.remove(self._name, self)
        self._client.abort(self.request.id)
        if self.request.conversation == private_conversation(self.request.id):
            self._client.forget_soon(self.request.conversation)

    def _handle(self, event: Event) -> bytes:
        """The audio of an event.  Raises the RequestError of a Failed event."""
        if isinstance(event, Audio):
            return self._parts.sound(event.pcm)
        if isinstance(event, Started):
            self.account.started(event.queue_seconds)
        if isinstance(event, Finished):
            silence, following = self._parts.after(event)
            if isinstance(following, Finished):
                self.finished = following
            else:
                self._events = self._client.submit(following)
            return silence
        if isinstance(event, Failed):
            raise event.error
        return b""


def _cancelled_error() -> Cancelled:
    return Cancelled("the request was cancelled")


async def unless_gone(receive: Receive, work: Awaitable[T]) -> T:
    """Await `work` unless the client leaves first.

    Raises:
        ClientGone: the client left; `work` is cancelled.
    """
    doing = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({doing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            return doing.result()
        raise ClientGone
    finally:
        doing.cancel()
        leaving.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
