"""The server's side of one engine: admits requests, sends them, routes what comes back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from enum import Enum

import attrs

from vox_serve import __version__
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
from vox_serve.text import FrontEnd
from vox_serve.voice import Segment
from vox_serve.workers.link import Link

GAUGES = ("requests_running", "requests_waiting", "slots_used", "prefixes", "conversations")
"""The gauges set to 0 once the engine is dead."""
log = logging.getLogger("vox_serve.client")


class EngineState(Enum):
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    DEAD = "dead"


class EngineClient:
    """One engine worker as the event loop sees it.

    Args:
        engine: what the worker runs.
        server: queue bound and time limits.
        metrics: records the worker's figures.
        front_end: normalizes a text before it is cut and spoken.
        in_thread: run the worker in a thread of this process; for tests.
    """

    def __init__(
        self,
        engine: EngineConfig,
        server: ServerConfig,
        metrics: Metrics,
        *,
        front_end: FrontEnd | None = None,
        in_thread: bool = False,
    ) -> None:
        self.config = engine
        self.server = server
        self.metrics = metrics
        self.front_end = front_end
        self.state = EngineState.STARTING
        self.info: EngineInfo | None = None
        self.stats = Stats()
        self.voices: tuple[tuple[str, int], ...] = ()
        """Names and speakers that a request may ask for, as the engine last reported them."""
        self.failure: str | None = None
        """Why the engine is dead."""
        self.on_change: Callable[[EngineClient], None] = lambda client: None
        """Called in the event loop when the state changes."""
        self.before_ready: Callable[[EngineClient], Awaitable[None]] | None = None
        """Awaited once the model is loaded; requests are accepted after it returns."""
        self._link = Link(engine, server.log, in_thread)
        self._open: dict[str, asyncio.Queue[Event]] = {}
        self._expected = 0
        self._watchdog: asyncio.Task[None] | None = None
        self._preparation: asyncio.Task[None] | None = None
        self._last_step = time.monotonic()

    @property
    def model(self) -> str:
        """The name by which requests choose it."""
        return self.metrics.model

    @property
    def open_requests(self) -> int:
        """Requests that have been submitted and have not ended."""
        return len(self._open)

    async def start(self) -> None:
        """Start the worker; returns at once, while the model is still loading."""
        self._changed = asyncio.Event()
        self._link.start(self._receive, self._die)
        self.metrics.registry.watch_process(self.model, "worker", self._link.pid)
        self._watchdog = asyncio.create_task(self._watch())

    async def wait_ready(self) -> None:
        """Return when the engine is ready.  Raises Unavailable if it cannot be."""
        while self.state is EngineState.STARTING:
            await self._changed.wait()
        if self.state is EngineState.DEAD:
            raise Unavailable(f"the engine is down: {self.failure}")

    def admit(self) -> EngineInfo:
        """The loaded model, if requests are accepted.  Raises Unavailable if they are not."""
        if self.state is EngineState.READY and self.info is not None:
            return self.info
        reason = {
            EngineState.STARTING: "the model is still loading",
            EngineState.DRAINING: "the server is shutting down",
        }.get(self.state, f"the engine is down: {self.failure}")
        kind = "draining" if self.state is EngineState.DRAINING else "engine_down"
        self.metrics.admission_rejections_total(kind).inc()
        raise Unavailable(reason)

    def check_room(self) -> EngineInfo:
        """The loaded model, if one more request is accepted.

        Raises:
            Unavailable: starting, draining or dead.
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
        speech in progress is accepted even if the queue is full or the server is draining.

        Raises:
            Unavailable, QueueFull: as `check_room`.
        """
        if not request.continues:
            self.check_room()
        elif self.state is not EngineState.DRAINING:
            self.admit()
        return self._ask(request.id, Add(request))

    def forget_soon(self, conversation: str) -> None:
        """Drop a conversation without waiting for it; unknown ones are ignored."""
        if self.state in (EngineState.READY, EngineState.DRAINING):
            self._link.send(Forget("", conversation))

    async def forget(self, conversation: str) -> bool:
        """Drop a conversation; False if there is none.  Raises Unavailable."""
        self.admit()
        request_id = uuid.uuid4().hex
        return await self._done(request_id, Forget(request_id, conversation))

    async def add_voice(self, name: str, speaker: int, segments: tuple[Segment, ...]) -> None:
        """Add a voice to the model, replacing one of the same name.

        May be called in `before_ready`.

        Raises:
            RequestError: the model cannot take the voice, or the engine is unavailable.
        """
        if self.info is None or self.state is not EngineState.STARTING:
            self.admit()
        request_id = uuid.uuid4().hex
        if self.front_end is not None:
            read = self.front_end.read
            segments = tuple(attrs.evolve(s, text=read(s.text).text) for s in segments)
        await self._done(request_id, AddVoice(request_id, name, speaker, segments))

    async def remove_voice(self, name: str) -> bool:
        """Forget a voice; False if there is none.  Raises Unavailable."""
        self.admit()
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
        if not self._open:
            self._last_step = time.monotonic()
        events = self._open.setdefault(request_id, asyncio.Queue())
        self._link.send(message)
        return events

    def abort(self, request_id: str) -> None:
        """End a request whose client left: no more events, and its slot is freed."""
        if self._open.pop(request_id, None) is not None:
            self._link.send(Abort(request_id))

    def drain(self) -> None:
        """Accept no more requests; open ones continue."""
        if self.state in (EngineState.STARTING, EngineState.READY):
            self._set_state(EngineState.DRAINING)

    async def stop(self) -> None:
        """End the worker, gently first; open requests fail."""
        for task in (self._watchdog, self._preparation):
            if task is not None:
                task.cancel()
        if self.info is None:
            self._link.kill()  # while loading, it does not read messages
        await self._link.stop()
        self._die("the server has shut down")

    def _receive(self, message: FromWorker) -> None:
        if isinstance(message, Ready):
            self.info = message.info
            self.voices = message.info.voices
            self._describe(message.info)
            if self.state is EngineState.STARTING:
                self._preparation = asyncio.create_task(self._prepare())
        elif isinstance(message, LoadFailed):
            self._die(message.message)
        elif isinstance(message, StepOutput):
            self._last_step = time.monotonic()
            for event in message.events:
                self._route(event)
            self._record(message.stats)

    async def _prepare(self) -> None:
        """Run `before_ready`; the engine still starts if it fails."""
        try:
            if self.before_ready is not None:
                await self.before_ready(self)
        except Exception:
            log.exception("%s: preparing the engine failed; it serves without that", self.model)
        if self.state is EngineState.STARTING:
            self._set_state(EngineState.READY)

    def _describe(self, info: EngineInfo) -> None:
        self.metrics.slots().set(info.num_slots)
        self.metrics.engine_memory_bytes("weights").set(info.weight_bytes)
        self.metrics.engine_memory_bytes("slots").set(info.cache_bytes)
        self.metrics.build_info.labels(
            self.model, __version__, info.torch_version, info.device
        ).set(1)

    def _route(self, event: Event) -> None:
        if isinstance(event, Done) and event.voices is not None:
            self.voices = event.voices  # even if nobody waits for it any longer
        events = self._open.get(event.request_id)
        if events is None:  # aborted here, while the worker was still speaking it
            return
        if isinstance(event, Failed | Done) or (isinstance(event, Finished) and not event.more):
            del self._open[event.request_id]
        events.put_nowait(event)

    def _record(self, stats: Stats) -> None:
        self.stats = stats
        metrics = self.metrics
        metrics.engine_last_step_timestamp_seconds().set_to_current_time()
        metrics.requests_running().set(stats.running)
        # Requests that are still in the pipe or being prepared count as waiting.
        metrics.requests_waiting().set(max(0, len(self._open) - stats.running))
        metrics.slots_used().set(stats.running)
        for phase, seconds in stats.phase_seconds:
            metrics.engine_step_seconds(phase).observe(seconds)
        for kind in stats.errors:
            metrics.engine_errors_total(kind).inc()
        if stats.batch_size:
            metrics.batch_size().observe(stats.batch_size)
        metrics.frames_total().inc(stats.frames)
        metrics.reserved_codes_total().inc(stats.reserved_codes)
        metrics.prompt_positions_total("prefilled").inc(stats.prefilled)
        metrics.prompt_positions_total("restored").inc(stats.restored)
        metrics.prefix_lookups_total("hit").inc(stats.hits)
        metrics.prefix_lookups_total("miss").inc(stats.misses)
        metrics.prefixes().set(stats.prefixes)
        metrics.engine_memory_bytes("prefixes").set(stats.prefix_bytes)
        metrics.conversations().set(stats.conversations)
        metrics.voices().set(len(self.voices))
        for kind, size in zip(("used", "free"), stats.device_memory or (), strict=False):
            metrics.device_memory_bytes.labels(self.model, kind).set(size)
        if self.info is not None:
            metrics.audio_seconds_total().inc(stats.frames / self.info.frame_rate)

    async def _watch(self) -> None:
        """Declare the worker hung if requests are open and no step has ended for too long."""
        limit = self.server.stall_timeout
        while True:
            await asyncio.sleep(min(1.0, limit / 4))
            if self._open and time.monotonic() - self._last_step > limit:
                self.metrics.engine_errors_total("hang").inc()
                self._link.kill()
                self._die(f"the engine completed no step for {limit:g} seconds")

    def _die(self, reason: str) -> None:
        if self.state is EngineState.DEAD:
            return
        self.failure = reason
        self.stats = Stats()
        for gauge in GAUGES:
            getattr(self.metrics, gauge)().set(0)
        for request_id, events in self._open.items():
            events.put_nowait(Failed(request_id, Unavailable(f"the engine is down: {reason}")))
        self._open.clear()
        self._set_state(EngineState.DEAD)

    def _set_state(self, state: EngineState) -> None:
        self.state = state
        self.metrics.engine_up().set(state in (EngineState.READY, EngineState.DRAINING))
        self.metrics.ready().set(state is EngineState.READY)
        self._changed.set()
        self.on_change(self)
