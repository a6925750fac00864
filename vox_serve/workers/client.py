"""The server's side of one model: admits requests, and chooses a worker for each.

There is one queue.  With one worker, it is the worker's own.  With several, a request waits here
until one of them has a free slot, and goes to the first one that has.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial

import attrs

from vox_serve.config import EngineConfig, ServerConfig
from vox_serve.conversation import Conversation, Conversations
from vox_serve.errors import QueueFull, Unavailable
from vox_serve.messages import (
    EngineInfo,
    Event,
    Failed,
    Finished,
    MoreText,
    Said,
    SpeechRequest,
    Stats,
)
from vox_serve.metrics import Metrics
from vox_serve.text import AS_WRITTEN, FrontEnd
from vox_serve.voice import Segment
from vox_serve.workers import figures
from vox_serve.workers.interface import ACCEPTING, EngineClient, EngineState, VoiceTaker
from vox_serve.workers.jobs import Jobs
from vox_serve.workers.link import AnyLink, Link
from vox_serve.workers.reading import TextReader, text_jobs
from vox_serve.workers.replica import Replica
from vox_serve.workers.sound import Postprocessing


@attrs.define(eq=False)
class OpenRequest:
    """A request that has been submitted and has not ended."""

    request: SpeechRequest
    """Its current part."""
    events: asyncio.Queue[Event] = attrs.field(factory=asyncio.Queue)
    replica: Replica | None = None
    """The worker that speaks it; None while it waits here."""
    more: list[MoreText] = attrs.field(factory=list)
    """Further text that came while it waited here."""
    conversation: Conversation | None = None
    """Its conversation, while its turn is spoken."""
    turns: tuple[Segment, ...] | None = None
    """The conversation once this turn has ended."""


class WorkerClient:
    """One model served by one or several workers; an `interface.EngineClient`.

    Args:
        engine: what each worker runs; see `config.EngineConfig.workers`.
        server: queue bound and time limits.
        metrics: records the figures.
        front_end: normalizes a text before it is cut and spoken.
        texts: where it does so; None: processes of this engine only.
        postprocessing: applied to all audio; None: none.
        in_thread: run the workers in threads of this process; for tests.
        link: makes the link to an engine; None starts workers of its own.
    """

    def __init__(
        self,
        engine: EngineConfig,
        server: ServerConfig,
        metrics: Metrics,
        *,
        front_end: FrontEnd = AS_WRITTEN,
        texts: Jobs | None = None,
        postprocessing: Postprocessing | None = None,
        in_thread: bool = False,
        link: Callable[[], AnyLink] | None = None,
    ) -> None:
        self.config = engine
        self.server = server
        self.metrics = metrics
        self.front_end = front_end
        self.reader = TextReader(front_end, texts or text_jobs(in_thread))
        self.postprocessing = postprocessing
        self.on_change: Callable[[EngineClient], None] = lambda client: None
        self.before_ready: Callable[[VoiceTaker], Awaitable[None]] | None = None
        links: list[Callable[[], AnyLink]] = (
            [link]
            if link is not None
            else [partial(Link, config, server.log, in_thread) for config in engine.workers()]
        )
        self.replicas: Sequence[Replica] = [
            Replica(number, server, metrics.of(number), self, self.reader, make_link)
            for number, make_link in enumerate(links)
        ]
        self._draining = False
        self._open: dict[str, OpenRequest] = {}
        self._waiting: deque[OpenRequest] = deque()
        self._expected = 0
        self._conversations = Conversations(engine.conversation_timeout, engine.max_conversations)

    @property
    def model(self) -> str:
        return self.metrics.model

    @property
    def base(self) -> EngineClient:
        return self

    @property
    def _best(self) -> Replica:
        return min(self.replicas, key=lambda replica: list(EngineState).index(replica.state))

    @property
    def info(self) -> EngineInfo | None:
        """The loaded model, with the slots and memory of all replicas that can speak."""
        info = self._best.info
        if info is None or len(self.replicas) == 1:
            return info
        able = [r.info for r in self.replicas if r.accepts and r.info is not None] or [info]
        sums = ("num_slots", "weight_bytes", "cache_bytes")
        return attrs.evolve(info, **{n: sum(getattr(each, n) for each in able) for n in sums})

    @property
    def stats(self) -> Stats:
        found = [replica.stats for replica in self.replicas]
        waiting = len(self._waiting) + sum(stats.waiting for stats in found)
        return Stats(running=sum(stats.running for stats in found), waiting=waiting)

    @property
    def voices(self) -> tuple[tuple[str, int], ...]:
        return self._best.voices

    @property
    def failure(self) -> str | None:
        if self.state in (EngineState.READY, EngineState.LOADING):
            return None
        return next((r.failure for r in self.replicas if r.failure is not None), None)

    @property
    def state(self) -> EngineState:
        states = {replica.state for replica in self.replicas}
        never = [r.state for r in self.replicas if r.info is None]
        if EngineState.DEAD in never or states == {EngineState.DEAD}:
            return EngineState.DEAD  # a replica that cannot be loaded is a fault of the settings
        if self._draining:
            return EngineState.DRAINING
        return EngineState.STARTING if EngineState.STARTING in states else self._best.state

    @property
    def accepts(self) -> bool:
        return self.state in ACCEPTING

    @property
    def open_requests(self) -> int:
        return len(self._open) + sum(replica.asked for replica in self.replicas)

    async def start(self) -> None:
        self._changed = asyncio.Event()
        for replica in self.replicas:
            replica.worker.start()

    async def wait_ready(self) -> None:
        """Return when the engine is ready.  Raises Unavailable if it cannot be."""
        while self.state is EngineState.STARTING:
            self._changed.clear()
            await self._changed.wait()
        if self.state is EngineState.DEAD:
            raise Unavailable(f"the engine is down: {self.failure}")

    def admit(self) -> EngineInfo:
        info = self.info
        if self.accepts and info is not None:
            return info
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
        conversation = None
        if request.conversation is not None and request.turns is None:
            conversation = self._conversations.begin(request.conversation, request.id)
            request = attrs.evolve(request, turns=conversation.turns)
        opened = self._open.setdefault(request.id, OpenRequest(request))
        opened.request, opened.conversation, opened.turns = request, conversation, None
        if opened.replica is not None:  # the next part of a text
            opened.replica.speak(request)
        elif (replica := self._choose(opened)) is not None:
            self._give(opened, replica)
        else:
            (self._waiting.appendleft if request.continues else self._waiting.append)(opened)
        return opened.events

    def _choose(self, opened: OpenRequest) -> Replica | None:
        """The replica that should speak a request; None if it must wait."""
        if len(self.replicas) == 1:
            return self.replicas[0]
        talk, request = opened.conversation, opened.request
        home = self.replicas[talk.home] if talk is not None and talk.home is not None else None
        able = [replica for replica in self.replicas if replica.accepts]
        free = [replica for replica in able if replica.free > 0]
        if home in free:
            return home
        if free:
            return max(free, key=lambda replica: replica.merit(request))
        if request.continues and able:  # it goes to the head of that replica's own queue
            return home if home in able else max(able, key=lambda replica: replica.free)
        return None

    def _give(self, opened: OpenRequest, replica: Replica) -> None:
        opened.replica = replica
        if opened.conversation is not None:
            opened.conversation.home = replica.number
        replica.speak(opened.request)
        for message in opened.more:
            replica.more_text(message)
        opened.more.clear()

    def _give_out(self) -> None:
        """Give waiting requests to replicas that have free slots."""
        while self._waiting and (replica := self._choose(self._waiting[0])) is not None:
            self._give(self._waiting.popleft(), replica)

    def more_text(self, request_id: str, text: str, end: bool) -> None:
        opened, message = self._open.get(request_id), MoreText(request_id, text, end)
        if opened is not None and opened.replica is None:
            opened.more.append(message)
        elif opened is not None and opened.replica is not None:
            opened.replica.more_text(message)

    def abort(self, request_id: str) -> None:
        opened = self._open.pop(request_id, None)
        if opened is None:
            return
        self._end_turn(opened)
        self._conversations.release(request_id)  # it may have been between two parts of a text
        if opened.replica is None:
            self._waiting.remove(opened)
        else:
            opened.replica.abort(request_id)
            self._give_out()

    def forget_soon(self, conversation: str) -> None:
        self._conversations.forget(conversation)
        for replica in self.replicas:
            replica.forget(conversation)

    async def forget(self, conversation: str) -> bool:
        found = self._conversations.forget(conversation)
        self.forget_soon(conversation)
        return found

    async def add_voice(self, name: str, speaker: int, segments: tuple[Segment, ...]) -> None:
        self.admit()
        added: list[Replica] = []
        lost: Unavailable | None = None
        for replica in self._loaded():
            try:
                await replica.add_voice(name, speaker, segments)
            except Unavailable as error:
                lost = error  # it gets its voices when it comes back
            except BaseException:
                for other in added:
                    await other.remove_voice(name)
                raise
            else:
                added.append(replica)
        if lost is not None and not added:
            raise lost
        for replica in self.replicas:
            if replica not in added:
                replica.expect_voice(name, speaker)

    async def remove_voice(self, name: str) -> bool:
        self.admit()
        found = False
        for replica in self.replicas:
            with contextlib.suppress(Unavailable):  # it gets its voices when it comes back
                found |= await replica.remove_voice(name)
        return found

    def _loaded(self) -> list[Replica]:
        """The replicas whose model is loaded, or one that will be loaded."""
        return [r for r in self.replicas if r.state is EngineState.READY] or [self._best]

    def drain(self) -> None:
        if not self._draining and self.state is not EngineState.DEAD:
            self._draining = True
            for replica in self.replicas:
                replica.worker.draining = True
            self.changed()

    async def stop(self) -> None:
        await asyncio.gather(*(replica.worker.stop() for replica in self.replicas))

    async def prepare(self, replica: Replica) -> None:
        if self.before_ready is not None:
            await self.before_ready(replica)

    def hear(self, event: Event) -> None:
        opened = self._open.get(event.request_id)
        if opened is None:
            return
        if isinstance(event, Said) and opened.conversation is not None:
            turns = opened.conversation.turns
            opened.turns = (*turns[len(turns) - event.kept :], *event.segments)
            return
        if isinstance(event, Failed | Finished):
            more = isinstance(event, Finished) and event.more
            self._end_turn(opened, event.request_id if more else None)
            if not more:
                del self._open[event.request_id]
        opened.events.put_nowait(event)

    def _end_turn(self, opened: OpenRequest, kept_for: str | None = None) -> None:
        if opened.conversation is not None:
            self._conversations.end(opened.conversation, opened.turns, kept_for)
        opened.conversation = None

    def stepped(self) -> None:
        self._give_out()
        figures.served(self.metrics, self.stats.running, len(self._open), len(self._conversations))

    def in_use(self) -> bool:
        return bool(self._expected)

    def changed(self) -> None:
        if not self.accepts and self.state is not EngineState.DRAINING:
            reason = self.failure
            for opened in list(self._waiting):
                self.hear(Failed(opened.request.id, Unavailable(f"the engine is down: {reason}")))
            self._waiting.clear()
        self._give_out()
        self.metrics.ready().set(self.accepts)
        self.metrics.voices().set(len(self.voices))
        figures.served(self.metrics, self.stats.running, len(self._open), len(self._conversations))
        self._changed.set()
        self.on_change(self)
