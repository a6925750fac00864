"""The life of one worker: starts it, watches it, ends it if it hangs or is idle for too long, and
starts it again if it is configured to."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Protocol

from vox_serve.config import ServerConfig
from vox_serve.messages import (
    Abort,
    Add,
    Alive,
    Changed,
    EngineInfo,
    Forget,
    FromWorker,
    LoadFailed,
    MoreText,
    Ready,
    Stats,
    StepOutput,
    ToWorker,
)
from vox_serve.metrics import Metrics
from vox_serve.workers import figures
from vox_serve.workers.interface import EngineState
from vox_serve.workers.life import Pulse, Restarts
from vox_serve.workers.link import AnyLink

log = logging.getLogger("vox_serve.client")


def _request_of(message: ToWorker) -> str | None:
    """The id of the request that a message is about."""
    if isinstance(message, Add):
        return message.request.id
    return message.request_id if isinstance(message, MoreText) else None


class Listener(Protocol):
    """The client of a supervisor; its methods are called in the event loop."""

    def loaded(self, info: EngineInfo) -> None:
        """The model is in memory; `prepare` is next."""

    async def prepare(self) -> None:
        """Bring the loaded model up to date; requests are accepted after it returns."""

    def received(self, output: StepOutput) -> None:
        """The worker has made a step."""

    def ended(self, reason: str) -> None:
        """The worker has ended, and open requests with it; `reason` is for their errors."""

    def in_use(self) -> bool:
        """Whether the model must stay in memory."""

    def changed(self) -> None:
        """`phase` has changed."""


class Supervisor:
    """Keeps one worker.

    Args:
        server: time limits, and what to do when a worker dies.
        metrics: records the worker's figures.
        listener: the client that it reports to.
        make_link: makes the link to the next worker.
    """

    def __init__(
        self,
        server: ServerConfig,
        metrics: Metrics,
        listener: Listener,
        make_link: Callable[[], AnyLink],
    ) -> None:
        self.phase = EngineState.STARTING
        """The worker's own state, whether or not the server is draining."""
        self.info: EngineInfo | None = None
        self.stats = Stats()
        self.failure: str | None = None
        """Why the worker ended, until it is ready again."""
        self.draining = False
        self._server = server
        self._metrics = metrics
        self._listener = listener
        self._make_link = make_link
        self._link: AnyLink | None = None
        self._pulse: Pulse | None = None
        """The worker's signs of life, once its model is loaded."""
        self._held: list[ToWorker] = []
        """Messages that wait until the model is loaded again."""
        self._restarts = Restarts()
        self._last_used = time.monotonic()
        self._watchdog: asyncio.Task[None] | None = None
        self._preparation: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None
        """Waits until a worker that was given up has ended."""
        self._beginning: asyncio.Task[None] | None = None
        """Starts the next worker after that."""

    @property
    def preparing(self) -> bool:
        """Whether the listener's `prepare` is running while requests wait for it."""
        return self._preparation is not None and bool(self._held or not self.draining)

    def start(self) -> None:
        """Start the worker; returns at once, while the model is still loading."""
        self._start(self._new_link())
        self._watchdog = asyncio.create_task(self._watch())

    def ask(self, message: ToWorker) -> None:
        """Send a message that needs the model; loads it if it is unloaded."""
        self._last_used = time.monotonic()
        if self.phase is EngineState.UNLOADED:
            self._load_again()
        self.send(message)

    def send(self, message: ToWorker) -> None:
        """Send a message; one about a request is held back until the stored voices are added."""
        if self.phase is EngineState.LOADING and isinstance(message, Abort):
            self._held = [held for held in self._held if _request_of(held) != message.request_id]
        elif self.phase is EngineState.LOADING and isinstance(message, Add | MoreText | Forget):
            self._held.append(message)
        elif self._link is not None:
            self._link.send(message)

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
        self.die("the server has shut down")

    def die(self, reason: str) -> None:
        """Give the worker up for good."""
        if self.phase is EngineState.DEAD:
            return
        self._give_up(kill=True)
        self.failure = reason
        self._fail_open(f"the engine is down: {reason}")
        self._set_phase(EngineState.DEAD)

    def _new_link(self) -> AnyLink:
        self._link = self._make_link()
        return self._link

    def _start(self, link: AnyLink) -> None:
        link.start(partial(self._receive, link), partial(self._ended, link))
        self._metrics.watch_process("worker", link.pid)

    def _receive(self, link: AnyLink, message: FromWorker) -> None:
        if link is not self._link:  # a worker that has been given up
            return
        if isinstance(message, Ready):
            self.info = message.info
            self._pulse = Pulse(self._server.stall_timeout)
            self._listener.loaded(message.info)
            figures.loaded(self._metrics, message.info)
            self._preparation = asyncio.create_task(self._prepare(link))
        elif isinstance(message, Changed):
            self.info = message.info
            figures.loaded(self._metrics, message.info)
        elif isinstance(message, LoadFailed):
            self._load_failed(message.message)
        elif isinstance(message, Alive):
            if self._pulse is not None:
                self._pulse.beat(message)
        elif isinstance(message, StepOutput):
            if self._pulse is not None:
                self._pulse.stepped()
            self.stats = message.stats
            self._listener.received(message)

    async def _prepare(self, link: AnyLink) -> None:
        """Let the listener prepare; the engine still starts if that fails."""
        try:
            await self._listener.prepare()
        except Exception:
            log.exception(
                "%s: preparing the engine failed; it serves without that", self._metrics.model
            )
        if link is not self._link:  # it died meanwhile
            return
        self._preparation = self.failure = None
        self._last_used = time.monotonic()
        held, self._held = self._held, []
        for message in held:
            link.send(message)
        self._set_phase(EngineState.READY)

    async def _watch(self) -> None:
        """Watch for a worker that hangs or has been idle for too long."""
        limits = [self._server.stall_timeout, self._server.unload_after or 4.0]
        interval = min(1.0, min(limits) / 4)
        while True:
            await asyncio.sleep(interval)
            if self._pulse is None or self._link is None:
                continue
            problem = self._pulse.tick(interval)
            if problem is not None:
                self._metrics.engine_errors_total("hang").inc()
                self._lost(problem)
            elif self._idle():
                self._unload()

    def _idle(self) -> bool:
        """Whether the model has been idle for long enough to be unloaded."""
        after = self._server.unload_after
        if self.phase is not EngineState.READY or self.draining or after is None:
            return False
        if self._listener.in_use():
            self._last_used = time.monotonic()
        return time.monotonic() - self._last_used > after

    def _unload(self) -> None:
        """End the worker to free its memory; the next request starts another."""
        self._give_up(kill=False)
        log.info(
            "%s is unloaded after %g idle seconds", self._metrics.model, self._server.unload_after
        )
        self._metrics.engine_unloads_total().inc()
        self._set_phase(EngineState.UNLOADED)

    def _load_again(self) -> None:
        """Load an unloaded model."""
        self._beginning = asyncio.create_task(self._begin(self._new_link()))
        self._set_phase(EngineState.LOADING)

    async def _begin(self, link: AnyLink, delay: float = 0.0) -> None:
        """Start a worker after the previous one has ended, so that its memory is free."""
        if self._ending is not None:
            await asyncio.wait((self._ending,))
        await asyncio.sleep(delay)
        self._start(link)

    def _load_failed(self, reason: str) -> None:
        if self.phase is not EngineState.LOADING:
            self._lost(reason)
            return
        self._give_up(kill=False)  # the next request tries again: others may have the memory now
        log.error("%s: %s", self._metrics.model, reason)
        self.failure = reason
        self._fail_open(f"the model cannot be loaded: {reason}")
        self._set_phase(EngineState.UNLOADED)

    def _ended(self, link: AnyLink, reason: str) -> None:
        if link is self._link:
            self._lost(reason)

    def _lost(self, reason: str) -> None:
        """The worker died or hangs: start another one, or give up."""
        restart = self._server.on_worker_death == "restart"
        wanted = restart and self.info is not None and not self.draining
        delay = self._restarts.next_delay() if wanted else None
        if delay is None:
            self.die(f"{reason}, too often" if wanted else reason)
            return
        self._give_up(kill=True)
        log.error("%s: %s; it is restarted in %g s", self._metrics.model, reason, delay)
        self._metrics.worker_restarts_total().inc()
        self.failure = reason
        self._fail_open(f"the engine is being restarted: {reason}")
        self._beginning = asyncio.create_task(self._begin(self._new_link(), delay))
        self._set_phase(EngineState.RESTARTING)

    def _give_up(self, kill: bool) -> None:
        """Let the worker end by itself or kill it, in the background."""
        link = self._part()
        if link is not None:
            if kill:
                link.kill()
            self._ending = asyncio.create_task(link.stop())

    def _part(self) -> AnyLink | None:
        """Ignore all further messages from the worker; the caller must end it."""
        link, self._link = self._link, None
        if self._preparation is not None:
            self._preparation.cancel()
        self._pulse = self._preparation = None
        self.stats = Stats()
        figures.gone(self._metrics)
        self._metrics.watch_process("worker", None)
        return link

    def _fail_open(self, reason: str) -> None:
        self._held.clear()
        self._listener.ended(reason)

    def _set_phase(self, phase: EngineState) -> None:
        self.phase = phase
        self._listener.changed()
