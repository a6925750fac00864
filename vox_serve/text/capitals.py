"""Capitals: abbreviations letter by letter, words as words."""

from __future__ import annotations

# ruff: noqa: RUF001 - quotation marks of all kinds stand around words
import re
from functools import lru_cache

_AROUND = "\"'“”‘’()[]*.,;:!?"
_INITIALS = frozenset("US IT WHO".split())  # noqa: SIM905 - also words, if the others shout
_ACRONYMS = frozenset("NASA NATO COVID FIFA UEFA OPEC IKEA ASAP JPEG LASER RADAR".split())  # noqa: SIM905
"""Said as words, though no list of words has them."""
_LEAST = {2: 30_000, 3: 3_000}
"""How often a short word occurs in the word list's corpus, to be one; 100 times if longer."""
_LONGEST_INITIALS = 5


def capitals(text: str) -> str:
    """Abbreviations letter by letter; words in capitals as words."""
    tokens = text.split(" ")
    shouted = any(_is_shouted(token.strip(_AROUND)) for token in tokens)
    return " ".join(_CAPITALS.sub(lambda m: _spelled(m, shouted), token) for token in tokens)


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
    if letters in _ACRONYMS or (
        _is_word(letters.lower()) and (shouted or letters not in _INITIALS)
    ):
        return match[0]
    return " ".join(letters) + plural + dot


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
