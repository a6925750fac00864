"""Promises about many clients: too many, some that leave, some that do not read or send."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import AsyncExitStack

from tests.launched import REPLICAS, Launched, Start
from tests.reliability.client import Answer, Connection, ask, request
from tests.reliability.conftest import Promises, series
from tests.reliability.resources import MIB, held

SLOTS, QUEUE, SURPLUS = 4, 8, 50
STREAMS, WHOLES = 200, 50
READERS = 20
FRAME_BYTES = 2 * 640


async def burst(server: Launched, count: int) -> list[Answer]:
    """Send this many requests at once over open connections; every other one streams."""
    async with AsyncExitStack() as stack:
        crowd = [await stack.enter_async_context(Connection(server)) for _ in range(count)]
        for number, client in enumerate(crowd):
            client.send(request(text="40 frames", streaming=number % 2 == 0, format="pcm"))
        return list(await asyncio.gather(*(client.answer() for client in crowd)))


def overload(start: Start, promises: Promises) -> None:
    server = start(
        "--max-batch-size", str(SLOTS), "--max-queue", str(QUEUE), "--log-level", "warning",
        TONE_DELAY="0.02",
    )  # fmt: skip
    alone = server.http.post("/generate", json={"text": "40 frames", "format": "pcm"}).content
    times, fit = [], SLOTS * REPLICAS + QUEUE
    for _ in range(3):  # the fastest burst counts, because other processes interfere
        answers = asyncio.run(burst(server, fit + SURPLUS))
        refused = [answer for answer in answers if answer.status == 429]
        assert len(refused) == SURPLUS, f"{len(refused)} were refused"
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
        others = [answer for answer in answers if answer.status != 429]
        assert all(answer.status == 200 and answer.body == alone for answer in others)
        times.append(max(answer.seconds for answer in refused))
    promises.note("overload", "refused, each with Retry-After", SURPLUS, len(refused))
    promises.note("overload", "others, complete", fit, len(others))
    promises.note("overload", "slowest refusal", "0.05 s", f"{min(times):.3f} s")
    assert min(times) < 0.05, f"a refusal took {min(times):.3f} s"


async def leave(server: Launched, seed: int) -> None:
    """Leave streams after some chunks, and whole answers before their first byte."""
    chance = random.Random(seed)

    async def stream() -> None:
        async with Connection(server) as client:
            client.send(request(text="150 frames", max_seconds=12, streaming=True))
            assert (await client.head()).status == 200
            left = chance.randint(1, 6)
            async for _ in client.chunks():
                left -= 1
                if not left:
                    return

    async def whole() -> None:
        async with Connection(server) as client:
            client.send(request(text="150 frames", max_seconds=12))
            await asyncio.sleep(chance.uniform(0.1, 0.6))

    await asyncio.gather(*(stream() for _ in range(STREAMS)), *(whole() for _ in range(WHOLES)))


def a_client_leaves(start: Start, promises: Promises) -> None:
    server = start(
        "--max-batch-size", f"{32 // REPLICAS}", "--max-queue", "300", "--log-level", "warning",
        TONE_DELAY="0.02",
    )  # fmt: skip
    asyncio.run(leave(server, 0))
    left = time.monotonic()
    gauges = ("requests_running", "requests_waiting", "slots_used")
    while any(series(server, name) for name in gauges):
        assert time.monotonic() < left + 1, "slots are not free after 1 s"
        time.sleep(0.01)
    promises.note(
        "a client leaves", "slots, queue, gauges at 0 after", "1 s",
        f"{time.monotonic() - left:.2f} s",
    )  # fmt: skip
    cancelled = series(server, "requests_total", outcome="cancelled")
    promises.note("a client leaves", "counted as cancelled", STREAMS + WHOLES, f"{cancelled:g}")
    assert cancelled == STREAMS + WHOLES


async def beside(server: Launched, reading: bool) -> tuple[Answer, float, float]:
    """A stream beside READERS others, which may not read; the server's growth; its size in MiB."""
    body = {"text": "150 frames", "max_seconds": 12, "streaming": True, "format": "pcm"}
    before, most = held(server.process.pid).memory, 0
    async with AsyncExitStack() as stack:
        crowd = [await stack.enter_async_context(Connection(server, 4096)) for _ in range(READERS)]
        for client in crowd:
            client.send(request(**body))
        others = [asyncio.create_task(client.answer()) for client in crowd if reading]
        mine = asyncio.create_task(ask(server, **body))
        while not mine.done():
            most = max(most, held(server.process.pid).memory)
            await asyncio.sleep(0.1)
        answers = await asyncio.gather(*others)
        assert all(len(answer.body) == len(mine.result().body) for answer in answers)
        began = time.monotonic()
        if not reading:
            while (dropped := series(server, "client_disconnects_total")) < READERS:
                late = time.monotonic() > began + 5
                assert not late, f"{dropped:g} of {READERS} were dropped by the send timeout"
                await asyncio.sleep(0.1)
    return mine.result(), (most - before) / MIB, len(mine.result().body) / MIB


def slow_reader(start: Start, promises: Promises) -> None:
    server = start(
        "--max-batch-size", "32", "--send-timeout", "2", "--log-level", "warning",
        TONE_DELAY="0.02", TONE_FRAME_SIZE="32000",
    )  # fmt: skip
    usual, _, _ = asyncio.run(beside(server, True))
    slow, grown, audio = asyncio.run(beside(server, False))
    assert len(slow.body) == len(usual.body)
    name = "slow reader"
    promises.note(name, f"{READERS} clients dropped", READERS, READERS)
    promises.note(name, "memory meanwhile", f"{READERS * audio:.0f} MiB", f"{grown:.0f} MiB")
    promises.note(name, "longest gap of another stream, baseline", "", f"{max(usual.gaps):.3f} s")
    promises.note(
        name, "the same beside clients that do not read", "+ 0.1 s", f"{max(slow.gaps):.3f} s"
    )
    assert grown < READERS * audio
    assert max(slow.gaps) < max(usual.gaps) + 0.1


READ_TIMEOUT, GRACE = 1.0, 1.0
HEAD = b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
BEGINNINGS = (b"", b"POST /gen", HEAD, HEAD + b'Content-Length: 99\r\n\r\n{"text"')


async def besiege(server: Launched) -> tuple[list[float], list[Answer]]:
    """Seconds until 80 connections that send too little are closed, and other answers meanwhile."""

    async def wait(start: bytes) -> float:
        async with Connection(server) as client:
            client.send(start)
            return await client.closed()

    waiting = [asyncio.create_task(wait(start)) for start in BEGINNINGS * READERS]
    answers = []
    began = time.monotonic()
    while not all(one.done() for one in waiting):
        answers.append(await ask(server, text="5 frames"))
        assert time.monotonic() < began + 5, "connections stay open"
    return [one.result() for one in waiting], answers


def slow_sender(start: Start, promises: Promises) -> None:
    server = start("--read-timeout", f"{READ_TIMEOUT:g}", "--log-level", "warning")
    times, answers = asyncio.run(besiege(server))
    slowest = max(answer.seconds for answer in answers)
    name = "slow headers, slow body, silence"
    limit = READ_TIMEOUT + GRACE
    promises.note(name, f"{len(times)} connections closed after", f"{limit:g} s",
                  f"{min(times):.2f} to {max(times):.2f} s")  # fmt: skip
    promises.note(name, f"{len(answers)} other requests, the slowest", "", f"{slowest:.3f} s")
    assert all(answer.status == 200 for answer in answers)
    assert max(times) < limit + 0.5
