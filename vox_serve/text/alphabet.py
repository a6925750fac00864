"""Writes any text in a voice's alphabet.

Characters outside the alphabet are folded, transliterated, or dropped and counted.  Unicode's
tables remove accents and classify signs; anyascii writes other scripts in Latin letters.
"""

from __future__ import annotations

# ruff: noqa: RUF001 - this module is about look-alike characters
import unicodedata
from typing import NamedTuple

from vox_serve.errors import UnspeakableText

_QUOTES = "\"“”„«»‹›‚`´‘’ʼ'"
_APOSTROPHES = "'’ʼ`´‘"
_SILENT = ("Cc", "Cf", "Mn", "Me", "Mc", "Sk", "Cn")
"""Categories of invisible characters and combining marks, which can be dropped without loss."""
_SKIN_TONES = range(0x1F3FB, 0x1F400)


class Fitted(NamedTuple):
    """A text in the alphabet, and the number of characters dropped because none has a reading."""

    text: str
    dropped: int


def fit(text: str, alphabet: frozenset[str], strict: bool = False) -> Fitted:
    """Write `text` in the characters of `alphabet`, which must include the space and Latin letters.

    Args:
        strict: raise on the first character that would be transliterated or dropped.

    Raises:
        UnspeakableText: more of the text is in other scripts than in the alphabet, or `strict` is
            set and a character cannot be folded.
    """
    written: list[str] = []
    dropped = foreign = 0
    stranger, after = "", " "
    for character in text:
        if character in alphabet:
            written.append(character)
            after = character
            continue
        reading = _folded(character, alphabet)
        if reading is None:
            if strict:
                raise _refusal(character)
            stranger = stranger or (character if character.isalpha() else "")
            foreign += _weight(character, after)
            reading = _transliterated(character, alphabet)
            dropped += not reading
        written.append(reading)
        after = character
    familiar = len(
        [word for word in text.split() if any(c.isalnum() and c in alphabet for c in word)]
    )
    if foreign > familiar:
        raise _refusal(stranger)
    return Fitted("".join(written), dropped)


def _weight(letter: str, after: str) -> int:
    """Returns 1 for a word's first letter, and for each letter of a script without case; else 0."""
    if not letter.isalpha():
        return 0
    return int(unicodedata.category(letter) == "Lo" or not after.isalpha())


def _refusal(character: str) -> UnspeakableText:
    return UnspeakableText(f"text holds {character!r}, which this voice cannot speak", "text")


def _folded(character: str, alphabet: frozenset[str]) -> str | None:  # noqa: PLR0911 - a table
    """The character in the alphabet, if only its appearance changes; else None."""
    if character.isspace():
        return " "
    category = unicodedata.category(character)
    if category in _SILENT or ord(character) in _SKIN_TONES:
        return ""
    if character in _QUOTES:
        return "'" if character in _APOSTROPHES and "'" in alphabet else " "
    if category.startswith("P") and category != "Po":
        return _pause(character, category, alphabet)
    for form in (unicodedata.normalize("NFKD", character), character.lower()):
        kept = "".join(c for c in form if not unicodedata.combining(c))
        if kept and all(c in alphabet for c in kept):
            return kept
    if category.startswith("L") and unicodedata.name(character, "").startswith("LATIN"):
        return _transliterated(character, alphabet) or None
    if category == "Po":
        return _transliterated(character, alphabet) or " "
    return None


def _pause(character: str, category: str, alphabet: frozenset[str]) -> str:
    """Brackets, and dashes between words, become pauses; hyphens do not."""
    if category in ("Ps", "Pe") or character in "–—―":
        return ", " if "," in alphabet else " "
    return "-" if "-" in alphabet else " "


def _transliterated(character: str, alphabet: frozenset[str]) -> str:
    """The character in Latin letters; empty if it has no reading."""
    from anyascii import anyascii

    if not character.isalpha() and not unicodedata.category(character).startswith("P"):
        return ""  # anyascii would write a picture's name: `:grinning:`
    latin = anyascii(character)
    latin = "".join(c if c in alphabet else c.lower() for c in latin)
    return "".join(c for c in latin if c in alphabet)
