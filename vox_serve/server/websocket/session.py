"""Speaks text that arrives in pieces over one WebSocket.

A session has a queue of sentences and marks, and at most one task, which works on the head of the
queue.  One loop handles messages and the end of the task, so no locks are needed and no audio can
follow a `cancelled`.  The next text goes to the engine once the previous text's audio has been
passed to the connection, so a slow client delays only itself, and audio of only one text is
buffered for it.

If the model takes text while it speaks, the queue holds words instead of sentences (`live`).  The
task that speaks them passes on later words too, up to the length of one text.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Coroutine, Sequence
from typing import Any

import attrs

from vox_serve.audio.formats import SAMPLE_BYTES, AudioFormat
from vox_serve.errors import Cancelled, InvalidRequest, NothingToSpeak, RequestError
from vox_serve.messages import LONG_TEXT_CHARACTERS, EngineInfo, FinishReason, SpeechRequest
from vox_serve.parts import in_parts, private_conversation
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
from vox_serve.server.websocket.live import Bit, LiveWords
from vox_serve.server.websocket.text_queue import MAX_WAITING_CHARACTERS, Mark, TextQueue
from vox_serve.text import PARAGRAPH_SECONDS, Incoming, speakable
from vox_serve.workers.interface import EngineClient


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
        self._queue = TextQueue(client, info, template)
        front_end = client.front_end
        changed = bool(front_end.lexicon or template.pronunciations)
        self._live = info.takes_live_text and front_end.keeps_words and not changed
        """Whether text is spoken while it comes, and not by the sentence."""
        self._incoming = (
            LiveWords(MAX_WAITING_CHARACTERS, self._queue.as_written)
            if self._live
            else Incoming(MAX_WAITING_CHARACTERS)
        )
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
        self._unshown = ""
        """Text of the segment that no event has shown."""
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
                **({"live": True} if self._live else {}),
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
            self._queue.check_room(len(message.text))
            self._add(await self._feed(message.text))
        elif isinstance(message, Flush):
            self._queue.check_room(1)
            self._add(self._incoming.flush())
            self._queue.put(Mark.FLUSH)
        elif isinstance(message, End):
            self._add(self._incoming.flush())
            self._finish(Mark.END)
        else:
            raise InvalidRequest("the session has already started", "type")

    async def _feed(self, text: str) -> Sequence[str | Bit]:
        """The pieces that this text completes; long text is cut in a thread, off the event loop."""
        if len(text) <= LONG_TEXT_CHARACTERS:
            return self._incoming.feed(text)
        return await asyncio.to_thread(self._incoming.feed, text)

    def _add(self, items: Sequence[str | Bit]) -> None:
        for item in items:
            # The front end may be able to read a sign by itself.
            spoken = isinstance(item, Bit) or speakable(item)
            if spoken or not self._client.front_end.as_written:
                self._queue.put(item)

    def _finish(self, mark: Mark) -> None:
        self._last = mark
        self._queue.put(mark)

    async def _cancel(self) -> None:
        """Stop speaking, and drop all text received so far."""
        segment = self._segment
        if self._stream is not None:
            self._stream.close(Cancelled("the session was cancelled"))
        await self._stop_speaking()
        self._incoming.flush()
        while self._queue:
            self._queue.pop()
        if self._last is not None:
            self._queue.put(self._last)
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
        head = self._queue.head
        if isinstance(head, str):
            await self._speak(self._queue.next_text())
            return False
        if isinstance(head, Bit) and head.alone:
            self._queue.pop()
            await self._speak(head.text)
            return False
        if isinstance(head, Bit):
            await self._speak_live()
            return False
        await self._pass(head)
        self._queue.pop()  # only now, because a `cancel` may arrive before this
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

    async def _speak_live(self) -> None:
        """Speak words, and those that arrive meanwhile, until a segment is complete."""
        text, more = await self._queue.take("")
        while more and not speakable(text):
            following, more = await self._queue.take(text)
            text += following
        if speakable(text):
            await self._speak(text, live=True, more=more)

    async def _pass_on(self, stream: AudioStream, text: str, more: bool) -> None:
        """Pass on words that arrive while a segment, which began with `text`, is spoken."""
        while more:
            following, more = await self._queue.take(text)
            text += following
            if following:
                stream.more_text(following)
                self._unshown += following
        stream.more_text("", end=True)

    async def _speak(self, text: str, live: bool = False, more: bool = False) -> None:
        """Speak a text; report and skip it if it cannot be spoken.

        Args:
            live: speak it while more of it comes.
            more: more text may follow.
        """
        segment = self._segments
        self._segments += 1
        self._unshown = text
        try:
            stream = self._stream = await self._submit(text, f"{self.id}~{segment}", live)
            self._continues = True
            try:
                sending = self._send_all(stream, segment)
                await (_beside(sending, self._pass_on(stream, text, more)) if live else sending)
                stream.close(None)
            finally:
                stream.close(ClientGone())
        except NothingToSpeak:
            self._segments -= 1  # as if it had not arrived
        except RequestError as error:
            if not meaning(error).session_goes_on:
                raise
            text = " ".join((text if self._stream is None else self._stream.text).split())
            await self._connection.send_error(error, fatal=False, segment=segment, text=text)
        finally:
            self._stream = self._segment = None

    async def _submit(self, text: str, request_id: str, live: bool) -> AudioStream:
        account = Account(request_id, self._client.metrics, "stream", owner=self._owner)
        request = attrs.evolve(
            self._template,
            id=request_id,
            text=text.strip(),
            continues=self._continues or self._draining,  # text received in time is spoken
            arrival=account.arrival,
        )
        try:
            space = text[: len(text) - len(text.lstrip())]
            lead = PARAGRAPH_SECONDS if self._continues and "\n\n" in space else 0.0
            if live:
                limit = 2 * self._client.server.text_timeout  # this session ends it before
                speech = in_parts(
                    attrs.evolve(request, text=text.lstrip(), waits=limit), self._info, lead=lead
                )
            else:
                speech = await self._client.reader.split(request, self._info, lead)
            return AudioStream(self._client, self._info, speech, account)
        except RequestError as error:
            account.end(error)
            raise

    async def _show(self, stream: AudioStream, segment: int) -> None:
        """Send a `segment` event with the text of the audio that follows, if it is new."""
        text, self._unshown = " ".join(self._unshown.split()), ""
        dropped = {"dropped": stream.request.dropped} if stream.request.dropped else {}
        if text:
            await self._connection.send_event(
                "segment", segment=segment, text=text, start_seconds=self._seconds, **dropped
            )

    async def _send_all(self, stream: AudioStream, segment: int) -> None:
        """Send a `segment` event with the text, then the segment's audio."""
        pcm = await stream.next()
        self._segment = segment
        await self._show(stream, segment)
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
            await self._show(stream, segment)
        if stream.finished is not None and stream.finished.reason is not FinishReason.STOP:
            self._reason = stream.finished.reason


async def _beside(work: Coroutine[Any, Any, None], other: Coroutine[Any, Any, None]) -> None:
    """Await `work` while `other` runs; `other` may fail but need not end."""
    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(other)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        await tasks[0]
    finally:
        for task in tasks:
            await _cancel_and_wait(task)


async def _cancel_and_wait(task: asyncio.Future[Any]) -> None:
    """Cancel a task and wait for its end; ignore its exception, as the reason is known."""
    task.cancel()
    await asyncio.wait((task,))
    if not task.cancelled():
        task.exception()
