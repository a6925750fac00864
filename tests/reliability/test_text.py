"""Reading a text takes time linear in its length, and does not block other requests."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

import pytest

from tests.reliability.conftest import figure
from vox_serve.errors import RequestError
from vox_serve.plugins import load_plugins

LENGTH = 10_000
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
    start = time.perf_counter()
    with contextlib.suppress(RequestError):
        read(text)
    return time.perf_counter() - start


def growth(read: Callable[[str], object], unit: str) -> float:
    """The ratio of times for a text of LENGTH and a quarter of it; best of three, against noise."""

    def best(length: int) -> float:
        text = unit * (length // len(unit)) + " a"
        return min(seconds(read, text) for _ in range(3))

    return best(LENGTH) / max(best(LENGTH // 4), 0.002)


def longest_hold(read: Callable[[str], object], text: str) -> float:
    """The longest time for which another thread could not run while the text was read."""
    reading = threading.Thread(target=seconds, args=(read, text))
    reading.start()
    worst, last = 0.0, time.perf_counter()
    while reading.is_alive():
        time.sleep(0.001)
        now = time.perf_counter()
        worst, last = max(worst, now - last), now
    return worst


@pytest.fixture(scope="module")
def read() -> Callable[[str], object]:
    """The demo voice's text front end."""
    front_end = load_plugins().resolve("demo").front_end
    assert front_end is not None
    front_end.read("Warm up: 12 <b>$5</b>.")
    return front_end.read


def test_four_times_the_text_takes_little_more_than_four_times_as_long(read) -> None:
    found = {kind: growth(read, unit) for kind, unit in KINDS.items()}
    worst = max(found, key=found.__getitem__)
    figure("text, 4 x the length", worst=f"{worst}, {found[worst]:.1f} x the time")
    assert found[worst] < 8


def test_no_text_holds_the_interpreter(read) -> None:
    found = {
        kind: min(longest_hold(read, unit * (LENGTH // len(unit))) for _ in range(2))
        for kind, unit in KINDS.items()
    }
    worst = max(found, key=found.__getitem__)
    figure("text, interpreter held", digits=f"{found['digits'] * 1e3:.0f} ms",
           worst=f"{worst}, {found[worst] * 1e3:.0f} ms")  # fmt: skip
    assert found[worst] < 0.2


def test_a_reading_that_is_quadratic_is_noticed() -> None:
    def quadratic(text: str) -> int:
        return sum(sum(map(ord, text[start:])) for start in range(0, len(text), 20))

    assert growth(quadratic, "7") > 8
