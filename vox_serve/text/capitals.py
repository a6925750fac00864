"""Spells abbreviations in capitals letter by letter, and leaves words in capitals as words."""

from __future__ import annotations

# ruff: noqa: RUF001 - quotation marks of all kinds surround words
# ruff: noqa: SIM905 - word lists read best as plain text
import re
from functools import lru_cache

from vox_serve.text.grammar import cardinal, octet

_AROUND = "\"'“”‘’()[]*.,;:!?"
_INITIALS = frozenset("US IT LA ID".split())  # words if other words are in capitals too
_ACRONYMS = frozenset(
    "NASA NATO COVID FIFA UEFA OPEC IKEA ASAP JPEG LASER RADAR JSON YAML CERN NAFTA SARS"
    " UNICEF GIF RAM ROM LAN SIM".split()
)
"""Said as words, but missing from the word list."""
_LEAST = {2: 30_000, 3: 3_000}
"""Minimum count in the word list's corpus for a short word, by length; 100 for longer ones."""
_LONGEST_INITIALS = 5


def capitals(text: str) -> str:
    """Spell abbreviations letter by letter; leave words in capitals as words."""
    tokens = _ORGANISATION.sub(r"\1 W H O", text).split(" ")
    shouted = any(_is_shouted(token.strip(_AROUND)) for token in tokens)
    tokens[:-1] = [token[0] if _INITIAL.fullmatch(token) else token for token in tokens[:-1]]
    return " ".join(_CAPITALS.sub(lambda m: _spelled(m, shouted), token) for token in tokens)


_ORGANISATION = re.compile(r"\b([Tt]he) WHO\b")  # without "the" it is the question word
_ROMAN = re.compile(r"M{0,3}(?:CM|CD|D?C{0,3})(?:XC|XL|L?X{0,3})(?:IX|IV|V?I{0,3})")
_VALUES = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}
_INITIAL = re.compile(r"[A-Z]\.")  # part of a name: no pause follows


_CAPITALS = re.compile(r"(?<![^\W_])[A-Z]+(?:&[A-Z]+)*(?:\.[A-Z])*(?:'?s)?(?![^\W_])\.?")


def _is_shouted(token: str) -> bool:
    return len(token) > 1 and token.isupper() and token not in _INITIALS and _is_word(token.lower())


def _spelled(match: re.Match[str], shouted: bool) -> str:
    written = match[0].rstrip(".")
    letters = written.removesuffix("s").removesuffix("'")
    plural = "'s" if letters != written else ""
    dot = match[0][len(written) :]
    if len(letters) == 1:
        return match[0]
    if "." in letters:  # U.S.
        return " ".join(letters.replace(".", ""))
    if "&" in letters:
        return " and ".join(" ".join(side) for side in letters.split("&")) + plural + dot
    if _is_roman(letters) and not plural:
        value = roman(letters)
        return (octet(value) if value > 1000 else cardinal(value)) + dot  # a year
    if letters in _ACRONYMS or (
        _is_word(letters.lower()) and (shouted or letters not in _INITIALS)
    ):
        return match[0]
    return " ".join(letters) + plural + dot


def _is_roman(letters: str) -> bool:
    """Whether this is a numeral, and not a short word or abbreviation (MIX, CD)."""
    least = 4 if letters[0] in "CDM" else 3
    return len(letters) >= least and bool(_ROMAN.fullmatch(letters))


def roman(numeral: str) -> int:
    """The value of a Roman numeral in capitals."""
    values = [_VALUES[letter] for letter in numeral]
    following = [*values[1:], 0]
    return sum(-one if one < after else one for one, after in zip(values, following, strict=True))


@lru_cache(1)
def _short_words() -> dict[str, int]:
    from spellchecker import SpellChecker

    counts = SpellChecker(language="en").word_frequency.dictionary
    return {word: n for word, n in counts.items() if len(word) <= _LONGEST_INITIALS}


@lru_cache(4096)
def _is_word(word: str) -> bool:
    if not set(word) & set("aeiouy"):
        return False
    if len(word) > _LONGEST_INITIALS:
        return True
    return _short_words().get(word, 0) >= _LEAST.get(len(word), 100)
