"""One of the workers that serve a model: its requests, its voices and its place in the metrics.

`supervisor.Supervisor` keeps the worker alive; `client.WorkerClient` chooses a replica for each
request.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable
from typing import Protocol

import attrs

from vox_serve.config import ServerConfig
from vox_serve.errors import Unavailable
from vox_serve.messages import (
    KEPT_SECONDS,
    Abort,
    Add,
    AddVoice,
    Done,
    EngineInfo,
    Event,
    Failed,
    Finished,
    Forget,
    MoreText,
    RemoveVoice,
    SpeechRequest,
    Stats,
    StepOutput,
    ToWorker,
)
from vox_serve.metrics import Metrics
from vox_serve.voice import Segment
from vox_serve.workers import figures
from vox_serve.workers.interface import ACCEPTING, EngineState
from vox_serve.workers.link import AnyLink
from vox_serve.workers.reading import TextReader
from vox_serve.workers.supervisor import Supervisor

log = logging.getLogger("vox_serve.client")
WARM_VOICES = 128
"""The most voices whose prefix is assumed to be cached; the engine does not cache more."""
WARM_SLOTS = 2
"""How many free slots a cached prefix is worth: a popular voice still spreads over all replicas."""


class Owner(Protocol):
    """The client that a replica belongs to, and reports to."""

    @property
    def state(self) -> EngineState:
        """The state of all replicas together."""

    async def prepare(self, replica: Replica) -> None:
        """Add the stored voices to a replica that has loaded."""

    def stepped(self) -> None:
        """A replica has made a step."""

    def hear(self, event: Event) -> None:
        """Deliver an event about a request."""

    def in_use(self) -> bool:
        """Whether a request is being prepared."""

    def changed(self) -> None:
        """A replica's state or voices have changed."""


