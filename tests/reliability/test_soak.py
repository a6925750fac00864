"""Memory, descriptors and threads do not grow with the number of requests."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable

import httpx

from tests.launched import Launched, Start
from tests.reliability.conftest import Promises
from tests.reliability.resources import MIB, Held, held

WARM_UP, REQUESTS, CLIENTS = 2000, 5000, 8
MOST_GROWTH = 5 * MIB


def settled(server: Launched) -> dict[str, Held]:
    """The resources of server and worker after the clients' connections are closed."""
    deadline = time.monotonic() + 10
    while server.http.get("/health").json()["models"][0]["running"]:
        assert time.monotonic() < deadline, "slots are not free"
        time.sleep(0.1)
    time.sleep(1)
    return {"server": held(server.process.pid), "worker": held(server.worker())}


async def load(url: str, count: int, seed: int) -> None:
    """Send `count` requests from `CLIENTS` clients; every other one stops after one chunk."""
    chance = random.Random(seed)
    left = iter(range(count))

    async def client() -> None:
        limits = httpx.Limits(max_connections=1)
        async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as http:
            for number in left:
                body = {"text": f"{chance.randint(1, 12)} frames", "streaming": True}
                async with http.stream("POST", "/generate", json=body) as response:
                    if response.status_code != 200:
                        raise AssertionError(await response.aread())
                    async for _ in response.aiter_raw():
                        if number % 2:
                            break

    await asyncio.gather(*(client() for _ in range(CLIENTS)))


def soak(
    server: Launched, requests: int, warm_up: int = WARM_UP
) -> tuple[dict[str, Held], dict[str, Held]]:
    url = str(server.http.base_url)
    asyncio.run(load(url, warm_up, 0))
    before = settled(server)
    asyncio.run(load(url, requests, 1))
    return before, settled(server)


def check(before: dict[str, Held], after: dict[str, Held]) -> None:
    for process, now in after.items():
        grown = now.memory - before[process].memory
        assert grown < MOST_GROWTH, f"the {process} grew by {grown / MIB:.1f} MiB"
    for process, now in after.items():
        assert now.descriptors == before[process].descriptors
        # asyncio's pool may not have had all its threads after the warm-up.
        assert now.threads <= before[process].threads + 2


def test_five_thousand_requests_leave_memory_descriptors_and_threads_as_they_were(
    start: Start, promises: Promises
) -> None:
    server = start("--log-level", "warning")
    before, after = soak(server, REQUESTS)
    for process, now in after.items():
        was = before[process]
        grown = f"{(now.memory - was.memory) / MIB:.2f} MiB"
        promises.note("soak", f"{process}, after {REQUESTS} requests", "5 MiB", grown)
        for name in ("descriptors", "threads"):
            figure = f"{getattr(was, name)} -> {getattr(now, name)}"
            promises.note("soak", f"{process}, {name}", "as before", figure)
    check(before, after)


def test_an_engine_that_leaks_is_noticed(
    broken: Callable[[str], Start], promises: Promises
) -> None:
    before, after = soak(broken("leaks")("--log-level", "warning"), 600, warm_up=400)
    with promises.fails("soak", "leaks", "the worker grew by"):
        check(before, after)
