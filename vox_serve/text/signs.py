"""Writes signs as words: common signs, Greek letters, and other symbols by their Unicode names."""

from __future__ import annotations

# ruff: noqa: RUF001 - this module is about signs
import re
import unicodedata

_SIGNS = {
    "&": "and",
    "@": "at",
    "%": "percent",
    "+": "plus",
    "=": "equals",
    "*": "star",
    "/": "slash",
    "\\": "backslash",
    "_": "underscore",
    "<": "less than",
    ">": "greater than",
    "^": "to the power of",
    "~": "about",
    "#": "number",
    "$": "dollars",
    "€": "euros",
    "£": "pounds",
    "¥": "yen",
    "₹": "rupees",
    "¢": "cents",
    "°": "degrees",
    "²": "squared",
    "³": "cubed",
    "µ": "micro",
    "×": "times",
    "÷": "divided by",
    "±": "plus or minus",
    "≥": "at least",
    "≤": "at most",
    "≠": "is not equal to",
    "≈": "about",
    "∑": "the sum of",
    "√": "the square root of",
    "∞": "infinity",
    "§": "section",
    "¶": "paragraph",
    "♯": "sharp",
    "♭": "flat",
    "©": "copyright",
    "®": "registered",
    "™": "trademark",
    "‰": "per mille",
    "Ω": "ohms",
    "−": "minus",
    "→": "to",
}
_PAUSES = "|•‣⁃▪●◦·←↑↓↔⇒➜►▶★☆✓✔✗✘"
_DASH = re.compile(r"(?<= )-+(?= )|--+")


def without_signs(text: str, spells: bool) -> str:
    """Write signs as words; without `spells`, only those outside ASCII."""
    if text.isascii() and not spells:
        return text
    spoken = []
    for index, character in enumerate(text):
        if character in _PAUSES:
            spoken.append(", ")
        elif greek := _lone_greek(text, index):
            spoken.append(f" {greek} ")
        elif (character in _SIGNS and (spells or not character.isascii())) or _is_symbol(character):
            around = text[max(index - 1, 0) : index], text[index + 1 : index + 2]
            spoken.append(f" {_name(character, *around)} ")
        else:
            spoken.append(character)
    tidy = " ".join("".join(spoken).split())
    if spells:
        tidy = _DASH.sub(", ", tidy)
    return re.sub(r" +(?=[,.;:!?](?:\s|$))", "", tidy)


def _lone_greek(text: str, index: int) -> str:
    """The name of a Greek letter that is not part of a Greek word; empty for other characters."""
    if not "\N{GREEK CAPITAL LETTER ALPHA}" <= text[index] <= "\N{GREEK SMALL LETTER OMEGA}":
        return ""
    around = text[max(index - 1, 0) : index] + text[index + 1 : index + 2]
    if any(c.isalpha() and not c.isascii() for c in around):
        return ""
    return unicodedata.name(text[index]).split()[-1].lower()


def _is_symbol(character: str) -> bool:
    """Whether this is a mathematical or currency symbol outside ASCII."""
    return not character.isascii() and unicodedata.category(character) in ("Sm", "Sc")


def _name(sign: str, before: str, after: str) -> str:
    if sign == "#" and not after.isdecimal():
        return "sharp" if before.isalpha() and not after.isalnum() else "hash"
    if sign == "*" and before.isalnum():
        return ""  # a footnote mark
    if sign == "~" and not after.isalnum():
        return "tilde"
    if sign in _SIGNS:
        return _SIGNS[sign]
    return unicodedata.name(sign, "").lower().removesuffix(" sign").replace("-", " ")
