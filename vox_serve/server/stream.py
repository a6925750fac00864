"""One request's audio on its way from the engine to the client.

`AudioStream` takes what the engine makes; `response.py` sends it.  Whatever ends a request
(the last sound, a client that leaves or does not read, a timeout, an error), `close` runs
exactly once: it frees the slot and counts the outcome.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable
from typing import TypeVar

from litestar.types import Receive

from vox_serve.errors import Cancelled, PromptTooLong, RequestError, TimedOut
from vox_serve.messages import (
    Audio,
    EngineInfo,
    Event,
    Failed,
    Finished,
    SpeechRequest,
    Started,
)
from vox_serve.metrics import Metrics
from vox_serve.server.parts import private_conversation
from vox_serve.server.requests import OpenRequests
from vox_serve.workers.client import EngineClient

CANCELLED = "the request was cancelled"
PIECE_SECONDS = 1.0
"""Audio that is sent at once, at most: a client must take so much within the send timeout."""
T = TypeVar("T")
log = logging.getLogger("vox_serve.requests")


class ClientGone(Exception):  # an event, not an error
    """The client closed its connection, or stopped reading."""


class AudioStream:
    """The audio of one request, in pieces as they are made.

    Args:
        client: the engine.
        request: what to say; see `parts.in_parts` for a long text.
        mode: `whole` or `stream`, for the metrics.
        arrival: when the request came in, by `time.monotonic`.
        name: what its client calls it; the engine's id of it if there is no such name.
        opened: where it can be found by its id until it has ended.

    Raises:
        RequestError: the request is not admitted.
    """

    def __init__(
        self,
        client: EngineClient,
        info: EngineInfo,
        request: SpeechRequest,
        mode: str,
        arrival: float,
        name: str | None = None,
        opened: OpenRequests | None = None,
    ) -> None:
        self.request = request
        self.id = name or request.id
        self.finished: Finished | None = None
        self._client = client
        self._metrics: Metrics = client.metrics
        self._mode = mode
        self._arrival = arrival
        self._byte_rate = 2.0 * info.sample_rate
        self._piece_bytes = PIECE_SECONDS * self._byte_rate
        self._phase = "queued"
        self._outcome: str | None = None
        self._bytes = 0
        self._first_audio = 0.0
        self._last_audio = 0.0
        self._underrun = 0.0
        self._cancelled = False
        self._events = client.submit(request)
        self._opened = OpenRequests() if opened is None else opened
        self._opened.add(self.id, self)
        self._metrics.text_characters_total().inc(request.characters)

    async def next(self) -> bytes | None:
        """The PCM that is there, up to a second or what one event brings; None after the last.

        Raises:
            RequestError: the engine gave up, or the request took too long.
        """
        if self._cancelled:
            raise Cancelled(CANCELLED)
        pcm = bytearray()
        while self.finished is None and (not pcm or self._more_fits(len(pcm))):
            pcm += self._take(await self._event())
        if not pcm:
            return None
        self._heard(len(pcm))
        return bytes(pcm)

    def _more_fits(self, count: int) -> bool:
        return count < self._piece_bytes and not self._events.empty()

    async def _event(self) -> Event:
        """What the engine says next.

        A stream has as much more time as its audio so far takes to play: a long one may be played
        as it comes.

        Raises:
            TimedOut: the engine or the client is too slow.
        """
        limit = self._client.server.request_timeout
        played = self._bytes / self._byte_rate if self._mode == "stream" else 0.0
        left = self._arrival + limit + played - time.monotonic()
        try:
            if left <= 0:
                raise TimeoutError
            async with asyncio.timeout(left):
                return await self._events.get()
        except TimeoutError:
            self.close("timeout")
            raise TimedOut(f"the request took longer than {limit:g} seconds") from None

    def cancel(self) -> None:
        """End the request on behalf of another: whoever awaits `next` gets Cancelled."""
        self.close(left=False)
        self._cancelled = True
        self._events.put_nowait(Failed(self.request.id, Cancelled(CANCELLED)))

    def close(self, outcome: str = "cancelled", left: bool = True) -> None:
        """End the request if it has not ended; the first call's `outcome` counts.

        Args:
            left: if it is cancelled, did its client leave, or say so and stay?
        """
        if self._outcome is not None:
            return
        self._outcome = outcome
        self._opened.remove(self.id, self)
        self._client.abort(self.request.id)
        if self.request.conversation == private_conversation(self.request.id):
            self._client.forget_soon(self.request.conversation)
        metrics = self._metrics
        metrics.requests_total(self._mode, outcome).inc()
        now = time.monotonic()
        seconds = self._bytes / self._byte_rate
        if outcome == "cancelled" and left:
            metrics.client_disconnects_total(self._phase).inc()
        elif outcome == "ok":
            metrics.request_seconds().observe(now - self._arrival)
            if seconds:
                metrics.real_time_factor().observe((now - self._arrival) / seconds)
        if self._mode == "stream" and seconds:
            metrics.stream_underrun_seconds().observe(self._underrun)
        reason = self.finished.reason.value if self.finished else "-"
        log.info(
            "%s %s %s: %d characters, %.2f s of audio in %.2f s, first after %.3f s, finish %s",
            self.id,
            self._mode,
            outcome,
            self.request.characters,
            seconds,
            now - self._arrival,
            self._first_audio - self._arrival if self._bytes else 0.0,
            reason,
        )

    def _take(self, event: Event) -> bytes:
        if isinstance(event, Audio):
            return event.pcm
        if isinstance(event, Started) and self._phase == "queued":
            self._phase = "first_audio"
            self._metrics.queue_seconds().observe(event.queue_seconds)
        elif isinstance(event, Finished):
            self.finished = event
        elif isinstance(event, Failed):
            if isinstance(event.error, PromptTooLong):
                self._metrics.admission_rejections_total("too_long").inc()
            self.close("invalid" if is_client_error(event.error) else "error")
            raise event.error
        return b""

    def _heard(self, count: int) -> None:
        now = time.monotonic()
        if not self._bytes:
            self._phase = "stream"
            self._first_audio = now
            self._metrics.time_to_first_audio_seconds(self._mode).observe(now - self._arrival)
        else:
            self._metrics.inter_chunk_gap_seconds().observe(now - self._last_audio)
            lateness = now - self._first_audio - self._bytes / self._byte_rate
            self._underrun = max(self._underrun, lateness)
        self._last_audio = now
        self._bytes += count


def is_client_error(error: RequestError) -> bool:
    """Is the request itself at fault?"""
    return error.code in (
        "invalid_request",
        "not_found",
        "request_timeout",
        "conflict",
        "unspeakable_text",
        "prompt_too_long",
    )


async def unless_gone(receive: Receive, work: Awaitable[T]) -> T:
    """Await `work`, but not beyond the moment at which the client leaves.

    Raises:
        ClientGone: it left first; `work` is cancelled.
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
