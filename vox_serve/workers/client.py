"""The server's side of one engine: admits requests, sends them, routes what comes back.

It also manages the worker: starts it, watches it, ends it if it hangs or is idle for too long, and
starts it again if it is configured to.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from enum import Enum
from functools import partial

import attrs

from vox_serve.config import EngineConfig, ServerConfig
from vox_serve.errors import QueueFull, Unavailable
from vox_serve.messages import (
    Abort,
    Add,
    AddVoice,
    Alive,
    Done,
    EngineInfo,
    Event,
    Failed,
    Finished,
    Forget,
    FromWorker,
    LoadFailed,
    Ready,
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
from vox_serve.workers.jobs import Jobs
from vox_serve.workers.life import KnownConversations, Pulse, Restarts
from vox_serve.workers.link import Link
from vox_serve.workers.reading import TextReader, text_jobs

log = logging.getLogger("vox_serve.client")


class EngineState(Enum):
    """From the best to the worst."""

    READY = "ready"
    UNLOADED = "unloaded"  # idle for too long: the next request loads the model again
    LOADING = "loading"  # again, because a request needs it
    STARTING = "starting"
    RESTARTING = "restarting"  # the worker died; requests are refused until another one is ready
    DRAINING = "draining"
    DEAD = "dead"


ACCEPTING = (EngineState.READY, EngineState.UNLOADED, EngineState.LOADING)
"""The states in which requests are accepted."""


class EngineClient:
    """One engine worker as the event loop sees it.

    Args:
        engine: what the worker runs.
        server: queue bound and time limits.
        metrics: records the worker's figures.
        front_end: normalizes a text before it is cut and spoken.
        texts: where it does so; None: processes of this engine only.
        in_thread: run the worker in a thread of this process; for tests.
    """

    def __init__(
        self,
        engine: EngineConfig,
        server: ServerConfig,
        metrics: Metrics,
        *,
        front_end: FrontEnd = AS_WRITTEN,
        texts: Jobs | None = None,
        in_thread: bool = False,
    ) -> None:
        self.config = engine
        self.server = server
        self.metrics = metrics
        self.front_end = front_end
        self.reader = TextReader(front_end, texts or text_jobs(in_thread))
        self.info: EngineInfo | None = None
        self.stats = Stats()
        self.voices: tuple[tuple[str, int], ...] = ()
        """Names and speakers that a request may ask for."""
        self.failure: str | None = None
        """Why the worker ended, until it is ready again."""
        self.on_change: Callable[[EngineClient], None] = lambda client: None
        """Called in the event loop when the state changes."""
        self.before_ready: Callable[[EngineClient], Awaitable[None]] | None = None
        """Awaited once the model is loaded; requests are accepted after it returns."""
        self._in_thread = in_thread
        self._phase = EngineState.STARTING
        """The worker's own state, whether or not the server is draining."""
        self._draining = False
        self._link: Link | None = None
        self._pulse: Pulse | None = None
        """The worker's signs of life, once its model is loaded."""
        self._open: dict[str, asyncio.Queue[Event]] = {}
        self._expected = 0
        self._held: list[ToWorker] = []
        """Messages that wait until the model is loaded again."""
        self._reported: tuple[tuple[str, int], ...] = ()
        """The worker's own list of voices, which grows while stored ones are added again."""
        self._conversations = KnownConversations(
            engine.conversation_timeout, engine.max_conversations
        )
        self._restarts = Restarts()
        self._last_used = time.monotonic()
        self._watchdog: asyncio.Task[None] | None = None
        self._preparation: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None
        """Waits until a worker that was given up has ended."""
        self._beginning: asyncio.Task[None] | None = None
        """Starts the next worker after that."""

    @property
    def model(self) -> str:
        """The name by which requests choose it."""
        return self.metrics.model

    @property
    def state(self) -> EngineState:
        if self._draining and self._phase is not EngineState.DEAD:
            return EngineState.DRAINING
        return self._phase

    @property
    def accepts(self) -> bool:
        """Are requests accepted?"""
        return self.state in ACCEPTING

    @property
    def open_requests(self) -> int:
        """Requests that have been submitted and have not ended."""
        return len(self._open)

    async def start(self) -> None:
        """Start the worker; returns at once, while the model is still loading."""
        self._changed = asyncio.Event()
        self._start(self._new_link())
        self._watchdog = asyncio.create_task(self._watch())

    async def wait_ready(self) -> None:
        """Return when the engine is ready.  Raises Unavailable if it cannot be."""
        while self.state is EngineState.STARTING:
            await self._changed.wait()
        if self.state is EngineState.DEAD:
            raise Unavailable(f"the engine is down: {self.failure}")

    def admit(self) -> EngineInfo:
        """The model, if requests are accepted.  Raises Unavailable if they are not."""
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
        """The model, if one more request is accepted.

        Raises:
            Unavailable: starting, restarting, draining or dead.
            QueueFull: all slots are taken and the queue is full.
        """
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
        """Reserve a place in the queue while a request is being prepared.

        Raises:
            Unavailable, QueueFull: as `check_room`.
        """
        self.check_room()
        self._expected += 1
        try:
            yield
        finally:
            self._expected -= 1

    def submit(self, request: SpeechRequest) -> asyncio.Queue[Event]:
        """Send a request; its events come out of the queue, a Finished or Failed last.

        The next part of a text has the same id and the same queue.  A request that continues
        speech in progress is accepted even if the queue is full or the server is draining.  A
        request for an unloaded model loads it, and waits until it is ready.

        Raises:
            Unavailable, QueueFull: as `check_room`.
            ConversationLost: its conversation ended with an earlier worker.
        """
        if not request.continues:
            self.check_room()
        elif self.state is not EngineState.DRAINING:
            self.admit()
        if request.conversation is not None:
            self._conversations.use(request.conversation)
        return self._ask(request.id, Add(request))

    def forget_soon(self, conversation: str) -> None:
        """Drop a conversation without waiting for it; unknown ones are ignored."""
        self._conversations.forget(conversation)
        if self._phase in (EngineState.READY, EngineState.LOADING):
            self._send(Forget("", conversation))

    async def forget(self, conversation: str) -> bool:
        """Drop a conversation, even a lost one; False if there is none.  Raises Unavailable."""
        lost = self._conversations.forget(conversation)
        if lost:
            return True
        self.admit()
        if self._phase is EngineState.UNLOADED:
            return False
        request_id = uuid.uuid4().hex
        return await self._done(request_id, Forget(request_id, conversation))

    async def add_voice(self, name: str, speaker: int, segments: tuple[Segment, ...]) -> None:
        """Add a voice to the model, replacing one of the same name.

        May be called in `before_ready`.

        Raises:
            RequestError: the model cannot take the voice, or the engine is unavailable.
        """
        if self._preparation is None or (self._draining and not self._held):
            self.admit()
        request_id = uuid.uuid4().hex
        segments = tuple([attrs.evolve(s, text=await self.reader.read(s.text)) for s in segments])
        await self._done(request_id, AddVoice(request_id, name, speaker, segments))

    async def remove_voice(self, name: str) -> bool:
        """Forget a voice; False if there is none.  Raises Unavailable."""
        self.admit()
        if self._phase is EngineState.UNLOADED:
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
        self._last_used = time.monotonic()
        if self._phase is EngineState.UNLOADED:
            self._load_again()
        self._send(message)
        return events

    def _send(self, message: ToWorker) -> None:
        """Send a message; one about a request is held back until stored voices are there."""
        if self._phase is EngineState.LOADING and isinstance(message, Add | Abort | Forget):
            self._held.append(message)
        elif self._link is not None:
            self._link.send(message)

    def abort(self, request_id: str) -> None:
        """End a request whose client left: no more events, and its slot is freed."""
        if self._open.pop(request_id, None) is not None:
            self._send(Abort(request_id))

    def drain(self) -> None:
        """Accept no more requests; open ones continue."""
        if not self._draining and self._phase is not EngineState.DEAD:
            self._draining = True
            self._tell()

    async def stop(self) -> None:
        """End the worker, gently first; open requests fail."""
        for task in (self._watchdog, self._beginning):
            if task is not None:
                task.cancel()
        loading = self._pulse is None
        link = self._part()
        if link is not None:
            if loading:
                link.kill()  # it would not read the message
            await link.stop()  # not as a task, which would never begin if cancelled early
        if self._ending is not None:
            await asyncio.wait((self._ending,))
        self._die("the server has shut down")

    def _new_link(self) -> Link:
        self._link = Link(self.config, self.server.log, self._in_thread)
        return self._link

    def _start(self, link: Link) -> None:
        link.start(partial(self._receive, link), partial(self._ended, link))
        self.metrics.registry.watch_process(self.model, "worker", link.pid)

    def _receive(self, link: Link, message: FromWorker) -> None:
        if link is not self._link:  # a worker that has been given up
            return
        if isinstance(message, Ready):
            self.info = message.info
            self._pulse = Pulse(self.server.stall_timeout)
            self._hear_of_voices(message.info.voices)
            figures.loaded(self.metrics, message.info)
            self._preparation = asyncio.create_task(self._prepare(link))
        elif isinstance(message, LoadFailed):
            self._load_failed(message.message)
        elif isinstance(message, Alive):
            if self._pulse is not None:
                self._pulse.beat(message)
        elif isinstance(message, StepOutput):
            if self._pulse is not None:
                self._pulse.stepped()
            for event in message.events:
                self._route(event)
            self.stats = message.stats
            figures.stepped(self.metrics, self.stats, self.info, len(self._open))

    async def _prepare(self, link: Link) -> None:
        """Run `before_ready`; the engine still starts if it fails."""
        try:
            if self.before_ready is not None:
                await self.before_ready(self)
        except Exception:
            log.exception("%s: preparing the engine failed; it serves without that", self.model)
        if link is not self._link:  # it died meanwhile
            return
        self._preparation = self.failure = None
        self._last_used = time.monotonic()
        held, self._held = self._held, []
        for message in held:
            link.send(message)
        self._set_phase(EngineState.READY)
        self._hear_of_voices(self._reported)

    def _hear_of_voices(self, voices: tuple[tuple[str, int], ...]) -> None:
        """Update the list of voices; while loading again, keep those still to be added."""
        self._reported = voices
        if self._phase in (EngineState.LOADING, EngineState.RESTARTING):
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

    async def _watch(self) -> None:
        """Watch for a worker that hangs or has been idle for too long."""
        limits = [self.server.stall_timeout, self.server.unload_after or 4.0]
        interval = min(1.0, min(limits) / 4)
        while True:
            await asyncio.sleep(interval)
            if self._pulse is None or self._link is None:
                continue
            problem = self._pulse.tick(interval)
            if problem is not None:
                self.metrics.engine_errors_total("hang").inc()
                self._lost(problem)
            elif self._idle():
                self._unload()

    def _idle(self) -> bool:
        """Has the model been idle for long enough to be unloaded?"""
        after = self.server.unload_after
        if self.state is not EngineState.READY or after is None:
            return False
        if self._open or self._expected or self._conversations.any:
            self._last_used = time.monotonic()
        return time.monotonic() - self._last_used > after

    def _unload(self) -> None:
        """End the worker to free its memory; the next request starts another."""
        self._give_up(kill=False)
        log.info("%s is unloaded after %g idle seconds", self.model, self.server.unload_after)
        self.metrics.engine_unloads_total().inc()
        self._set_phase(EngineState.UNLOADED)

    def _load_again(self) -> None:
        """Load an unloaded model."""
        self._beginning = asyncio.create_task(self._begin(self._new_link()))
        self._set_phase(EngineState.LOADING)

    async def _begin(self, link: Link, delay: float = 0.0) -> None:
        """Start a worker after the previous one has ended, so that its memory is free."""
        if self._ending is not None:
            await asyncio.wait((self._ending,))
        await asyncio.sleep(delay)
        self._start(link)

    def _load_failed(self, reason: str) -> None:
        if self._phase is not EngineState.LOADING:
            self._lost(reason)
            return
        self._give_up(kill=False)  # the next request tries again: others may have the memory now
        log.error("%s: %s", self.model, reason)
        self.failure = reason
        self._fail_open(f"the model cannot be loaded: {reason}")
        self._set_phase(EngineState.UNLOADED)

    def _ended(self, link: Link, reason: str) -> None:
        if link is self._link:
            self._lost(reason)

    def _lost(self, reason: str) -> None:
        """The worker died or hangs: start another one, or give up."""
        restart = self.server.on_worker_death == "restart"
        wanted = restart and self.info is not None and not self._draining
        delay = self._restarts.next_delay() if wanted else None
        if delay is None:
            self._die(f"{reason}, too often" if wanted else reason)
            return
        self._give_up(kill=True)
        log.error("%s: %s; it is restarted in %g s", self.model, reason, delay)
        self.metrics.worker_restarts_total().inc()
        self.failure = reason
        self._conversations.lose()
        self._fail_open(f"the engine is being restarted: {reason}")
        self._beginning = asyncio.create_task(self._begin(self._new_link(), delay))
        self._set_phase(EngineState.RESTARTING)

    def _die(self, reason: str) -> None:
        if self._phase is EngineState.DEAD:
            return
        self._give_up(kill=True)
        self.failure = reason
        self._fail_open(f"the engine is down: {reason}")
        self._set_phase(EngineState.DEAD)

    def _give_up(self, kill: bool) -> None:
        """Let the worker end by itself or kill it, in the background."""
        link = self._part()
        if link is not None:
            if kill:
                link.kill()
            self._ending = asyncio.create_task(link.stop())

    def _part(self) -> Link | None:
        """Ignore all further messages from the worker; the caller must end it."""
        link, self._link = self._link, None
        if self._preparation is not None:
            self._preparation.cancel()
        self._pulse = self._preparation = None
        self.stats = Stats()
        figures.gone(self.metrics)
        self.metrics.registry.watch_process(self.model, "worker", None)
        return link

    def _fail_open(self, reason: str) -> None:
        for request_id, events in self._open.items():
            events.put_nowait(Failed(request_id, Unavailable(reason)))
        self._open.clear()
        self._held.clear()

    def _set_phase(self, phase: EngineState) -> None:
        self._phase = phase
        self._tell()

    def _tell(self) -> None:
        """Report that the state has changed."""
        up = self.accepts or self.state is EngineState.DRAINING
        self.metrics.engine_up().set(up)
        self.metrics.ready().set(self.accepts)
        self._changed.set()
        self.on_change(self)
