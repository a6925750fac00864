"""Promises about a server that gets a signal, and a worker that dies or hangs."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import httpx

from tests.launched import REPLICAS, Launched, Start
from tests.reliability.client import Answer, Connection, ask, request
from tests.reliability.conftest import Promises, series
from tests.waiting import until

SHUTDOWN, STALL = 2.0, 1.5
LONG = {"text": "150 frames", "max_seconds": 12, "streaming": True, "format": "pcm"}


async def terminate(server: Launched) -> tuple[float, Answer, Answer]:
    """Send SIGTERM during a short stream, a long one and one that is never read.

    Returns the time of the signal, and the short and the long answer.
    """
    async with (
        Connection(server) as short,
        Connection(server) as long,
        Connection(server, 4096) as unread,
        Connection(server) as late,
    ):
        for client in (long, unread):
            client.send(request(**LONG))
        short.send(request(**{**LONG, "text": "12 frames"}))
        assert (await unread.head()).status == 200
        began = time.monotonic()
        os.killpg(server.process.pid, signal.SIGTERM)
        while "Shutting down" not in server.read_log():
            await asyncio.sleep(0.01)
        late.send(request(text="5 frames"))
        try:
            refused = (await late.head()).status == 503
        except (asyncio.IncompleteReadError, ConnectionError):
            refused = True
        assert refused, "a new request was accepted"
        return began, await short.answer(), await long.answer()


def sigterm(start: Start, promises: Promises) -> None:
    server = start(
        "--shutdown-timeout", f"{SHUTDOWN:g}", TONE_DELAY="0.05", TONE_FRAME_SIZE="64000"
    )
    began, short, long = asyncio.run(terminate(server))
    whole = 12 * 2 * 64_000
    assert not short.cut, "the short stream was cut"
    assert long.cut, "the long stream was not cut"
    left = max(0.1, began + SHUTDOWN + 3 - time.monotonic())
    code = server.end(left)
    seconds = time.monotonic() - began
    sound = f"{len(short.body)} bytes"
    promises.note("SIGTERM", "the short stream", f"{whole} bytes", sound)
    promises.note("SIGTERM", "the long stream, without final chunk", "cut", "cut")
    promises.note("SIGTERM", "exit code; processes left", "0; 0", f"{code}; 0")
    promises.note("SIGTERM", "exit, beside a client that never reads", f"{SHUTDOWN + 2:g} s",
                  f"{seconds:.1f} s")  # fmt: skip
    assert (code, len(short.body)) == (0, whole)
    assert seconds < SHUTDOWN + 2


async def signalled(server: Launched, number: signal.Signals, limit: float) -> tuple[float, float]:
    """Signal all workers in a stream; returns seconds until it is cut and /health is 503."""
    async with Connection(server) as client:
        client.send(request(**LONG))
        answer = await client.head()
        assert answer.status == 200
        began = time.monotonic()
        server.signal_workers(number)

        async def cut() -> float:
            assert (await client.body(answer)).cut
            return time.monotonic() - began

        async def reported() -> float:
            async with httpx.AsyncClient(base_url=server.http.base_url) as http:
                while (await http.get("/health")).status_code != 503:
                    await asyncio.sleep(0.02)
            return time.monotonic() - began

        try:
            async with asyncio.timeout(limit + 1):
                return await asyncio.gather(cut(), reported())
        except TimeoutError:
            raise AssertionError(f"nothing was noticed within {limit + 1:g} s") from None


def killed(start: Start, promises: Promises) -> None:
    server = start(TONE_DELAY="0.02")
    cut, reported = asyncio.run(signalled(server, signal.SIGKILL, 0))
    server.http.close()
    code = server.end(10)
    promises.note("worker killed", "its stream is cut after", "1 s", f"{cut:.2f} s")
    promises.note("worker killed", "/health is 503 after", "1 s", f"{reported:.2f} s")
    promises.note("worker killed", "exit code; processes left", "1; 0", f"{code}; 0")
    assert code == 1


def hung(start: Start, promises: Promises) -> None:
    server = start(
        "--stall-timeout", f"{STALL:g}", "--on-worker-death", "restart", TONE_DELAY="0.02"
    )
    cut, reported = asyncio.run(signalled(server, signal.SIGSTOP, STALL))
    until(lambda: server.http.get("/ready").status_code == 200, 30)
    answer = asyncio.run(ask(server, text="5 frames"))
    limit = f"{STALL:g} + 1 s"
    promises.note("worker hung", "its stream is cut after", limit, f"{cut:.2f} s")
    promises.note("worker hung", "/health is 503 after", limit, f"{reported:.2f} s")
    promises.note("worker hung", "restarted, and speaks", 200, answer.status)
    assert answer.status == 200
    assert series(server, "engine_errors_total", kind="hang") == REPLICAS
