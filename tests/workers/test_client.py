"""WorkerClient: admission, routing of events to requests, and the end of a worker."""

from __future__ import annotations

import asyncio
import pickle
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import numpy as np
import pytest

from tests import tone
from tests.conftest import TONE
from vox_serve.config import EngineConfig, ServerConfig
from vox_serve.engine.prompts import Prompts
from vox_serve.errors import QueueFull, RequestError, SequenceFailed, Unavailable, UnspeakableText
from vox_serve.messages import (
    LONG_TEXT_CHARACTERS,
    Audio,
    Event,
    Failed,
    Finished,
    FinishReason,
    SpeechRequest,
    Started,
    StepOutput,
)
from vox_serve.metrics import Metrics
from vox_serve.voice import Segment
from vox_serve.workers import worker
from vox_serve.workers.client import WorkerClient
from vox_serve.workers.interface import EngineState


@asynccontextmanager
async def started(engine: EngineConfig = TONE, **server: float) -> AsyncIterator[WorkerClient]:
    client = WorkerClient(engine, ServerConfig(**server), Metrics("tone"), in_thread=True)
    await client.start()
    try:
        yield client
    finally:
        await client.stop()


async def events_of(queue: asyncio.Queue[Event]) -> list[Event]:
    """All events up to the last one."""
    events = [await queue.get()]
    while not isinstance(events[-1], Finished | Failed):
        events.append(await queue.get())
    return events


def test_events_reach_their_request() -> None:
    async def main() -> None:
        async with started() as client:
            await client.wait_ready()
            texts = {"a": "3 frames", "b": "7 frames", "c": "0 frames"}
            queues = {i: client.submit(SpeechRequest(i, text)) for i, text in texts.items()}
            assert client.open_requests == 3
            for request_id, frames in {"a": 3, "b": 7, "c": 0}.items():
                events = await events_of(queues[request_id])
                assert {event.request_id for event in events} == {request_id}
                kinds = [type(event) for event in events]
                sounds = len(kinds) - 2  # an event may have several frames
                assert kinds == [Started, *[Audio] * sounds, Finished]
                assert bool(sounds) == bool(frames)
                assert events[-1].reason is FinishReason.STOP
                assert events[-1].frames == frames
            assert client.open_requests == 0

    asyncio.run(main())


def test_changes_of_state_are_reported() -> None:
    seen = []

    async def main() -> None:
        client = WorkerClient(TONE, ServerConfig(), Metrics("tone"), in_thread=True)
        client.on_change = lambda changed: seen.append(changed.state)
        await client.start()
        assert client.state is EngineState.STARTING
        await client.wait_ready()
        client.drain()
        client.drain()
        await client.stop()

    asyncio.run(main())
    assert seen == [EngineState.READY, EngineState.DRAINING, EngineState.DEAD]


def test_requests_are_refused_before_loading_and_after_draining() -> None:
    async def main() -> None:
        async with started() as client:
            with pytest.raises(Unavailable, match="loading"):
                client.submit(SpeechRequest("a", "5"))
            await client.wait_ready()
            assert client.admit() is client.info
            client.drain()
            with pytest.raises(Unavailable, match="shutting down"):
                client.submit(SpeechRequest("a", "5"))
        with pytest.raises(Unavailable, match="engine is down"):
            client.submit(SpeechRequest("a", "5"))

    asyncio.run(main())


def test_the_queue_is_limited_and_abort_makes_room() -> None:
    async def main() -> None:
        engine = attrs.evolve(TONE, max_batch_size=1)
        async with started(engine, max_queue=2) as client:
            await client.wait_ready()
            for request_id in "abc":
                client.submit(SpeechRequest(request_id, "5"))
            with pytest.raises(QueueFull, match="1 requests are being spoken and 2 wait"):
                client.submit(SpeechRequest("d", "5"))
            client.abort("b")
            client.abort("b")
            client.abort("unknown")
            assert client.open_requests == 2
            await events_of(client.submit(SpeechRequest("d", "5")))

    asyncio.run(main())


@pytest.mark.parametrize(
    ("text", "error"), [("unspeakable", RequestError), ("unpromptable", SequenceFailed)]
)
def test_a_prompt_that_cannot_be_built_fails_alone(text: str, error: type[Exception]) -> None:
    async def main() -> None:
        async with started() as client:
            await client.wait_ready()
            bad = client.submit(SpeechRequest("bad", text))
            good = client.submit(SpeechRequest("good", "5 frames"))
            (failed,) = await events_of(bad)
            assert isinstance(failed, Failed)
            assert isinstance(failed.error, error)
            assert isinstance((await events_of(good))[-1], Finished)
            assert client.state is EngineState.READY

    asyncio.run(main())


def test_a_load_error_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TONE_LOAD_ERROR", "1")

    async def main() -> None:
        async with started() as client:
            with pytest.raises(Unavailable, match="out of tune"):
                await client.wait_ready()

    asyncio.run(main())


