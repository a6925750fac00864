"""One replica of an engine: the same worker process and client as in a server of one machine.

Its methods are called by `link.ClusterLink`.  It loads no torch; its worker does.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import attrs

from vox_serve.audio import AudioUnreadable
from vox_serve.config import EngineConfig, ServerConfig
from vox_serve.errors import RequestError, Unavailable
from vox_serve.logs import configure
from vox_serve.messages import (
    AddVoice,
    Done,
    EngineInfo,
    Event,
    Failed,
    Finished,
    MoreText,
    SpeechRequest,
    Stats,
)
from vox_serve.plugins import load_plugins
from vox_serve.server.voices.store import MAX_SECONDS, VoiceRecord, VoiceStore, VoiceUnusable
from vox_serve.voice import Segment
from vox_serve.workers.engines import Engines
from vox_serve.workers.interface import EngineState, VoiceTaker
from vox_serve.workers.reading import read_clip

log = logging.getLogger("vox_serve.replica")
NEXT_PART_SECONDS = 10.0
"""How long a replica waits for the next part of a text, which another one may speak."""


@attrs.frozen
class Status:
    """What a replica reports."""

    info: EngineInfo
    voices: tuple[tuple[str, int], ...]
    stats: Stats


class Replica:
    """An engine that other machines may use.

    Args:
        engine: what the worker runs.
        server: queue bound and time limits; `voices_dir` is read here, never changed.
    """

    def __init__(self, engine: EngineConfig, server: ServerConfig) -> None:
        configure(server.log)
        self._engines = Engines([engine], server, load_plugins(engine.plugins))
        (self._client,) = self._engines
        directory = server.voices_dir
        self._store = None if directory is None else VoiceStore(Path(directory).expanduser())
        self._engines.prepare(self._load_voices)
        self._parts: dict[str, asyncio.TimerHandle] = {}
        """For each request whose next part is expected, the event that ends the wait."""
        self._started = False
        self._changed = asyncio.Event()
        self._engines.watch(lambda client: self._changed.set())

    async def start(self) -> None:
        """Load the model; returns when it is ready.  Raises Unavailable if it cannot be."""
        if not self._started:
            self._started = True
            await self._client.start()
        while self._client.state is EngineState.STARTING:
            self._changed.clear()
            await self._changed.wait()
        if self._client.state is EngineState.DEAD:
            raise Unavailable(f"the engine is down: {self._client.failure}")

    async def check_health(self) -> None:
        """Called by Ray, which replaces this replica after an exception."""
        await self.start()

    async def status(self) -> Status:
        """The state and figures of this replica."""
        await self.start()
        assert self._client.info is not None
        stats = self._client.stats
        levels = Stats(
            running=stats.running,
            waiting=stats.waiting,
            prefixes=stats.prefixes,
            prefix_bytes=stats.prefix_bytes,
        )
        return Status(self._client.info, self._client.voices, levels)

    async def speak(self, request: SpeechRequest) -> AsyncIterator[Event]:
        """The events of a request, a Finished or Failed last."""
        ended = False
        self._no_longer_expect(request.id)
        try:
            if request.voice is not None:
                await self._learn(request.voice)
            # Clocks of two machines differ: time in this replica's queue is measured here.
            arrived = attrs.evolve(request, arrival=time.monotonic())
            events = self._client.submit(arrived)
            if request.waits is not None:
                yield Done(request.id, True)  # `more_text` may come
            while not ended:
                event = await events.get()
                ended = isinstance(event, Failed | Finished)
                if isinstance(event, Finished) and event.more:
                    self._expect(request.id)
                yield event
        except RequestError as error:
            ended = True
            yield Failed(request.id, error)
        finally:
            if not ended:  # the client left, or the ingress's node died
                self._client.abort(request.id)

    async def more_text(self, message: MoreText) -> None:
        """Add to the text of a request, unless another replica speaks it."""
        self._client.more_text(message.request_id, message.text, message.end)

    def _expect(self, request_id: str) -> None:
        """Keep a request open for the next part of its text."""
        loop = asyncio.get_running_loop()
        self._parts[request_id] = loop.call_later(NEXT_PART_SECONDS, self._give_up, request_id)

    def _no_longer_expect(self, request_id: str) -> None:
        timer = self._parts.pop(request_id, None)
        if timer is not None:
            timer.cancel()

    def _give_up(self, request_id: str) -> None:
        del self._parts[request_id]
        self._client.abort(request_id)

    async def forget(self, conversation: str) -> None:
        """Drop what was remembered of a conversation."""
        self._client.forget_soon(conversation)

    async def add_voice(self, message: AddVoice) -> Done:
        """Add a voice, unless it is known from the directory."""

        async def add() -> bool:
            if all(name != message.name for name, _ in self._client.voices):
                await self._client.add_voice(message.name, message.speaker, message.segments)
            return True

        return attrs.evolve(await _done(message.request_id, add), voices=self._client.voices)

    async def remove_voice(self, request_id: str, name: str) -> Done:
        """Forget a voice."""
        done = await _done(request_id, lambda: self._client.remove_voice(name))
        return attrs.evolve(done, voices=self._client.voices)

    async def _learn(self, name: str) -> None:
        """Read a voice that was added while this replica was starting."""
        if self._store is None or any(name == known for known, _ in self._client.voices):
            return
        if record := (await self._stored(self._store)).get(name):
            await self._load_voice(self._client, self._store, name, record)

    async def _load_voices(self, client: VoiceTaker) -> None:
        if self._store is None:
            return
        for name, record in (await self._stored(self._store)).items():
            await self._load_voice(client, self._store, name, record)

    async def _stored(self, store: VoiceStore) -> dict[str, VoiceRecord]:
        """The model's voices in the directory."""
        records, _ = await asyncio.to_thread(store.scan)
        mine = (None, self._client.model)
        return {name: record for name, record in records.items() if record.model in mine}

    async def _load_voice(
        self, client: VoiceTaker, store: VoiceStore, name: str, record: VoiceRecord
    ) -> None:
        assert client.info is not None
        rate = client.info.sample_rate
        try:
            with await asyncio.to_thread(store.audio, name) as file:
                audio = await read_clip(self._engines.clips, file, rate, MAX_SECONDS)
            await client.add_voice(
                name, record.speaker, (Segment(record.speaker, record.text, audio),)
            )
        except (AudioUnreadable, RequestError, VoiceUnusable) as error:
            log.error("%s in the voices directory cannot be used: %s", name, error)


async def _done(request_id: str, work: Callable[[], Awaitable[bool | None]]) -> Done:
    try:
        return Done(request_id, bool(await work()))
    except RequestError as error:
        return Done(request_id, False, error.plain())
