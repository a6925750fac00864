"""Promises about the rows of a batch: a failing row, and sound that does not depend on others."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from tests.launched import REPLICAS, Launched, Start
from tests.reliability.client import Answer, Connection, ask, request
from tests.reliability.conftest import Promises, series

GOOD = ("40 frames", "41 frames here", "42 frames of them")
BAD = ("nan 30 frames", "boom 30 frames")


async def together(server: Launched, texts: tuple[str, ...]) -> list[Answer]:
    """Stream these texts at the same time."""
    return await asyncio.gather(
        *(ask(server, text=text, streaming=True, format="pcm") for text in texts)
    )


def a_request_that_fails(start: Start, promises: Promises) -> None:
    server = start("--max-batch-size", "4", "--log-level", "error", TONE_DELAY="0.01")
    alone = [asyncio.run(ask(server, text=text, format="pcm")).body for text in GOOD]
    alone *= REPLICAS
    whole, others = 0, len(alone) * len(BAD)
    for bad in BAD:
        *good, failed = asyncio.run(together(server, (*GOOD * REPLICAS, bad)))
        assert failed.cut or failed.status == 500
        whole += sum(not x.cut and x.body == pcm for x, pcm in zip(good, alone, strict=True))
    assert whole == others, f"{whole} of {others} others are whole"
    name = "a request that fails"
    promises.note(name, "others in its batch with the bytes as alone", whole, whole)
    errors = series(server, "engine_errors_total")
    promises.note(name, "failures: logits not finite, an exception", len(BAD), f"{errors:g}")
    assert errors == len(BAD)
    slots = 4 * REPLICAS  # including the failed ones
    again = asyncio.run(together(server, (*GOOD * REPLICAS, *GOOD)[:slots]))
    clean = sum(x.body == pcm for x, pcm in zip(again, [*alone, *alone][:slots], strict=True))
    promises.note(name, "afterwards, slots with the same bytes", slots, clean)
    assert clean == slots


MINE = {
    "text": "Hello there, my friend, how are you?",
    "seed": 5,
    "temperature": 0.8,
    "model": "demo",
}
OTHERS = ("The weather is good today.", "One two three four five.", "Yes, this goes on and on.")


async def in_company(server: Launched, others: tuple[str, ...], streaming: bool) -> bytes:
    """The audio of MINE while others are spoken."""
    async with AsyncExitStack() as stack:
        for number, text in enumerate(others):
            other = await stack.enter_async_context(Connection(server))
            other.send(request(text=text, seed=number, model="demo", streaming=True))
            assert (await other.head()).status == 200
        answer = await ask(server, **MINE, streaming=streaming, format="pcm")
        assert (answer.status, answer.cut) == (200, False)
        return answer.body


def determinism(start: Start, promises: Promises) -> None:
    server = start("--model", "demo", "--deterministic", "--max-batch-size", "4")
    alone = asyncio.run(in_company(server, (), False))
    bodies = [
        asyncio.run(in_company(server, OTHERS[:count], streaming))
        for count, streaming in ((0, True), (1, True), (2, False), (3, True), (3, False))
    ]
    same = sum(body == alone for body in bodies)
    assert same == len(bodies), f"{same} of {len(bodies)} are the same"
    promises.note("determinism", "same bytes beside 0 to 3 others", len(bodies), same)
