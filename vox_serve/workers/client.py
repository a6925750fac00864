"""The server's side of one engine worker: admits requests, sends them, routes what comes back.

`supervisor.Supervisor` keeps the worker alive.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Awaitable, Callable, Iterator
from functools import partial

import attrs

from vox_serve.config import EngineConfig, ServerConfig
from vox_serve.errors import QueueFull, Unavailable
from vox_serve.messages import (
    Abort,
    Add,
    AddVoice,
    Done,
    EngineInfo,
    Event,
    Failed,
    Finished,
    Forget,
    RemoveVoice,
    SpeechRequest,
    Stats,
    StepOutput,
    ToWorker,
)
from vox_serve.metrics import Metrics
from vox_serve.text import AS_WRITTEN, FrontEnd
from vox_serve.voice import Segment
from vox_serve.workers import figures
from vox_serve.workers.interface import ACCEPTING, EngineClient, EngineState
from vox_serve.workers.life import KnownConversations
from vox_serve.workers.link import AnyLink, Link
from vox_serve.workers.supervisor import Supervisor


class WorkerClient:
    """One engine worker as the event loop sees it; an `interface.EngineClient`.

    Args:
        engine: what the worker runs.
        server: queue bound and time limits.
        metrics: records the worker's figures.
        front_end: normalizes a text before it is cut and spoken.
        in_thread: run the worker in a thread of this process; for tests.
        link: makes the link to an engine; None starts a worker of its own.
    """

    def __init__(
        self,
        engine: EngineConfig,
        server: ServerConfig,
        metrics: Metrics,
        *,
        front_end: FrontEnd = AS_WRITTEN,
        in_thread: bool = False,
        link: Callable[[], AnyLink] | None = None,
    ) -> None:
        self.config = engine
        self.server = server
        self.metrics = metrics
        self.front_end = front_end
        self.voices: tuple[tuple[str, int], ...] = ()
        self.on_change: Callable[[EngineClient], None] = lambda client: None
        self.before_ready: Callable[[EngineClient], Awaitable[None]] | None = None
        self._worker = Supervisor(
            server, metrics, self, link or partial(Link, engine, server.log, in_thread)
        )
        self._open: dict[str, asyncio.Queue[Event]] = {}
        self._expected = 0
        self._reported: tuple[tuple[str, int], ...] = ()
        """The worker's own list of voices, which grows while stored ones are added again."""
        self._conversations = KnownConversations(
            engine.conversation_timeout, engine.max_conversations
        )

    @property
    def model(self) -> str:
        return self.metrics.model

    @property
    def info(self) -> EngineInfo | None:
        return self._worker.info

    @property
    def stats(self) -> Stats:
        return self._worker.stats

    @property
    def failure(self) -> str | None:
        return self._worker.failure

    @property
    def state(self) -> EngineState:
        if self._worker.draining and self._worker.phase is not EngineState.DEAD:
            return EngineState.DRAINING
        return self._worker.phase

    @property
    def accepts(self) -> bool:
        return self.state in ACCEPTING

    @property
    def open_requests(self) -> int:
        return len(self._open)

    async def start(self) -> None:
        self._changed = asyncio.Event()
        self._worker.start()

    async def wait_ready(self) -> None:
        """Return when the engine is ready.  Raises Unavailable if it cannot be."""
        while self.state is EngineState.STARTING:
            await self._changed.wait()
        if self.state is EngineState.DEAD:
            raise Unavailable(f"the engine is down: {self.failure}")

    def admit(self) -> EngineInfo:
        if self.accepts and self.info is not None:
            return self.info
        reason = {
            EngineState.STARTING: "the model is still loading",
            EngineState.DRAINING: "the server is shutting down",
            EngineState.RESTARTING: f"the engine is being restarted: {self.failure}",
        }.get(self.state, f"the engine is down: {self.failure}")
        kind = "draining" if self.state is EngineState.DRAINING else "engine_down"
        self.metrics.admission_rejections_total(kind).inc()
        raise Unavailable(reason)

    def check_room(self) -> EngineInfo:
        info = self.admit()
        if len(self._open) + self._expected >= info.num_slots + self.server.max_queue:
            self.metrics.admission_rejections_total("queue_full").inc()
            raise QueueFull(
                f"{info.num_slots} requests are being spoken and "
                f"{self.server.max_queue} wait; try again later"
            )
        return info

    @contextlib.contextmanager
    def reserve(self) -> Iterator[None]:
        self.check_room()
        self._expected += 1
        try:
            yield
        finally:
            self._expected -= 1

    def submit(self, request: SpeechRequest) -> asyncio.Queue[Event]:
        if not request.continues:
            self.check_room()
        elif self.state is not EngineState.DRAINING:
            self.admit()
        if request.conversation is not None:
            self._conversations.use(request.conversation)
        return self._ask(request.id, Add(request))

    def forget_soon(self, conversation: str) -> None:
        self._conversations.forget(conversation)
        if self._worker.phase in (EngineState.READY, EngineState.LOADING):
            self._worker.send(Forget("", conversation))

    async def forget(self, conversation: str) -> bool:
        lost = self._conversations.forget(conversation)
        if lost:
            return True
        self.admit()
        if self._worker.phase is EngineState.UNLOADED:
            return False
        request_id = uuid.uuid4().hex
        return await self._done(request_id, Forget(request_id, conversation))

    async def add_voice(self, name: str, speaker: int, segments: tuple[Segment, ...]) -> None:
        if not self._worker.preparing:
            self.admit()
        request_id = uuid.uuid4().hex
        if not self.front_end.idle:
            read = self.front_end.read
            segments = tuple(attrs.evolve(s, text=read(s.text).text) for s in segments)
        await self._done(request_id, AddVoice(request_id, name, speaker, segments))

    async def remove_voice(self, name: str) -> bool:
        self.admit()
        if self._worker.phase is EngineState.UNLOADED:
            before = self.voices
            self.voices = tuple(voice for voice in before if voice[0] != name)
            return len(self.voices) < len(before)
        request_id = uuid.uuid4().hex
        return await self._done(request_id, RemoveVoice(request_id, name))

    async def _done(self, request_id: str, message: ToWorker) -> bool:
        try:
            event = await self._ask(request_id, message).get()
        finally:
            self._open.pop(request_id, None)
        assert isinstance(event, Done | Failed)
        if event.error is not None:
            raise event.error
        assert isinstance(event, Done)
        return event.found

    def _ask(self, request_id: str, message: ToWorker) -> asyncio.Queue[Event]:
        events = self._open.setdefault(request_id, asyncio.Queue())
        self._worker.ask(message)
        return events

    def abort(self, request_id: str) -> None:
        if self._open.pop(request_id, None) is not None:
            self._worker.send(Abort(request_id))

    def drain(self) -> None:
        if not self._worker.draining and self.state is not EngineState.DEAD:
            self._worker.draining = True
            self.changed()

    async def stop(self) -> None:
        await self._worker.stop()

    def loaded(self, info: EngineInfo) -> None:
        self._hear_of_voices(info.voices)

    async def prepare(self) -> None:
        if self.before_ready is not None:
            await self.before_ready(self)

    def received(self, output: StepOutput) -> None:
        for event in output.events:
            self._route(event)
        figures.stepped(self.metrics, output.stats, self.info, len(self._open))

    def ended(self, reason: str, lost: bool) -> None:
        if lost:
            self._conversations.lose()
        for request_id, events in self._open.items():
            events.put_nowait(Failed(request_id, Unavailable(reason)))
        self._open.clear()

    def in_use(self) -> bool:
        return bool(self._open or self._expected or self._conversations.any)

    def changed(self) -> None:
        if self._worker.phase is EngineState.READY:
            self._hear_of_voices(self._reported)
        up = self.accepts or self.state is EngineState.DRAINING
        self.metrics.engine_up().set(up)
        self.metrics.ready().set(self.accepts)
        self._changed.set()
        self.on_change(self)

    def _hear_of_voices(self, voices: tuple[tuple[str, int], ...]) -> None:
        """Update the list of voices; while loading again, keep those still to be added."""
        self._reported = voices
        if self._worker.phase in (EngineState.LOADING, EngineState.RESTARTING):
            voices = tuple(dict.fromkeys((*self.voices, *voices)))
        self.voices = voices
        self.metrics.voices().set(len(self.voices))

    def _route(self, event: Event) -> None:
        if isinstance(event, Done) and event.voices is not None:
            self._hear_of_voices(event.voices)  # even if no caller waits for it any more
        events = self._open.get(event.request_id)
        if events is None:  # aborted here, while the worker was still speaking it
            return
        if isinstance(event, Failed | Done) or (isinstance(event, Finished) and not event.more):
            del self._open[event.request_id]
        events.put_nowait(event)
