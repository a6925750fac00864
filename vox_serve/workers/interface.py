"""The server's interface to an engine: its states, and the calls that routes make.

`client.WorkerClient` implements it with worker processes.  Other implementations may run
workers on other machines; routes cannot tell the difference.  `adapter.AdapterClient` is a view of
another client.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from enum import Enum
from typing import Protocol

from vox_serve.config import ServerConfig
from vox_serve.messages import EngineInfo, Event, SpeechRequest, Stats
from vox_serve.metrics import Metrics
from vox_serve.text import FrontEnd
from vox_serve.voice import Segment
from vox_serve.workers.reading import TextReader
from vox_serve.workers.sound import Postprocessing


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


class VoiceTaker(Protocol):
    """A loaded engine that must get its stored voices before it is ready."""

    @property
    def model(self) -> str:
        """The name by which requests choose it."""

    @property
    def info(self) -> EngineInfo | None:
        """What was loaded."""

    async def add_voice(self, name: str, speaker: int, segments: tuple[Segment, ...]) -> None:
        """Like `EngineClient.add_voice`."""


class ReplicaState(Protocol):
    """One of the workers that serve a model, as shown by /health."""

    @property
    def number(self) -> int:
        """Its number, from 0."""

    @property
    def info(self) -> EngineInfo | None:
        """The loaded model; None before it was first loaded."""

    @property
    def stats(self) -> Stats:
        """Its last report."""

    @property
    def state(self) -> EngineState:
        """Its own state."""

    @property
    def failure(self) -> str | None:
        """Why it ended, until it is ready again."""


class EngineClient(Protocol):
    """One model, as the server's event loop sees it.  All calls are made in that loop."""

    server: ServerConfig
    metrics: Metrics
    front_end: FrontEnd
    """Normalizes a text before it is cut and spoken."""
    reader: TextReader
    """Does this outside the event loop's process."""
    postprocessing: Postprocessing | None
    """What is done to all sound before it is encoded."""
    on_change: Callable[[EngineClient], None]
    """Called when the state changes."""
    before_ready: Callable[[VoiceTaker], Awaitable[None]] | None
    """Awaited once a worker has loaded; it gets requests after this returns."""

    @property
    def model(self) -> str:
        """The name by which requests choose it."""

    @property
    def base(self) -> EngineClient:
        """The client that owns engine, voices and conversations: itself, or an adapter's base."""

    @property
    def replicas(self) -> Sequence[ReplicaState]:
        """The workers that serve it."""

    @property
    def info(self) -> EngineInfo | None:
        """The loaded model, with the slots of all workers; None before it was first loaded."""

    @property
    def stats(self) -> Stats:
        """The engine's last report."""

    @property
    def voices(self) -> tuple[tuple[str, int], ...]:
        """Names and speakers that a request may ask for."""

    @property
    def failure(self) -> str | None:
        """Why the worker ended, until it is ready again."""

    @property
    def state(self) -> EngineState:
        """The state, which changes only in the event loop."""

    @property
    def accepts(self) -> bool:
        """Whether requests are accepted."""

    @property
    def open_requests(self) -> int:
        """Requests that have been submitted, and voices being added, that have not ended."""

    async def start(self) -> None:
        """Start the engine; returns at once, while the model is still loading."""

    def drain(self) -> None:
        """Accept no more requests; open ones continue."""

    async def stop(self) -> None:
        """End the engine, gently first; open requests fail."""

    def admit(self) -> EngineInfo:
        """The model, if requests are accepted.  Raises Unavailable if they are not."""

    def check_room(self) -> EngineInfo:
        """The model, if one more request is accepted.

        Raises:
            Unavailable: starting, restarting, draining or dead.
            QueueFull: all slots are taken and the queue is full.
        """

    def reserve(self) -> AbstractContextManager[None]:
        """Reserve a place in the queue while a request is being prepared.

        Raises:
            Unavailable, QueueFull: like `check_room`.
        """

    def submit(self, request: SpeechRequest) -> asyncio.Queue[Event]:
        """Send a request; its events come out of the queue, a Finished or Failed last.

        The next part of a text has the same id and the same queue.  A request that continues
        speech in progress is accepted even if the queue is full or the server is draining.  A
        request for an unloaded model loads it, and waits until it is ready.

        A request with `turns` belongs to a conversation that another server keeps; its `Said` also
        comes out of the queue.

        Raises:
            Unavailable, QueueFull: as `check_room`.
            Conflict: a turn of its conversation is being spoken.
        """

    def more_text(self, request_id: str, text: str, end: bool) -> None:
        """Add to the text of a request that waits for it; ignored if the request has ended.

        Args:
            end: no more follows.
        """

    def abort(self, request_id: str) -> None:
        """End a request whose client left: no more events, and its slot is freed."""

    def forget_soon(self, conversation: str) -> None:
        """Drop a conversation without waiting for it; unknown ones are ignored."""

    async def forget(self, conversation: str) -> bool:
        """Drop a conversation; False if there is none."""

    async def add_voice(self, name: str, speaker: int, segments: tuple[Segment, ...]) -> None:
        """Add a voice to the model, replacing one of the same name.

        May be called in `before_ready`.

        Raises:
            RequestError: the model cannot take the voice, or the engine is unavailable.
        """

    async def remove_voice(self, name: str) -> bool:
        """Forget a voice; False if there is none.  Raises Unavailable."""
