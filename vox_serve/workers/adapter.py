"""An adapter that is served together with its base, as a model with its own name.

It is a view of the base's client: slots, queue, voices and conversations are the base's, so
requests of all adapters run in the same batches.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager

import attrs

from vox_serve.messages import EngineInfo, Event, SpeechRequest, Stats
from vox_serve.voice import Segment
from vox_serve.workers.interface import EngineClient, EngineState, ReplicaState, VoiceTaker


class AdapterClient:
    """An `interface.EngineClient` whose requests are spoken with an adapter.

    Args:
        name: the name that requests use.
        base: the client of the base model.
    """

    def __init__(self, name: str, base: EngineClient) -> None:
        self._name = name
        self._base = base
        self.server = base.server
        self.metrics = base.metrics
        self.front_end = base.front_end
        self.reader = base.reader
        self.postprocessing = base.postprocessing
        self.on_change: Callable[[EngineClient], None] = lambda client: None
        self.before_ready: Callable[[VoiceTaker], Awaitable[None]] | None = None

    @property
    def model(self) -> str:
        return self._name

    @property
    def base(self) -> EngineClient:
        return self._base

    @property
    def replicas(self) -> Sequence[ReplicaState]:
        return self._base.replicas

    @property
    def info(self) -> EngineInfo | None:
        info = self._base.info
        return None if info is None else _of(info, self._name)

    @property
    def stats(self) -> Stats:
        return self._base.stats

    @property
    def voices(self) -> tuple[tuple[str, int], ...]:
        return self._base.voices

    @property
    def failure(self) -> str | None:
        return self._base.failure

    @property
    def state(self) -> EngineState:
        return self._base.state

    @property
    def accepts(self) -> bool:
        return self._base.accepts

    @property
    def open_requests(self) -> int:
        return self._base.open_requests

    async def start(self) -> None:
        """Do nothing: the server starts the base."""

    def drain(self) -> None:
        """Do nothing: the server drains the base."""

    async def stop(self) -> None:
        """Do nothing: the server stops the base."""

    def admit(self) -> EngineInfo:
        return _of(self._base.admit(), self._name)

    def check_room(self) -> EngineInfo:
        return _of(self._base.check_room(), self._name)

    def reserve(self) -> AbstractContextManager[None]:
        return self._base.reserve()

    def submit(self, request: SpeechRequest) -> asyncio.Queue[Event]:
        return self._base.submit(attrs.evolve(request, adapter=self._name))

    def more_text(self, request_id: str, text: str, end: bool) -> None:
        self._base.more_text(request_id, text, end)

    def abort(self, request_id: str) -> None:
        self._base.abort(request_id)

    def forget_soon(self, conversation: str) -> None:
        self._base.forget_soon(conversation)

    async def forget(self, conversation: str) -> bool:
        return await self._base.forget(conversation)

    async def add_voice(self, name: str, speaker: int, segments: tuple[Segment, ...]) -> None:
        await self._base.add_voice(name, speaker, segments)

    async def remove_voice(self, name: str) -> bool:
        return await self._base.remove_voice(name)


def _of(info: EngineInfo, adapter: str) -> EngineInfo:
    return attrs.evolve(info, model=adapter, base=info.model)