class Replica:
    """One worker.

    Args:
        number: its number, from 0.
        server: time limits.
        metrics: of this replica.
        owner: the client that it reports to.
        reader: reads the texts of voices.
        make_link: makes the link to its next worker.
    """

    def __init__(
        self,
        number: int,
        server: ServerConfig,
        metrics: Metrics,
        owner: Owner,
        reader: TextReader,
        make_link: Callable[[], AnyLink],
    ) -> None:
        self.number = number
        self.metrics = metrics
        self.worker = Supervisor(server, metrics, self, make_link)
        self.voices: tuple[tuple[str, int], ...] = ()
        self._owner = owner
        self._reader = reader
        self._speaking: dict[str, bool] = {}
        """Requests sent and not ended; False if the next part of a text has not come in time, and
        no slot is taken."""
        self._kept: dict[str, asyncio.TimerHandle] = {}
        """For each request whose next part is expected, what gives up its slot."""
        self._asked: dict[str, asyncio.Future[Done]] = {}
        """Answers that a caller waits for."""
        self._warm: dict[tuple[str | None, str | None], None] = {}
        """Voices, with their adapters, spoken here, in order of their last use."""
        self._reported: tuple[tuple[str, int], ...] = ()
        """The worker's own list of voices, which grows while stored ones are added again."""

    @property
    def model(self) -> str:
        return self.metrics.model

    @property
    def info(self) -> EngineInfo | None:
        return self.worker.info

    @property
    def stats(self) -> Stats:
        return self.worker.stats

    @property
    def failure(self) -> str | None:
        """Why it is not ready, or failed last."""
        return self.worker.failure

    @property
    def state(self) -> EngineState:
        """Its own state, whether or not the server is draining."""
        return self.worker.phase

    @property
    def accepts(self) -> bool:
        """Whether it can speak, perhaps after loading again."""
        return self.state in ACCEPTING

    @property
    def free(self) -> int:
        """Slots that are neither used nor about to be used; negative if requests wait in it."""
        slots = self.info.num_slots if self.info is not None else 0
        return slots - sum(self._speaking.values())

    @property
    def asked(self) -> int:
        """Voices being added or removed."""
        return len(self._asked)

    def merit(self, request: SpeechRequest) -> tuple[bool, int]:
        """How well it suits a request; the greatest is best."""
        warm = WARM_SLOTS if (request.voice, request.adapter) in self._warm else 0
        return self.state is EngineState.READY, self.free + warm

    def speak(self, request: SpeechRequest) -> None:
        """Send a request or its next part; events go to the owner."""
        self._no_longer_expect(request.id)
        self._speaking[request.id] = True
        if request.voice is not None:
            warm = request.voice, request.adapter
            self._warm.pop(warm, None)
            self._warm[warm] = None
            while len(self._warm) > WARM_VOICES:
                del self._warm[next(iter(self._warm))]
        self.worker.ask(Add(request))

    def more_text(self, message: MoreText) -> None:
        """Send further text of a request."""
        if message.request_id in self._speaking:
            self.worker.send(message)

    def abort(self, request_id: str) -> None:
        """End a request whose client left."""
        self._no_longer_expect(request_id)
        self._speaking.pop(request_id, None)
        self.worker.send(Abort(request_id))

    def _no_longer_expect(self, request_id: str) -> None:
        timer = self._kept.pop(request_id, None)
        if timer is not None:
            timer.cancel()

    def _give_up_slot(self, request_id: str) -> None:
        """Give up a slot that the worker no longer keeps, so that another request may have it."""
        del self._kept[request_id]
        self._speaking[request_id] = False
        self._owner.stepped()

    def forget(self, conversation: str) -> None:
        """Free what it holds of a conversation."""
        if self.state in (EngineState.READY, EngineState.LOADING):
            self.worker.send(Forget(conversation))

    async def add_voice(self, name: str, speaker: int, segments: tuple[Segment, ...]) -> None:
        """Like `EngineClient.add_voice`, for this worker only."""
        if not self.worker.preparing:
            self._require()
        request_id = uuid.uuid4().hex
        segments = tuple([attrs.evolve(s, text=await self._reader.read(s.text)) for s in segments])
        await self._done(request_id, AddVoice(request_id, name, speaker, segments))
        self._warm = {warm: None for warm in self._warm if warm[0] != name}

    def expect_voice(self, name: str, speaker: int) -> None:
        """List a voice that other replicas have; this worker gets it when it is loaded again."""
        self.voices = (*(voice for voice in self.voices if voice[0] != name), (name, speaker))

    async def remove_voice(self, name: str) -> bool:
        """Like `EngineClient.remove_voice`, for this worker only."""
        if self.state is EngineState.UNLOADED:
            before = self.voices
            self.voices = tuple(voice for voice in before if voice[0] != name)
            return len(self.voices) < len(before)
        if not self.worker.preparing:
            self._require()
        request_id = uuid.uuid4().hex
        return await self._done(request_id, RemoveVoice(request_id, name))

    def _require(self) -> None:
        if not self.accepts:
            raise Unavailable(f"the engine is down: {self.failure}")

    async def _done(self, request_id: str, message: ToWorker) -> bool:
        answer = self._asked[request_id] = asyncio.get_running_loop().create_future()
        try:
            self.worker.ask(message)
            done: Done = await answer
        finally:
            self._asked.pop(request_id, None)
        if done.error is not None:
            raise done.error
        return done.found

    def loaded(self, info: EngineInfo) -> None:
        self._hear_of_voices(info.voices)

    async def prepare(self) -> None:
        await self._owner.prepare(self)

    def received(self, output: StepOutput) -> None:
        for event in output.events:
            self._route(event)
        figures.stepped(self.metrics, output.stats, self.info)
        self._owner.stepped()

    def ended(self, reason: str) -> None:
        speaking, self._speaking = self._speaking, {}
        for request_id in list(self._kept):
            self._no_longer_expect(request_id)
        self._warm.clear()
        for request_id in speaking:
            self._owner.hear(Failed(request_id, Unavailable(reason)))
        for request_id, answer in self._asked.items():
            if not answer.done():
                answer.set_result(Done(request_id, False, Unavailable(reason)))

    def in_use(self) -> bool:
        return bool(self._speaking or self._asked or self._owner.in_use())

    def changed(self) -> None:
        if self.state is EngineState.READY:
            self._hear_of_voices(self._reported)
        self.metrics.engine_up().set(self.accepts)
        dead, all_dead = (one.state is EngineState.DEAD for one in (self, self._owner))
        if dead and not all_dead and not self.worker.draining:  # the last one's end is reported
            log.error("%s: replica %d is dead: %s", self.model, self.number, self.failure)
        self._owner.changed()

    def _hear_of_voices(self, voices: tuple[tuple[str, int], ...]) -> None:
        """Update the list of voices; while loading again, keep those still to be added."""
        self._reported = voices
        if self.state in (EngineState.LOADING, EngineState.RESTARTING):
            voices = tuple(dict.fromkeys((*self.voices, *voices)))
        self.voices = voices

    def _route(self, event: Event) -> None:
        if isinstance(event, Done):
            if event.voices is not None:  # even if its caller no longer waits
                self._hear_of_voices(event.voices)
            answer = self._asked.get(event.request_id)
            if answer is not None and not answer.done():
                answer.set_result(event)
            return
        if event.request_id not in self._speaking:  # aborted meanwhile
            return
        if isinstance(event, Finished) and event.more:
            loop = asyncio.get_running_loop()
            self._kept[event.request_id] = loop.call_later(
                KEPT_SECONDS, self._give_up_slot, event.request_id
            )
        elif isinstance(event, Failed | Finished):
            del self._speaking[event.request_id]
        self._owner.hear(event)
