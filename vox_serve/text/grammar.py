"""Reads text with damga's grammars, and writes single numbers without them.

damga takes about 3 ms per number, and more if a text has many.  So it gets few at a time, and in a
text with many numbers those that are words by themselves are written here.
"""

from __future__ import annotations

# ruff: noqa: SIM905 - word lists read best as plain text
import re
from collections.abc import Callable, Iterator
from functools import lru_cache

MOST_NUMBERS = 8
"""Most numbers passed to damga at once: it holds the interpreter lock while it works."""
_ALONE = re.compile(r"((?:\d{1,12}|\d{1,3}(?:,\d{3}){1,3})(?:\.\d{1,20})?)([,;:!?]?)")
_WORDS = re.compile(r"[a-z]+(?:[,;:]? [a-z]+)*[,;:.!?]?")
_NUMBER = re.compile(r"\d[\d,.:/-]*")
_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
    " sixteen seventeen eighteen nineteen".split()
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_SCALES = ("", " thousand", " million", " billion", " trillion")


@lru_cache(1)
def _grammar() -> Callable[[str], str]:
    from damga import Normalizer

    normalise: Callable[[str], str] = Normalizer("tn", "en").normalize
    return normalise


def read(text: str) -> str:
    """Write out numbers, money, dates and addresses."""
    normalise = _grammar()
    if _WORDS.fullmatch(text):
        return text
    if len(_NUMBER.findall(text)) <= MOST_NUMBERS:
        return normalise(text) or text
    return " ".join(
        part if _WORDS.fullmatch(part) else normalise(part) or part for part in _parts(text.split())
    )


def _parts(words: list[str]) -> Iterator[str]:
    """Cut words into parts of at most `MOST_NUMBERS` numbers; write out numbers by themselves."""
    part: list[str] = []
    numbers = 0
    for word in words:
        alone = _ALONE.fullmatch(word)
        here = not alone and any(map(str.isdecimal, word))
        if part and (alone or (here and numbers == MOST_NUMBERS)):
            yield " ".join(part)
            part, numbers = [], 0
        if alone:
            yield _written(alone) + alone[2]
            continue
        part.append(word)
        numbers += here
    if part:
        yield " ".join(part)


def _written(match: re.Match[str]) -> str:
    whole, _, decimals = match[1].replace(",", "").partition(".")
    if len(whole) > 1 and whole[0] == "0":
        return spelled(whole + decimals)
    said = cardinal(int(whole))
    return f"{said} point {spelled(decimals)}" if decimals else said


def spelled(digits: str) -> str:
    return " ".join(_SMALL[int(digit)] for digit in digits)


def cardinal(number: int) -> str:
    """A number below 10^15 in words, as damga writes it."""
    groups = []
    for scale in _SCALES:
        number, group = divmod(number, 1000)
        if group:
            groups.append(_below_thousand(group) + scale)
    return " ".join(reversed(groups)) or _SMALL[0]


def _below_thousand(number: int) -> str:
    hundreds, rest = divmod(number, 100)
    tens, ones = divmod(rest, 10)
    small = _SMALL[rest] if rest < 20 else " ".join([_TENS[tens - 2], *[_SMALL[ones]][: ones > 0]])
    if not hundreds:
        return small
    return f"{_SMALL[hundreds]} hundred" + (f" and {small}" if rest else "")


def octet(number: int) -> str:
    """A part of an IP address, or a year: `one ninety two`, `one oh one`."""
    hundreds, rest = divmod(number, 100)
    if not hundreds or not rest:
        return cardinal(number)
    return f"{cardinal(hundreds)} {'oh ' if rest < 10 else ''}{cardinal(rest)}"


@lru_cache(256)
def number(digits: str) -> str:
    """A number by itself, in words."""
    said = read(digits)
    if any(map(str.isdecimal, said)):
        parts = re.findall(r"\d+", digits)
        said = ", ".join(
            spelled(p) if p[0] == "0" or len(p) > 12 else cardinal(int(p)) for p in parts
        )
    return said