def test_a_worker_that_hangs_is_declared_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    emit = tone.ToneModel.emit

    def slow(self, hidden, sampler):
        if hidden[0, 0] > 90:
            time.sleep(2.0)
        return emit(self, hidden, sampler)

    monkeypatch.setattr(tone.ToneModel, "emit", slow)

    async def main() -> None:
        async with started(stall_timeout=0.6) as client:
            await client.wait_ready()
            await asyncio.sleep(
                0.8
            )  # longer than the limit, because an idle worker does not count as hung
            (failed,) = await events_of(client.submit(SpeechRequest("a", "99 frames")))
            assert isinstance(failed.error, Unavailable)
            assert client.state is EngineState.DEAD
            assert "the model's emit" in client.failure
            assert client.metrics.engine_errors_total("hang")._value.get() == 1

    asyncio.run(main())


class Unreadable(RequestError):
    """A plugin's own error, with a constructor that pickle cannot call."""

    def __init__(self) -> None:
        super().__init__("unreadable")


def test_an_unreadable_message_is_reported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def add(self, request):
        self._connection.send(StepOutput((Failed(request.id, Unreadable()),)))

    monkeypatch.setattr(worker.Worker, "_add", add)

    async def main() -> None:
        async with started() as client:
            await client.wait_ready()
            (failed,) = await events_of(client.submit(SpeechRequest("a", "5")))
            assert isinstance(failed.error, Unavailable)
            assert "cannot be read" in client.failure

    asyncio.run(main())
    assert "TypeError" in caplog.text


def test_a_plugins_own_error_is_sent_as_one_of_ours():
    class TooRude(UnspeakableText):
        def __init__(self) -> None:
            super().__init__("text is too rude", "text")

    plain = pickle.loads(pickle.dumps(TooRude().plain()))
    assert type(plain) is UnspeakableText
    assert (plain.message, plain.param, plain.code) == (
        "text is too rude",
        "text",
        "unspeakable_text",
    )


def test_other_requests_go_on_while_context_is_encoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Encoding does not return before a plain request has been spoken to its end."""
    release = threading.Event()
    encode = tone.ToneCodec.encode

    def slow(self, pcm):
        assert release.wait(10), "the plain request was held up"
        return encode(self, pcm)

    monkeypatch.setattr(tone.ToneCodec, "encode", slow)
    turn = Segment(0, "before", np.zeros(640, dtype=np.float32))

    async def main() -> None:
        async with started() as client:
            await client.wait_ready()
            slowly = client.submit(SpeechRequest("slow", "3", context=(turn,)))
            gone = client.submit(SpeechRequest("gone", "3", context=(turn,)))
            plain = await events_of(client.submit(SpeechRequest("plain", "4")))
            assert isinstance(plain[-1], Finished)
            client.abort("gone")
            release.set()
            assert isinstance((await events_of(slowly))[-1], Finished)
            after = await events_of(client.submit(SpeechRequest("gone", "2")))
            assert isinstance(after[-1], Finished)
            assert gone.empty()

    asyncio.run(main())


def test_other_requests_go_on_while_a_long_text_is_prepared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    release = threading.Event()
    prepare = Prompts.prepare

    def slow(self, request):
        if request.id == "long":
            assert release.wait(10), "the others were held up"
        return prepare(self, request)

    monkeypatch.setattr(Prompts, "prepare", slow)

    async def main() -> None:
        async with started() as client:
            await client.wait_ready()
            request = SpeechRequest("long", "2 hums.", following=("Some 3 hums.",) * 90)
            assert request.characters > LONG_TEXT_CHARACTERS
            long = client.submit(request)
            plain = await events_of(client.submit(SpeechRequest("plain", "4")))
            assert isinstance(plain[-1], Finished)
            release.set()
            assert isinstance(last := (await events_of(long))[-1], Finished)
            assert last.frames == 2, "later parts were spoken, too"

    asyncio.run(main())


def test_a_reserved_place_is_kept_and_released() -> None:
    async def main() -> None:
        async with started(attrs.evolve(TONE, max_batch_size=1), max_queue=0) as client:
            await client.wait_ready()
            with client.reserve():
                with pytest.raises(QueueFull):
                    client.submit(SpeechRequest("a", "1"))
                with pytest.raises(QueueFull), client.reserve():
                    pass
            with pytest.raises(ZeroDivisionError), client.reserve():
                raise ZeroDivisionError
            await events_of(client.submit(SpeechRequest("a", "1")))
            client.drain()
            with pytest.raises(Unavailable), client.reserve():
                pass

    asyncio.run(main())


def test_a_voice_is_listed_even_if_its_caller_did_not_wait() -> None:
    async def main() -> None:
        async with started() as client:
            await client.wait_ready()
            adding = asyncio.create_task(client.add_voice("ann", 0, ()))
            await asyncio.sleep(0)
            adding.cancel()
            while ("ann", 0) not in client.voices:
                await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(main(), 20))
