"""Memory, descriptors and threads do not grow with the number of requests."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path

import attrs
import httpx
import pytest

from tests.launched import Launched
from tests.reliability.conftest import Start, figure

WARM_UP, REQUESTS, CLIENTS = 2000, 5000, 8
MIB = 2**20
MOST_GROWTH = 5 * MIB


@attrs.frozen
class Held:
    """The resources that a process holds."""

    memory: int
    descriptors: int
    threads: int


def held(pid: int) -> Held:
    process = Path(f"/proc/{pid}")
    lines = (process / "smaps_rollup").read_text().splitlines()
    (private,) = (line for line in lines if line.startswith("Private_Dirty:"))
    return Held(
        int(private.split()[1]) * 1024,
        len(list((process / "fd").iterdir())),
        len(list((process / "task").iterdir())),
    )


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


def soak(server: Launched, requests: int) -> tuple[dict[str, Held], dict[str, Held]]:
    url = str(server.http.base_url)
    asyncio.run(load(url, WARM_UP, 0))
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
    start: Start,
) -> None:
    server = start("--log-level", "warning")
    before, after = soak(server, REQUESTS)
    for process, now in after.items():
        was = before[process]
        figure(
            f"soak, {process}",
            requests=REQUESTS,
            growth=f"{(now.memory - was.memory) / MIB:.2f} MiB",
            descriptors=f"{was.descriptors} -> {now.descriptors}",
            threads=f"{was.threads} -> {now.threads}",
        )
    check(before, after)


def test_an_engine_that_leaks_is_noticed(start: Start) -> None:
    server = start("--log-level", "warning", "--plugins", "tests.reliability.leaky", LEAKY_KIB="16")
    before, after = soak(server, 1500)
    with pytest.raises(AssertionError, match="the worker grew by"):
        check(before, after)
