"""When requests begin: at random times whatever the server does, or when earlier ones end."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from itertools import cycle
from typing import Any

from vox_serve.bench.config import BenchConfig
from vox_serve.bench.recording import Outcome, Recording, Run
from vox_serve.errors import ConfigError

TICK = 0.05
"""How often the client checks whether its own event loop is late, in seconds."""
PAUSE = 1.0
"""How long a client of a closed loop waits after a refusal or failure, in seconds."""

Speak = Callable[[Recording], Coroutine[Any, Any, None]]
Clock = Callable[[], float]


def arrivals(rate: float, seed: int, duration: float, requests: int | None) -> list[float]:
    """Times of a Poisson process in seconds, ascending: `requests` of them, or up to `duration`.

    They depend only on rate and seed, not on which other rates are run.
    """
    draws = random.Random(f"{seed} {rate:g}")
    times: list[float] = []
    at = draws.expovariate(rate)
    while len(times) < requests if requests is not None else at < duration:
        times.append(at)
        at += draws.expovariate(rate)
    return times


def plan(config: BenchConfig) -> list[Run]:
    """A run, not yet begun, for each rate or number of clients.

    Raises:
        ConfigError: a rate gives no request within the duration.
    """
    if config.concurrency:
        return [Run(count, []) for count in config.concurrency]
    runs = []
    for rate in config.rate:
        times = arrivals(rate, config.seed, config.seconds, config.requests)
        if not times:
            raise ConfigError(
                f"duration: rate {rate:g} gives no request in {config.seconds:g} s; raise it"
            )
        runs.append(Run(rate, times))
    return runs


async def execute(
    run: Run, config: BenchConfig, texts: Sequence[str], speak: Speak, clock: Clock
) -> None:
    """Do one run; if this is cancelled, `run` holds what was recorded so far."""
    run.began = clock()
    try:
        async with watched(run, clock):
            if config.concurrency:
                await closed_loop(run, config, texts, speak, clock)
            else:
                await open_loop(run, texts, speak, clock)
    finally:
        run.ended = clock()


async def open_loop(run: Run, texts: Sequence[str], speak: Speak, clock: Clock) -> None:
    """Send each request when it is due, whether or not earlier ones have ended."""
    async with asyncio.TaskGroup() as requests:
        for text, arrival in zip(cycle(texts), run.arrivals, strict=False):
            due = run.began + arrival
            await asyncio.sleep(due - clock())
            requests.create_task(speak(run.record(text, due)))


async def closed_loop(
    run: Run, config: BenchConfig, texts: Sequence[str], speak: Speak, clock: Clock
) -> None:
    """Clients that ask, listen to the end, and ask again."""
    queue = cycle(texts)

    def more() -> bool:
        if config.requests is not None:
            return len(run.recordings) < config.requests
        return clock() < run.began + config.seconds

    async def client() -> None:
        while more():
            recording = run.record(next(queue), clock())
            await speak(recording)
            if recording.outcome is not Outcome.OK and more():
                await asyncio.sleep(PAUSE)

    async with asyncio.TaskGroup() as clients:
        for _ in range(int(run.load)):
            clients.create_task(client())


@asynccontextmanager
async def watched(run: Run, clock: Clock) -> AsyncIterator[None]:
    """Record how late the event loop wakes a task: that much delay may be the client's fault."""

    async def watch() -> None:
        while True:
            due = clock() + TICK
            await asyncio.sleep(TICK)
            run.stall = max(run.stall, clock() - due)

    task = asyncio.create_task(watch())
    try:
        yield
    finally:
        task.cancel()
