"""Speaks text that arrives in pieces over one WebSocket.

A session has a queue of sentences and marks, and at most one task, which works on the head of the
queue.  One loop handles messages and the end of the task, so no locks are needed and no audio can
follow a `cancelled`.  The next text goes to the engine once the previous text's audio has been
passed to the connection, so a slow client delays only itself, and audio of only one text is
buffered for it.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import deque
from enum import Enum, auto
from typing import Any

import attrs

from vox_serve.audio.formats import SAMPLE_BYTES, AudioFormat
from vox_serve.errors import Cancelled, InvalidRequest, NothingToSpeak, RequestError
from vox_serve.messages import LONG_TEXT_CHARACTERS, EngineInfo, FinishReason, SpeechRequest
from vox_serve.parts import PART_CHARACTERS, cut, private_conversation
from vox_serve.server.account import Account
from vox_serve.server.encoding import INLINE_SECONDS, Encoding
from vox_serve.server.errors import ClientGone, GoingAway, meaning
from vox_serve.server.owner import Owner
from vox_serve.server.requests import OpenRequests
from vox_serve.server.stream import AudioStream
from vox_serve.server.websocket.connection import (
    Cancel,
    Connection,
    End,
    Flush,
    Message,
    ServerEnds,
    Text,
)
from vox_serve.text import PARAGRAPH_SECONDS, Incoming, is_ssml, speakable
from vox_serve.workers.interface import EngineClient

MAX_WAITING_CHARACTERS = 10_000
"""Limit on text that waits to be spoken; each `flush` counts as one character."""


class Mark(Enum):
    """A queue entry that is not a sentence."""

    FLUSH = auto()
    END = auto()  # the client ends the session
    SHUTDOWN = auto()  # the server shuts down


class Session:
    """Speaks what one client sends, until the client or the server ends it.

    Args:
        connection: the connection.
        client: the engine.
        info: the model that the engine has loaded.
        template: voice, sampling and conversation of each request; its id and text are replaced.
        audio_format: of the audio sent.
        opened: lists the session by its id while it runs.
        owner: the session's owner.
    """

    def __init__(
        self,
        connection: Connection,
        client: EngineClient,
        info: EngineInfo,
        template: SpeechRequest,
        audio_format: AudioFormat,
        opened: OpenRequests,
        owner: Owner,
    ) -> None:
        self.id = uuid.uuid4().hex
        self._owner = owner
        self._connection = connection
        self._client = client
        self._info = info
        self._private = None
        if template.conversation is None and info.takes_context:
            self._private = private_conversation(self.id)
            template = attrs.evolve(template, conversation=self._private)
        self._template = template
        self._audio_format = audio_format
        self._piece_bytes = round(INLINE_SECONDS * info.sample_rate) * SAMPLE_BYTES
        self._incoming = Incoming(MAX_WAITING_CHARACTERS)
        self._queue: deque[str | Mark] = deque()
        self._waiting = 0
        """Characters in the queue; a mark counts as one."""
        self._working: asyncio.Task[bool] | None = None
        self._encoding: Encoding | None = None
        """Encodes the current utterance; None before its first audio."""
        self._continues = False
        """Whether some of this utterance has been submitted to the engine."""
        self._last: Mark | None = None
        """END or SHUTDOWN, once it is in the queue."""
        self._draining = False
        self._segments = 0
        self._stream: AudioStream | None = None
        """The stream of the segment being spoken."""
        self._segment: int | None = None
        """The segment's number, once its audio has begun."""
        self._bytes = 0
        self._reason = FinishReason.STOP
        self._opened = opened
        self._deleted = asyncio.Event()

    @property
    def _seconds(self) -> float:
        """Length of the audio sent so far."""
        return round(self._bytes / SAMPLE_BYTES / self._info.sample_rate, 6)

    async def run(self) -> None:
        """Handle messages and speak, until everything before `end` has been spoken.

        Raises:
            RequestError: the session cannot continue.
            ClientGone: the client left or does not read.
        """
        receiving = asyncio.ensure_future(self._connection.receive())
        deletion = asyncio.ensure_future(self._deleted.wait())
        self._opened.add(self._owner.own(self.id), self)
        self._client.metrics.websocket_sessions().inc()
        try:
            await self._connection.send_event(
                "started",
                request_id=self.id,
                model=self._client.model,
                format=self._audio_format.name,
                sample_rate=self._audio_format.rate(self._info.sample_rate),
                channels=1,
                **({"ignored": ignored} if (ignored := self._connection.ignored) else {}),
            )
            while True:
                if self._working is None and self._queue:
                    self._working = asyncio.ensure_future(self._work())
                await self._wait(receiving, deletion)
                if deletion.done():
                    raise Cancelled("the session was cancelled")
                if self._working is not None and self._working.done():
                    working, self._working = self._working, None
                    if working.result():
                        return
                if receiving.done():
                    message = receiving.result()
                    receiving = asyncio.ensure_future(self._connection.receive())
                    await self._handle(message)
        finally:
            self._opened.remove(self._owner.own(self.id), self)
            self._client.metrics.websocket_sessions().dec()
            await _cancel_and_wait(deletion)
            await _cancel_and_wait(receiving)
            await self._stop_speaking()
            if self._private is not None:
                self._client.forget_soon(self._private)

    def cancel(self) -> None:
        """End the session on behalf of another connection."""
        if self._stream is not None:
            self._stream.close(Cancelled("the session was cancelled"))
        self._deleted.set()

    async def _wait(self, *events: asyncio.Future[Any]) -> None:
        """Wait for an event or the end of the work; without work, only up to the time limit."""
        if self._working is not None:
            await asyncio.wait((*events, self._working), return_when=asyncio.FIRST_COMPLETED)
            return
        limit = self._client.server.request_timeout
        done, _ = await asyncio.wait(events, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            raise InvalidRequest(f"no message arrived for {limit:g} seconds")

    async def _handle(self, message: Message | ServerEnds) -> None:
        """Act on a message, or add it to the queue."""
        if isinstance(message, Cancel):
            await self._cancel()
        elif isinstance(message, ServerEnds):
            self._draining = True
            if self._last is None:
                self._incoming.flush()  # drop the unfinished sentence
                self._finish(Mark.SHUTDOWN)
        elif self._last is Mark.SHUTDOWN:
            pass
        elif self._last is Mark.END:
            raise InvalidRequest("only cancel may follow end", "type")
        elif isinstance(message, Text):
            self._check_room(len(message.text))
            self._add(await self._feed(message.text))
        elif isinstance(message, Flush):
            self._check_room(1)
            self._add(self._incoming.flush())
            self._put(Mark.FLUSH)
        elif isinstance(message, End):
            self._add(self._incoming.flush())
            self._finish(Mark.END)
        else:
            raise InvalidRequest("the session has already started", "type")

    def _check_room(self, characters: int) -> None:
        if self._waiting + characters > MAX_WAITING_CHARACTERS:
            raise InvalidRequest(
                f"{self._waiting} characters are waiting to be spoken; {characters} more would "
                f"exceed the limit of {MAX_WAITING_CHARACTERS}",
                "text",
            )

    async def _feed(self, text: str) -> list[str]:
        """The sentences that this text completes; a long one would delay other sessions here."""
        if len(text) <= LONG_TEXT_CHARACTERS:
            return self._incoming.feed(text)
        return await asyncio.to_thread(self._incoming.feed, text)

    def _add(self, sentences: list[str]) -> None:
        for sentence in sentences:
            # The front end may be able to read a sign by itself.
            if speakable(sentence) or not self._client.front_end.as_written:
                self._put(sentence)

    def _finish(self, mark: Mark) -> None:
        self._last = mark
        self._put(mark)

    def _put(self, item: str | Mark) -> None:
        self._queue.append(item)
        self._waiting += _size(item)

    def _pop(self) -> None:
        self._waiting -= _size(self._queue.popleft())

    async def _cancel(self) -> None:
        """Stop speaking, and drop all text received so far."""
        segment = self._segment
        if self._stream is not None:
            self._stream.close(Cancelled("the session was cancelled"))
        await self._stop_speaking()
        self._incoming.flush()
        while self._queue:
            self._pop()
        if self._last is not None:
            self._put(self._last)
        await self._connection.send_event("cancelled", segment=segment, seconds=self._seconds)

    async def _stop_speaking(self) -> None:
        """Stop the work at once, which also ends the utterance."""
        if self._working is not None:
            await _cancel_and_wait(self._working)
            self._working = None
        self._end_utterance()

    def _end_utterance(self) -> None:
        if self._encoding is not None:
            self._encoding.close()
        self._encoding = None
        self._continues = False

    async def _work(self) -> bool:
        """Work on the head of the queue; True if the session is over."""
        head = self._queue[0]
        if isinstance(head, str):
            await self._speak(self._next_text())
            return False
        await self._pass(head)
        self._pop()  # only now, because a `cancel` may arrive before this
        return head is Mark.END

    async def _pass(self, mark: Mark) -> None:
        """End the utterance, and send the mark's event."""
        if self._encoding is not None:
            await self._connection.send_audio(self._encoding.finish())
        self._end_utterance()
        if mark is Mark.FLUSH:
            await self._connection.send_event("flushed", seconds=self._seconds)
        elif mark is Mark.END:
            reason, segments = self._reason.value, self._segments
            await self._connection.send_event(
                "done", finish_reason=reason, seconds=self._seconds, segments=segments
            )
        else:
            raise GoingAway("the server is shutting down")

    def _next_text(self) -> str:
        """Take the next text from the queue: as many sentences as fit together, at least one."""
        text = ""
        while self._queue and isinstance(head := self._queue[0], str):
            # The lengths first: cutting a very long sentence would delay other sessions.
            together = len(text) + len(head)
            if text and (is_ssml(text) or is_ssml(head)):
                break
            if text and (together > PART_CHARACTERS or len(cut(text + head, self._info)) > 1):
                break
            text += head
            self._pop()
        return text

    async def _speak(self, text: str) -> None:
        """Speak a text; report and skip it if it cannot be spoken."""
        segment = self._segments
        shown = " ".join(text.split())
        self._segments += 1
        try:
            stream = self._stream = await self._submit(text, f"{self.id}~{segment}")
            self._continues = True
            try:
                await self._send_all(stream, segment, shown)
                stream.close(None)
            finally:
                stream.close(ClientGone())
        except NothingToSpeak:
            self._segments -= 1  # as if it had not arrived
        except RequestError as error:
            if not meaning(error).session_goes_on:
                raise
            await self._connection.send_error(error, fatal=False, segment=segment, text=shown)
        finally:
            self._stream = self._segment = None

    async def _submit(self, text: str, request_id: str) -> AudioStream:
        account = Account(request_id, self._client.metrics, "stream", owner=self._owner)
        request = attrs.evolve(
            self._template,
            id=request_id,
            text=text.strip(),
            continues=self._continues or self._draining,  # text received in time is spoken
            arrival=account.arrival,
        )
        try:
            lead = PARAGRAPH_SECONDS if self._continues and text.startswith("\n\n") else 0.0
            speech = await self._client.reader.split(request, self._info, lead)
            return AudioStream(self._client, self._info, speech, account)
        except RequestError as error:
            account.end(error)
            raise

    async def _send_all(self, stream: AudioStream, segment: int, text: str) -> None:
        """Send a `segment` event with the text, then the segment's audio."""
        pcm = await stream.next()
        self._segment = segment
        dropped = {"dropped": stream.request.dropped} if stream.request.dropped else {}
        await self._connection.send_event(
            "segment", segment=segment, text=text, start_seconds=self._seconds, **dropped
        )
        if self._encoding is None:
            self._encoding = Encoding(self._audio_format, self._info.sample_rate)
        while pcm is not None:
            for start in range(0, len(pcm), self._piece_bytes):
                piece = pcm[start : start + self._piece_bytes]
                with stream.account.busy("encode"):
                    audio = await self._encoding.encode(piece)
                with stream.account.busy("send"):
                    await self._connection.send_audio(audio)
                self._bytes += len(piece)
                await asyncio.sleep(0)  # let other tasks run: the awaits above may not have yielded
            pcm = await stream.next()
        if stream.finished is not None and stream.finished.reason is not FinishReason.STOP:
            self._reason = stream.finished.reason


def _size(item: str | Mark) -> int:
    return len(item) if isinstance(item, str) else 1


async def _cancel_and_wait(task: asyncio.Future[Any]) -> None:
    """Cancel a task and wait for its end; ignore its exception, as the reason is known."""
    task.cancel()
    await asyncio.wait((task,))
    if not task.cancelled():
        task.exception()
