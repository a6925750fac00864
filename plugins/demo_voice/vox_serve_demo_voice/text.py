"""Spells English words in the letters that the voice was trained on; imports no torch.

The core's front end writes numbers, signs and capitals as words.  This voice has a small alphabet,
`a` to `z`, the apostrophe, the space and `, . ; : ! ?`, and it learned whole words: a single
letter, or a word without a vowel, is hardly audible.  So these are spelled with the names of their
letters (`Plan B` becomes `plan bee`).
"""

from __future__ import annotations

import re

from vox_serve import FrontEnd

LETTERS = "abcdefghijklmnopqrstuvwxyz"
ALPHABET = " !',.:;?" + LETTERS
"""Every character that the voice reads."""

_NAMES = dict(  # noqa: C408 - shorter, and read more easily
    a="ay", b="bee", c="see", d="dee", e="ee", f="eff", g="gee", h="aitch", i="eye",
    j="jay", k="kay", l="ell", m="em", n="en", o="oh", p="pee", q="queue", r="are",
    s="ess", t="tee", u="you", v="veee", w="double you", x="ex", y="why", z="zee",
)  # fmt: skip
_SOUNDS = {
    "nth": "enth",
    "tsk": "tut",
    "psst": "pist",
    "pfft": "pift",
    "grr": "gur",
    "mhm": "um hum",
}
_SOUND = re.compile(r"(h+)m+|m{2,}|(sh+|b+r{2,}|z{3,})")
_LETTER_A = re.compile(r"\bA(?= (?:to|and|or|versus) [A-Z]\b)")
_MARKS = ",.;:!?"
_WORD = re.compile(r"[A-Za-z]+(?:'[A-Za-z]+)*'?")


def spell(text: str) -> str:
    """The words in the voice's alphabet, ending with `.`, `!` or `?`."""
    text = _LETTER_A.sub("ay", text)
    return _punctuated(" ".join(_spelled(text.split())))


def _spelled(words: list[str]) -> list[str]:
    spelled = []
    for before, word, after in zip([".", *words[:-1]], words, [*words[1:], "."], strict=True):
        following = after.rstrip(_MARKS)
        if word in ("a", "I", "i"):
            is_word = not (word == "a" and following == "m") and not (
                word == "I" and _is_capital(before)
            )
        else:  # an article, or the name of the letter
            is_word = word == "A" and before[-1] in ".!?" and not _is_capital(following)
        spelled.append((word if is_word else _WORD.sub(_named, word)).lower())
    return spelled


def _is_capital(word: str) -> bool:
    return len(word) == 1 and word.isupper()


def _named(match: re.Match[str]) -> str:
    """The names of the letters of something that is not a word."""
    word, mark, rest = match[0].partition("'")
    lower = word.lower()
    if sound := _sound(lower):
        return sound + mark + rest
    if rest == "th" and lower in _NAMES:
        return f"{_NAMES[lower]}th"
    if rest not in ("", "s") or (len(word) > 1 and set(lower) & set("aeiouy")):
        return match[0]
    return " ".join(_NAMES[letter] for letter in lower) + mark + rest


def _sound(word: str) -> str:
    """An interjection without a vowel (`hmm`), spelled as a word; empty for any other text."""
    if match := _SOUND.fullmatch(word):
        return {"s": "shush", "b": "burr", "z": "buzz"}.get((match[2] or "h")[0], "hum")
    return _SOUNDS.get(word, "")


def _punctuated(text: str) -> str:
    """One space between words, none before a mark, no repeated marks, one mark at the end."""
    text = re.sub(r"(?<![a-z])'|'(?![a-z])", "", text)  # quotes, not apostrophes
    text = re.sub(r"[!,.:;? ]*[!,.:;?][!,.:;? ]*", lambda m: f"{_strongest(m[0])} ", text)
    text = " ".join(text.split()).strip(" ,;:").lstrip(" !,.:;?")
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _strongest(marks: str) -> str:
    return next(mark for mark in "?!.;:," if mark in marks)


FRONT_END = FrontEnd(language="en", alphabet=frozenset(ALPHABET + LETTERS.upper()), finish=spell)


def normalise(text: str) -> str:
    """Spell a text as the voice reads it.  Raises UnspeakableText."""
    return FRONT_END.read(text).text
