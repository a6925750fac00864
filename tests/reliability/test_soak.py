"""Memory, descriptors and threads do not grow with the number of requests."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable

import httpx
import pytest

from tests.launched import REPLICAS, Launched, Start
from tests.reliability.conftest import Promises, series
from tests.reliability.resources import MIB, Held, held

WARM_UP, REQUESTS, CLIENTS = 2000, 5000, 8
TALKS = 20
"""The number of conversations that each client continues."""
MOST_GROWTH = 5 * MIB


def settled(server: Launched) -> dict[str, Held]:
    """The resources of server and workers after the clients' connections are closed."""
    deadline = time.monotonic() + 10
    while server.http.get("/health").json()["models"][0]["running"]:
        assert time.monotonic() < deadline, "slots are not free"
        time.sleep(0.1)
    time.sleep(1)
    workers = {
        "worker" if REPLICAS == 1 else f"worker {number}": held(pid)
        for number, pid in enumerate(sorted(server.workers()))
    }
    return {"server": held(server.process.pid), **workers}


async def load(url: str, count: int, seed: int, talk: bool = False) -> None:
    """Send `count` requests from `CLIENTS` clients; every other one stops after one chunk.

    Args:
        talk: most requests are turns of conversations; these continue, or are left open or
            deleted after their first turn.
    """
    chance = random.Random(seed)
    left = iter(range(count))

    async def client(me: int) -> None:
        limits = httpx.Limits(max_connections=1)
        async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as http:
            for number in left:
                body = {"text": f"{chance.randint(1, 12)} frames", "streaming": True}
                once = f"once-{seed}-{number}"
                if talk and number % 4:
                    lasting = f"talk-{me}-{chance.randrange(TALKS)}"
                    body["conversation"] = chance.choice((once, lasting))
                async with http.stream("POST", "/generate", json=body) as response:
                    if response.status_code != 200:
                        raise AssertionError(await response.aread())
                    async for _ in response.aiter_raw():
                        if number % 2:
                            break
                if body.get("conversation") == once and chance.random() < 0.5:
                    await http.delete(f"/conversations/{once}")

    await asyncio.gather(*map(client, range(CLIENTS)))


def soak(
    server: Launched, requests: int, warm_up: int = WARM_UP, talk: bool = False
) -> tuple[dict[str, Held], dict[str, Held]]:
    """All workers get the same number of requests."""
    url = str(server.http.base_url)
    asyncio.run(load(url, REPLICAS * warm_up, 0, talk))
    before = settled(server)
    asyncio.run(load(url, REPLICAS * requests, 1, talk))
    return before, settled(server)


def check(before: dict[str, Held], after: dict[str, Held]) -> None:
    for process, now in after.items():
        grown = now.memory - before[process].memory
        assert grown < MOST_GROWTH, f"the {process} grew by {grown / MIB:.1f} MiB"
    for process, now in after.items():
        assert now.descriptors == before[process].descriptors
        # asyncio's pool may start more threads after the warm-up.
        assert now.threads <= before[process].threads + 2


@pytest.mark.parametrize("talk", [False, True], ids=["texts", "conversations"])
def test_five_thousand_requests_leave_memory_descriptors_and_threads_as_they_were(
    start: Start, promises: Promises, talk: bool
) -> None:
    """The warm-up reaches the limits of the conversations."""
    limits = ("--max-conversations", "300", "--prefix-cache-mib", "1")
    server = start("--log-level", "warning", *limits)
    before, after = soak(server, REQUESTS, talk=talk)
    kind = f"{REPLICAS * REQUESTS} {'turns of conversations' if talk else 'requests'}"
    for process, now in after.items():
        was = before[process]
        grown = f"{(now.memory - was.memory) / MIB:.2f} MiB"
        promises.note("soak", f"{process}, after {kind}", "5 MiB", grown)
        for name in ("descriptors", "threads"):
            figure = f"{getattr(was, name)} -> {getattr(now, name)}"
            promises.note("soak", f"{process}, {name}", "as before", figure)
    if talk:
        promises.note("soak", "conversations open", 300, f"{series(server, 'conversations'):g}")
    check(before, after)


def test_an_engine_that_leaks_is_detected(
    broken: Callable[[str], Start], promises: Promises
) -> None:
    before, after = soak(broken("leaks")("--log-level", "warning"), 600, warm_up=400)
    with promises.fails("soak", "leaks", "the worker.* grew by"):
        check(before, after)
