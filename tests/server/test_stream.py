"""The time limit of a stream, which players read at the speed of playback."""

from __future__ import annotations

import asyncio

import pytest

from tests.conftest import TONE
from vox_serve.config import ServerConfig
from vox_serve.engine.engine import Engine
from vox_serve.errors import TimedOut
from vox_serve.messages import Audio, Event, Finished, FinishReason, SpeechRequest
from vox_serve.metrics import Metrics
from vox_serve.server import stream
from vox_serve.server.account import Account
from vox_serve.server.stream import AudioStream
from vox_serve.workers.client import WorkerClient

REQUEST = SpeechRequest("a", "20 frames")
FRAME = Audio("a", bytes(1280))


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> WorkerClient:
    """A client whose engine has already spoken 20 frames, with a request timeout of 0.2 s."""
    events: asyncio.Queue[Event] = asyncio.Queue()
    for _ in range(20):
        events.put_nowait(FRAME)
    events.put_nowait(Finished("a", FinishReason.STOP, 20, 0))
    made = WorkerClient(TONE, ServerConfig(request_timeout=0.2), Metrics("tone"))
    monkeypatch.setattr(made, "submit", lambda request: events)
    monkeypatch.setattr(stream, "PIECE_SECONDS", 0.08)
    return made


async def read(client: WorkerClient, engine: Engine, mode: str, pause: float) -> int:
    """Read with a pause after each piece; returns the number of frames."""
    info = engine.info("tone", "tone", 0.0)
    audio = AudioStream(client, info, REQUEST, Account("a", client.metrics, mode))
    read = 0
    while (pcm := await audio.next()) is not None:
        assert len(pcm) == 1280
        read += 1
        await asyncio.sleep(pause)
    return read


def test_a_player_may_take_as_long_as_it_plays(client: WorkerClient, tone_engine: Engine) -> None:
    assert asyncio.run(read(client, tone_engine, "stream", 0.05)) == 20


@pytest.mark.parametrize(("mode", "pause"), [("stream", 0.15), ("whole", 0.05)])
def test_a_client_that_falls_behind_is_cut(
    client: WorkerClient, tone_engine: Engine, mode: str, pause: float
) -> None:
    with pytest.raises(TimedOut, match=r"longer than 0\.2 seconds"):
        asyncio.run(read(client, tone_engine, mode, pause))


def test_a_request_that_the_stopping_server_cancels_is_an_error(
    client: WorkerClient, tone_engine: Engine
) -> None:
    """uvicorn cancels what still runs when its timeout for stopping is over."""
    account = Account("a", client.metrics, "whole")

    async def cancelled() -> None:
        audio = AudioStream(client, tone_engine.info("tone", "tone", 0.0), REQUEST, account)
        audio.close(asyncio.CancelledError())

    asyncio.run(cancelled())
    assert account.outcome == "error"
