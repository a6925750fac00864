"""Carries the messages of `vox_serve.messages` to a deployment of Ray Serve and back.

For the client it is a link like the one to a worker process: the routes, the client and the engine
do not know which of the two they use.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import attrs
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from vox_serve.errors import InvalidRequest, Unavailable
from vox_serve.messages import (
    Abort,
    Add,
    AddVoice,
    Alive,
    Changed,
    Done,
    EngineInfo,
    Event,
    Failed,
    Finished,
    Forget,
    FromWorker,
    MoreText,
    Ready,
    RemoveVoice,
    SpeechRequest,
    Stats,
    StepOutput,
    ToWorker,
)

POLL_SECONDS = 1.0
STATUS_SECONDS = 10.0
"""The time limit of a query of the replicas' state, reached while a lost node is still listed."""
MISSED_POLLS = 10
"""The number of queries in a row without any answer after which the engine counts as down."""
ASK_SECONDS = 30.0
RETRY_SECONDS = (0.2, 0.5, 1.0, 2.0, 4.0)
"""Delays before a request is sent again if its replica was lost before it sent any event.  Ray
chooses a replica on a lost node until it notices."""
LOST = (RayError, RayServeException, TimeoutError)
"""The errors that Ray raises if a replica cannot be reached."""
log = logging.getLogger("vox_serve.cluster")


class Unheard(Exception):
    """A replica was lost before it sent an event."""


class LiveText:
    """Further text of a request, after the text in the request itself."""

    def __init__(self) -> None:
        self._messages: list[MoreText] = []
        self._came = asyncio.Event()

    def add(self, message: MoreText) -> None:
        self._messages.append(message)
        self._came.set()

    async def after(self, sent: int, request_id: str) -> tuple[MoreText, int]:
        """Wait for messages after the first `sent`; returns their text and the new count."""
        while len(self._messages) == sent:
            self._came.clear()
            await self._came.wait()
        text = "".join(message.text for message in self._messages[sent:])
        end = self._messages[-1].end
        return MoreText(request_id, text, end), len(self._messages)


