"""Reading a text takes time linear in its length, and does not block other requests."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable

import pytest

from tests.conftest import TONE
from tests.reliability.conftest import Promises
from tests.tone import ToneModel
from vox_serve.engine.engine import Engine
from vox_serve.errors import RequestError
from vox_serve.messages import SpeechRequest
from vox_serve.plugins import load_plugins
from vox_serve.workers.reading import TextReader, text_jobs

LENGTH = 10_000
MOST_GROWTH, LONGEST_BLOCK = 8.0, 0.02
TRIES = 3
"""The best of several tries counts, because other processes interfere."""
KINDS: dict[str, str] = {
    "digits": "7", "zeros": "0", "letters": "a", "capitals": "A", "commas": ",", "dots": ".",
    "numbers": "12 ", "money": "$1,000.50 ", "dates": "2024-01-02 ",
    "addresses": "http://a.b/c?d=e ",
    "phones": "555-1234 ", "parens": "(", "brackets": "[", "stars": "*", "less": "<", "tags": "<b>",
    "names": "_a", "quotes": '"', "ticks": "`", "lines": "a\n", "tabs": "a\t", "accents": "e\u0301",
    "marks": "\u0301", "chinese": "\u4f60", "emoji": "\U0001f600", "mojibake": "\u00c3\u00a9",
    "hyphens": "a-", "slashes": "1/", "colons": "1:", "entities": "&amp;", "links": "[a](b)",
    "open links": "[a](", "images": "![", "headings": "# a\n", "lists": "- a\n", "nested": "- ",
    "quoted": "> ", "roman": "XIV ", "initials": "A.", "percent": "5% ", "decimals": "1.",
    "thousands": "1,", "breaks": '<break time="1s"/>', "escapes": "\x1b[", "surrogates": "\ud800",
    "latex": "$x^2$ ", "words": "word ", "spaces": " ", "tildes": "~", "pipes": "|a",
}  # fmt: skip


def seconds(read: Callable[[str], object], text: str) -> float:
    start = time.process_time()
    with contextlib.suppress(RequestError):
        read(text)
    return time.process_time() - start


def growth(read: Callable[[str], object], unit: str) -> float:
    """The time for a text of LENGTH, divided by that for a quarter of it."""
    best = dict.fromkeys((LENGTH, LENGTH // 4), math.inf)
    for _ in range(TRIES):
        for length in (LENGTH, LENGTH // 4):
            text = unit * (length // len(unit)) + " a"
            best[length] = min(best[length], seconds(read, text))
        ratio = best[LENGTH] / max(best[LENGTH // 4], 0.002)
        if ratio < MOST_GROWTH:
            break
    return ratio


async def longest_block(work: Awaitable[object]) -> float:
    """The longest time for which this work blocked the event loop.

    It is CPU time of all threads, because any of them may hold the interpreter lock.
    """
    waiting = asyncio.ensure_future(work)
    worst, last = 0.0, time.process_time()
    while not waiting.done():
        await asyncio.sleep(0.001)
        now = time.process_time()
        worst, last = max(worst, now - last), now
    with contextlib.suppress(RequestError):
        waiting.result()
    return worst


@pytest.fixture(scope="module")
def read() -> Callable[[str], object]:
    """The demo voice's text front end."""
    front_end = load_plugins().resolve("demo").front_end
    assert front_end is not None
    front_end.read("Warm up: 12 <b>$5</b>.")
    return front_end.read


def test_reading_time_grows_linearly_with_the_text(read, promises: Promises) -> None:
    found = {kind: growth(read, unit) for kind, unit in KINDS.items()}
    worst = max(found, key=found.__getitem__)
    times = f"{found[worst]:.1f} times ({worst})"
    promises.note("text", "4 times the text takes", "8 times", times)
    assert found[worst] < MOST_GROWTH


def test_no_text_blocks_the_event_loop(promises: Promises) -> None:
    front_end = load_plugins().resolve("demo").front_end
    assert front_end is not None
    info = Engine(ToneModel(), TONE).info("tone", "tone", 0.0)

    async def blocked_for(reader: TextReader, unit: str) -> float:
        best = math.inf
        for _ in range(TRIES):
            text = SpeechRequest("blocked_for", unit * (LENGTH // len(unit)))
            best = min(best, await longest_block(reader.split(text, info)))
            if best < LONGEST_BLOCK:
                break
        return best

    async def main() -> dict[str, float]:
        jobs = text_jobs()
        reader = TextReader(front_end, jobs)
        try:
            await reader.read("Warm up: 12 <b>$5</b>.")
            return {kind: await blocked_for(reader, unit) for kind, unit in KINDS.items()}
        finally:
            jobs.close()

    found = asyncio.run(main())
    worst = max(found, key=found.__getitem__)
    longest = f"{found[worst] * 1e3:.0f} ms ({worst})"
    promises.note("text", "the event loop is blocked for", "20 ms", longest)
    assert found[worst] < LONGEST_BLOCK


def test_reading_in_the_event_loop_is_detected(read, promises: Promises) -> None:
    async def reading() -> None:
        read("555-1234 " * 1000)

    with promises.fails("text", "reads in the event loop", "ms"):
        blocked_for = asyncio.run(longest_block(reading()))
        assert blocked_for < LONGEST_BLOCK, f"{blocked_for * 1e3:.0f} ms"


def test_quadratic_reading_is_detected(promises: Promises) -> None:
    def quadratic(text: str) -> int:
        return sum(sum(map(ord, text[start:])) for start in range(0, len(text), 20))

    with promises.fails("text", "quadratic", "times"):
        times = growth(quadratic, "7")
        assert times < MOST_GROWTH, f"{times:.1f} times"
