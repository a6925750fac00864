"""Several workers with one queue: which one speaks a request, and what happens if one dies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest

from tests.conftest import TONE
from tests.workers.test_client import events_of
from vox_serve.config import EngineConfig, ServerConfig
from vox_serve.errors import Conflict, QueueFull, Unavailable
from vox_serve.messages import Audio, Failed, Finished, Said, SpeechRequest
from vox_serve.metrics import Metrics
from vox_serve.workers import life
from vox_serve.workers.client import WorkerClient
from vox_serve.workers.interface import EngineState, VoiceTaker

PAIR = attrs.evolve(TONE, replicas=2, max_batch_size=2)
LONG = {"text": "150 frames", "max_seconds": 12}


@asynccontextmanager
async def running(engine: EngineConfig = PAIR, **server: Any) -> AsyncIterator[WorkerClient]:
    client = WorkerClient(engine, ServerConfig(**server), Metrics("tone"), in_thread=True)
    await client.start()
    try:
        await client.wait_ready()
        yield client
    finally:
        await client.stop()


def free_slots(client: WorkerClient) -> list[int]:
    """Free slots of each replica."""
    return [replica.free for replica in client.replicas]


@pytest.fixture(autouse=True)
def _slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TONE_DELAY", "0.01")
    monkeypatch.setattr(life, "FIRST_DELAY", 0.02)


def test_each_replica_of_each_device_is_a_worker() -> None:
    two = EngineConfig(device="cuda:0, cuda:1", replicas=2)
    assert [w.device for w in two.workers()] == ["cuda:0", "cuda:0", "cuda:1", "cuda:1"]


def test_requests_spread_and_wait_in_one_queue() -> None:
    async def main() -> None:
        async with running(max_queue=2) as client:
            assert client.info.num_slots == 4
            for name in "abc":
                client.submit(SpeechRequest(name, **LONG))
            assert sorted(free_slots(client)) == [0, 1]
            first = client.submit(SpeechRequest("d", "5 frames"))
            waiting = [client.submit(SpeechRequest(name, "5 frames")) for name in "ef"]
            assert free_slots(client) == [0, 0]
            with pytest.raises(QueueFull, match="4 requests are being spoken and 2 wait"):
                client.submit(SpeechRequest("g", "5 frames"))
            client.abort("e")
            for queue in (first, waiting[1]):
                assert isinstance((await events_of(queue))[-1], Finished)
            assert waiting[0].empty()
            assert client.open_requests == 3

    asyncio.run(asyncio.wait_for(main(), 20))


def test_it_is_ready_when_all_replicas_have_their_voices() -> None:
    async def main() -> None:
        client = WorkerClient(PAIR, ServerConfig(), Metrics("tone"), in_thread=True)
        there = asyncio.Event()

        async def prepare(taker: VoiceTaker) -> None:
            if taker is client.replicas[1]:
                await there.wait()

        client.before_ready = prepare
        await client.start()
        while client.replicas[1].info is None or client.replicas[0].state is not EngineState.READY:
            await asyncio.sleep(0.01)
        assert client.state is EngineState.STARTING
        there.set()
        await client.wait_ready()
        assert client.info.num_slots == 4
        await client.stop()

    asyncio.run(asyncio.wait_for(main(), 20))


@pytest.mark.parametrize("reads", [True, False])
def test_a_slot_is_kept_between_two_parts_of_a_text(reads: bool) -> None:
    """A waiting request goes to the other replica, unless the next part comes too late."""

    async def main() -> None:
        async with running(attrs.evolve(PAIR, max_batch_size=1)) as client:
            part = SpeechRequest("a", "3 frames", conversation="~a", more=True)
            events = client.submit(part)
            other = client.submit(SpeechRequest("b", "20 frames"))
            waiting = client.submit(SpeechRequest("c", "5 frames"))
            (*_, said) = await events_of(events)
            assert said.more
            first, second = client.replicas
            assert (first.free, second.free) == (0, 0)
            if reads:
                client.submit(attrs.evolve(part, text="150 frames", max_seconds=12, continues=True))
                assert isinstance((await events_of(other))[-1], Finished)
            assert isinstance((await events_of(waiting))[-1], Finished)
            assert first.free == (0 if reads else 1)
            client.abort("a")
            assert first.free == 1

    asyncio.run(asyncio.wait_for(main(), 20))


def test_a_conversation_returns_to_its_replica_and_moves_when_that_is_full() -> None:
    async def main() -> None:
        async with running() as client:

            async def turn(number: int) -> Finished | Failed:
                request = SpeechRequest(f"turn {number}", "5 frames", conversation="talk")
                events = client.submit(request)
                with pytest.raises(Conflict):
                    client.submit(attrs.evolve(request, id="other"))
                return (await events_of(events))[-1]

            client.submit(SpeechRequest("a", **LONG))
            await turn(1)
            talk = client._conversations.begin("talk")
            client._conversations.end(talk)
            assert talk.home == 1
            client.abort("a")
            await turn(2)
            assert talk.home == 1, "it moved to the replica with more free slots"
            before = await prompt_positions(client)
            for name in "bcd":  # both slots of its home, and one of the other replica
                client.submit(SpeechRequest(name, **LONG))
            assert sorted(free_slots(client)) == [0, 1]
            filler = next(n for n, free in enumerate(free_slots(client)) if free == 0)
            if filler == 0:  # make its home the full replica
                client.submit(SpeechRequest("e", **LONG))
                client.abort("b")
            await turn(3)
            assert len(talk.turns) == 3
            assert await prompt_positions(client) > before, (
                "the other replica does not know the turns"
            )

    asyncio.run(asyncio.wait_for(main(), 20))


async def prompt_positions(client: WorkerClient) -> float:
    """The number of prompt positions so far, computed or restored."""
    return sum(
        replica.metrics.prompt_positions_total(source)._value.get()
        for replica in client.replicas
        for source in ("prefilled", "restored")
    )


def test_a_voice_prefers_the_replica_that_has_its_prefix() -> None:
    async def main() -> None:
        async with running(attrs.evolve(PAIR, max_batch_size=8)) as client:
            await client.add_voice("ann", 0, ())
            assert all(("ann", 0) in replica.voices for replica in client.replicas)
            client.submit(SpeechRequest("a", **LONG))
            await events_of(client.submit(SpeechRequest("b", "5 frames", voice="ann")))
            client.abort("a")
            for name in "cde":
                client.submit(SpeechRequest(name, voice="ann", **LONG))
            assert free_slots(client) == [7, 6] or free_slots(client) == [8, 5], free_slots(client)

    asyncio.run(asyncio.wait_for(main(), 20))


def test_a_voice_is_listed_though_no_replica_that_has_it_is_loaded() -> None:
    async def main() -> None:
        async with running() as client:
            first, second = client.replicas
            first.worker._unload()
            await client.add_voice("ann", 0, ())
            second.worker._unload()
            assert client.state is EngineState.UNLOADED
            for replica in (first, second):
                assert ("ann", 0) in replica.voices
            assert await client.remove_voice("ann")
            assert all(("ann", 0) not in replica.voices for replica in (first, second))

    asyncio.run(asyncio.wait_for(main(), 20))


@pytest.mark.parametrize("restart", [True, False])
def test_a_replica_that_dies_fails_only_its_own_requests(restart: bool) -> None:
    async def main() -> None:
        how = "restart" if restart else "exit"
        async with running(on_worker_death=how) as client:
            queues = {n: client.submit(SpeechRequest(n, "60 frames")) for n in "abcd"}
            waiting = client.submit(SpeechRequest("e", "5 frames"))
            dying = client.replicas[0]
            mine = set(dying._speaking)
            assert len(mine) == 2
            dying.worker._lost("it fell over")
            assert client.state is EngineState.READY
            for name, queue in queues.items():
                last = (await events_of(queue))[-1]
                assert isinstance(last, Failed if name in mine else Finished)
                if isinstance(last, Failed):
                    assert isinstance(last.error, Unavailable)
            assert isinstance((await events_of(waiting))[-1], Finished)
            if restart:
                while dying.state is not EngineState.READY:
                    await asyncio.sleep(0.01)
                assert client.info.num_slots == 4
            else:
                assert dying.state is EngineState.DEAD
                assert client.info.num_slots == 2
                client.replicas[1].worker._lost("it too")
                assert client.state is EngineState.DEAD

    asyncio.run(asyncio.wait_for(main(), 20))


def test_a_replica_that_cannot_be_loaded_is_refused_at_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        engine = attrs.evolve(PAIR, device="cpu,nothing", replicas=1)
        with pytest.raises(Unavailable, match="'nothing' is not a torch device"):
            async with running(engine):
                pass

    asyncio.run(asyncio.wait_for(main(), 20))


def test_waiting_requests_get_the_reason_why_the_engine_is_down() -> None:
    async def main() -> None:
        async with running(on_worker_death="exit") as client:
            for name in "abcd":
                client.submit(SpeechRequest(name, **LONG))
            waiting = client.submit(SpeechRequest("e", "5 frames"))
            for replica in client.replicas:
                replica.worker.die("the engine worker ended with exit code 1")
            (failed,) = await events_of(waiting)
            assert failed.error.message == (
                "the engine is down: the engine worker ended with exit code 1"
            )

    asyncio.run(asyncio.wait_for(main(), 20))


def test_a_turn_may_follow_turns_that_another_server_keeps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TONE_HEARS", "1")

    async def main() -> None:
        async with running() as client, running() as other:

            async def speak(one: WorkerClient, request: SpeechRequest) -> tuple[Said, bytes]:
                events = await events_of(one.submit(request))
                (said,) = [event for event in events if isinstance(event, Said)]
                return said, b"".join(event.pcm for event in events if isinstance(event, Audio))

            request = SpeechRequest("a", "5 frames", conversation="talk", turns=())
            said, first = await speak(client, request)
            assert len(client._conversations) == 0
            again = attrs.evolve(request, id="b", turns=said.segments)
            for one in (client, other):
                said, second = await speak(one, again)
                assert said.kept == 1
                assert second != first, "the earlier turn had no effect"

    asyncio.run(asyncio.wait_for(main(), 20))