class ClusterLink:
    """The link to all replicas of one engine.

    Args:
        handle: of the engine's deployment.
        keeps_voices: whether there is a directory of voices, from which new replicas read them.
    """

    pid: int | None = None

    def __init__(self, handle: Any, keeps_voices: bool) -> None:
        self._handle = handle
        self._keeps_voices = keeps_voices
        self._speaking: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._texts: dict[str, LiveText] = {}
        """Of requests whose text grows."""
        self._info: EngineInfo | None = None
        """The last reported state."""
        self._voices: tuple[tuple[str, int], ...] = ()
        self._frames = 0
        """Frames of the requests that have ended since the last report."""
        self._stats = Stats()
        """The sums of the replicas' own."""
        self._receive: Callable[[FromWorker], None] = lambda message: None

    def start(self, receive: Callable[[FromWorker], None], ended: Callable[[str], None]) -> None:
        """Begin to ask the replicas for their state."""
        self._receive = receive
        self._begin(self._watch(ended))
        self._begin(self._beat())

    def send(self, message: ToWorker) -> None:
        """Pass a message to the replica, or the replicas, that it is for."""
        if isinstance(message, Add):
            request = message.request
            if request.waits is not None:
                self._texts[request.id] = LiveText()
            self._speaking[request.id] = self._begin(self._speak(request))
        elif isinstance(message, MoreText):
            if message.request_id in self._texts:
                self._texts[message.request_id].add(message)
        elif isinstance(message, Abort):
            self._abort(message.request_id)
        elif isinstance(message, Forget):
            name = message.conversation
            self._begin(self._quietly(self._session(name).forget.remote(name)))
        elif isinstance(message, AddVoice) and not self._keeps_voices:
            problem = "voices need --voices-dir in a cluster: a directory that all nodes share"
            self._report(Done(message.request_id, False, InvalidRequest(problem)))
        elif isinstance(message, AddVoice):
            self._begin(self._tell_all(message.request_id, "add_voice", message))
        elif isinstance(message, RemoveVoice):
            asked = self._tell_all(
                message.request_id, "remove_voice", message.request_id, message.name
            )
            self._begin(asked)

    def kill(self) -> None:
        """Cancel all requests; the replicas stay, because they are Ray's."""
        for task in self._tasks:
            task.cancel()

    async def stop(self) -> None:
        """Like `kill`, and wait until the requests have ended."""
        self.kill()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _begin(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _report(self, event: Event) -> None:
        self._receive(StepOutput((event,), attrs.evolve(self._stats, frames=self._taken())))

    def _taken(self) -> int:
        frames, self._frames = self._frames, 0
        return frames

    def _session(self, conversation: str | None, stream: bool = False) -> Any:
        """A handle that prefers the replica with the conversation's keys and values."""
        if conversation is None:
            return self._handle.options(stream=stream)
        return self._handle.options(stream=stream, session_id=conversation)

    async def _speak(self, request: SpeechRequest) -> None:
        """Pass a request to a replica, and its events back."""
        try:
            for delay in (*RETRY_SECONDS, None):
                try:
                    await self._pass_on(request)
                    return
                except Unheard:
                    if delay is not None:
                        await asyncio.sleep(delay)
            self._lose(request)
        finally:
            if self._speaking.get(request.id) is asyncio.current_task():
                del self._speaking[request.id]
            self._texts.pop(request.id, None)

    async def _pass_on(self, request: SpeechRequest) -> None:
        """Like `_speak`, once.  Raises Unheard if the replica was lost before it sent any event."""
        responses = self._session(request.conversation, stream=True).speak.remote(request)
        heard = ended = False
        feeding: asyncio.Task[None] | None = None
        try:
            async for event in responses:
                if isinstance(event, Done):  # the replica takes text; text that it has is not kept
                    feeding = self._begin(self._feed(request.id))
                    continue
                heard = True
                if isinstance(event, Finished):
                    self._frames += event.frames
                ended = isinstance(event, Finished | Failed)
                if ended:
                    self._speaking.pop(request.id, None)
                self._report(event)
            if not ended:
                raise TimeoutError("its events ended early")
        except asyncio.CancelledError:
            responses.cancel()
            raise
        except LOST as error:
            log.warning("a replica of the engine was lost: %s", type(error).__name__)
            if not heard:
                raise Unheard from error
            if not ended:
                self._lose(request)
        finally:
            if feeding is not None:
                feeding.cancel()

    async def _feed(self, request_id: str) -> None:
        """Send a request's text as it arrives, from the beginning.

        It goes to all replicas, because Ray cannot call a specific one; replicas that do not
        speak the request ignore it.
        """
        text, sent, end = self._texts[request_id], 0, False
        while not end:
            message, sent = await text.after(sent, request_id)
            end = message.end
            response = self._handle.broadcast("more_text", message)
            with contextlib.suppress(*LOST):
                await response.results_async(timeout_s=ASK_SECONDS, return_exceptions=True)

    def _lose(self, request: SpeechRequest) -> None:
        self._report(Failed(request.id, Unavailable("the engine's replica was lost")))

    def _abort(self, request_id: str) -> None:
        task = self._speaking.pop(request_id, None)
        if task is not None:
            task.cancel()

    async def _quietly(self, response: Any) -> None:
        try:
            async with asyncio.timeout(ASK_SECONDS):
                await response
        except LOST as error:
            log.debug("a replica did not answer: %s", type(error).__name__)

    async def _tell_all(self, request_id: str, method: str, *arguments: Any) -> None:
        async def tell() -> Done:
            response = self._handle.broadcast(method, *arguments)
            answers: list[Done] = await response.results_async(timeout_s=ASK_SECONDS)
            failed = [answer for answer in answers if answer.error is not None]
            return (failed or answers)[0]

        await self._answer(request_id, tell())

    async def _answer(self, request_id: str, asked: Awaitable[Done]) -> None:
        """Report what the replicas have done."""
        try:
            async with asyncio.timeout(ASK_SECONDS):
                done = await asked
        except LOST as error:
            problem = Unavailable(f"the engine cannot be reached ({type(error).__name__})")
            done = Done(request_id, False, problem)
        self._report(done)

    async def _watch(self, ended: Callable[[str], None]) -> None:
        """Report the replicas' state once a second, as a worker would."""
        missed = 0
        while True:
            found = await self._ask_all()
            missed = 0 if found else missed + 1
            if found:
                self._tell(found)
            elif self._info is not None and missed >= MISSED_POLLS:
                ended("no replica of the engine answers")
                return
            await asyncio.sleep(POLL_SECONDS)

    async def _beat(self) -> None:
        """Always report a sign of life, because `_watch` and Ray check the replicas."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            if self._info is not None:
                self._receive(Alive())
                self._receive(StepOutput((), self._stats))

    async def _ask_all(self) -> list[Any]:
        """The state of each replica that answers."""
        try:
            response = self._handle.broadcast("status")
            answers = await response.results_async(timeout_s=STATUS_SECONDS, return_exceptions=True)
        except LOST:
            return []
        return [answer for answer in answers if not isinstance(answer, BaseException)]

    def _tell(self, found: list[Any]) -> None:
        info = attrs.evolve(
            found[0].info,
            num_slots=sum(status.info.num_slots for status in found),
            load_seconds=max(status.info.load_seconds for status in found),
            voices=found[0].voices,
        )
        if info != self._info:
            self._receive(Ready(info) if self._info is None else Changed(info))
        self._info = info
        self._stats = Stats(
            **{
                name: sum(getattr(status.stats, name) for status in found)
                for name in ("running", "waiting", "prefixes", "prefix_bytes")
            }
        )
        events: tuple[Event, ...] = ()
        if found[0].voices != self._voices:
            self._voices = found[0].voices
            events = (Done("", True, voices=self._voices),)
        stats = attrs.evolve(self._stats, frames=self._taken())
        self._receive(StepOutput(events, stats))
