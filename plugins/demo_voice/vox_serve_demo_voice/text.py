"""Any English text to the letters that the voice was trained on; imports no torch.

The voice knows `a` to `z`, the apostrophe, the space and `, . ; : ! ?`.  What is written with
other signs is written out, as a reader would say it:

- letters: lower case; accents are dropped (`café` is read `cafe`), ligatures opened
- capitals standing together (`USA`, unless the whole text is in capitals): letter by letter
- numbers: cardinals up to 9999 and with commas up to 999,999, ordinals, decimals, clock times;
  a leading zero or more than six digits: digit by digit; years are not told apart
- money, percent and the signs in `_SIGNS`: words
- quotes: dropped; brackets and dashes between words: a comma; hyphens: a space
- titles in `_TITLES`: words
- bullets and arrows: a comma; Markdown's stars and headings: dropped
- what nobody reads out (emoji, other pictures, invisible characters, `¿ ¡`): dropped
- other scripts, control characters: refused

The same function made the training text, so the teacher's reading and the model's agree.
Normalising twice changes nothing.
"""

from __future__ import annotations

import re
import unicodedata

from vox_serve import UnspeakableText

LETTERS = "abcdefghijklmnopqrstuvwxyz"
ALPHABET = " !',.:;?" + LETTERS
"""Every character that `normalise` returns."""


def _words(text: str) -> list[str]:
    return text.split()


_ONES = _words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
)
_TENS = _words("twenty thirty forty fifty sixty seventy eighty ninety")
_ORDINALS = {
    "one": "first",
    "two": "second",
    "three": "third",
    "five": "fifth",
    "eight": "eighth",
    "nine": "ninth",
    "twelve": "twelfth",
}
_LETTER_NAMES = dict(
    zip(
        LETTERS,
        _words(
            "ay bee see dee ee eff gee aitch eye jay kay ell em en oh pee cue are ess tee you "
            "vee double_you ex why zee"
        ),
        strict=True,
    )
)
_SIGNS = {
    "&": "and",
    "@": "at",
    "%": "percent",
    "+": "plus",
    "=": "equals",
    "#": "number",
    "*": "star",
    "/": "slash",
    "\\": "backslash",
    "_": "underscore",
    "<": "less than",
    ">": "greater than",
    "^": "caret",
    "~": "tilde",
    "|": "bar",
    "°": "degrees",
    "\N{MICRO SIGN}": "micro",
    "\N{MULTIPLICATION SIGN}": "times",
    "÷": "divided by",
    "±": "plus or minus",
    "©": "copyright",
    "§": "section",
    "½": "one half",
    "¼": "one quarter",
    "¾": "three quarters",
}
_MONEY = {"$": "dollar", "€": "euro", "£": "pound", "¥": "yen"}
_TITLES = {"mr": "mister", "mrs": "missus", "ms": "miz", "dr": "doctor", "prof": "professor"}
_LIGATURES = str.maketrans(
    {"æ": "ae", "Æ": "Ae", "œ": "oe", "Œ": "Oe", "ß": "ss", "ø": "o", "Ø": "O", "ł": "l"}
    | {
        "Ł": "L",
        "đ": "d",
        "Đ": "D",
        "ð": "d",
        "þ": "th",
        "Þ": "Th",
        "\N{LATIN SMALL LETTER DOTLESS I}": "i",
    }
)
_APOSTROPHES = "'`\u2018\u2019\u02bc\u00b4"
_QUOTES = '"\u201c\u201d\u201e\u00ab\u00bb\u2039\u203a\u201a'
_BULLETS = r"[\u2022\u2023\u2043\u25aa\u25cf\u25e6\u2190-\u21ff\u00b7]"
_MARKDOWN = (
    r"^ {0,3}#{1,6} |^ *\* (?=\S)|\*{2,}|_{2,}"
    r"|(?<!\w)[*_](?=[^\W_])|(?<=[^\W_])[*_](?!\w)|(?<=[.!?,])[*_](?!\w)"
)
_DASHES = r"[()\[\]{}\u2013\u2014\u2015]|(?<=\s)-+(?=\s)|--+"
_HYPHENS, _MINUS = r"[-\u2010\u2011\u2212]", r"(?<!\S)[-\u2212](?=\d)"
_NUMBER = r"\d{1,3}(?:,\d{3})+|\d+"


def normalise(text: str) -> str:
    """Write `text` in the voice's own alphabet; it ends with `.`, `!` or `?`.

    Raises:
        UnspeakableText: a character with no reading, or nothing to say.
    """
    spoken = re.sub(_MARKDOWN, "", text, flags=re.MULTILINE)
    spoken = _fold(re.sub(_BULLETS, ", ", spoken))
    spoken = re.sub(rf"[{_APOSTROPHES}]", "'", spoken)
    spoken = re.sub(rf"[{_QUOTES}]", " ", spoken).replace("…", ".")
    spoken = _capitals(spoken).lower()
    spoken = re.sub(r"\b(mrs?|ms|dr|prof)\.(?=\s)", lambda m: _TITLES[m[1]], spoken)
    spoken = _numbers(spoken)
    spoken = re.sub(_DASHES, ", ", spoken)
    spoken = re.sub(_HYPHENS, " ", spoken)
    for sign, word in (_SIGNS | {c: f"{name}s" for c, name in _MONEY.items()}).items():
        spoken = spoken.replace(sign, f" {word} ")
    spoken = _punctuate(spoken)
    unknown = next((c for c in spoken if c not in ALPHABET), None)
    if unknown is not None:
        raise UnspeakableText(f"text holds {unknown!r}, which this voice cannot speak", "text")
    if not any(c in LETTERS for c in spoken):
        raise UnspeakableText("text holds nothing that this voice can speak", "text")
    return spoken


def cardinal(number: int) -> str:
    """A number below a million in words, without `and`."""
    if number < 20:
        return _ONES[number]
    for unit, name in ((1000, "thousand"), (100, "hundred")):
        if number >= unit:
            rest = f" {cardinal(number % unit)}" if number % unit else ""
            return f"{cardinal(number // unit)} {name}{rest}"
    tens = _TENS[number // 10 - 2]
    return f"{tens} {_ONES[number % 10]}" if number % 10 else tens


def ordinal(number: int) -> str:
    head, _, last = cardinal(number).rpartition(" ")
    last = _ORDINALS.get(last) or (f"{last[:-1]}ieth" if last.endswith("y") else f"{last}th")
    return f"{head} {last}".strip()


def _fold(text: str) -> str:
    """Drop accents and what nobody reads out; keep the signs that decomposition takes apart."""
    text = "".join(c for c in text.translate(_LIGATURES) if c in _SIGNS or not _unread(c))
    kept = [c if c in _SIGNS else unicodedata.normalize("NFKD", c) for c in text]
    return "".join(c for c in "".join(kept) if not unicodedata.combining(c))


def _unread(character: str) -> bool:
    """Invisible characters, marks that join emoji, and pictures."""
    return (
        character in "¿¡"
        or unicodedata.category(character) in ("Cf", "Me", "So")
        or (
            "\N{VARIATION SELECTOR-1}" <= character <= "\N{VARIATION SELECTOR-16}"
            or "\N{EMOJI MODIFIER FITZPATRICK TYPE-1-2}"
            <= character
            <= "\N{EMOJI MODIFIER FITZPATRICK TYPE-6}"
        )
    )


def _capitals(text: str) -> str:
    if not any(c.islower() for c in text):
        return text

    def spell(match: re.Match[str]) -> str:
        return " ".join(_LETTER_NAMES[c] for c in match[0].lower()).replace("_", " ")

    return re.sub(r"\b[A-Z]{2,5}\b", spell, text)


def _digits(digits: str) -> str:
    """The reading of an unsigned integer as it stands in the text."""
    plain = digits.replace(",", "")
    if len(plain) > 6 or (len(plain) > 1 and plain[0] == "0"):
        return " ".join(_ONES[int(c)] for c in plain)
    return cardinal(int(plain))


def _numbers(text: str) -> str:
    def money(match: re.Match[str]) -> str:
        name = _MONEY[match[1]]
        unit = name if (match[2] == "1" and not match[3]) or name == "yen" else f"{name}s"
        cents = f" {_digits(match[3].lstrip('0') or '0')}" if match[3] else ""
        return f" {_digits(match[2])} {unit}{cents} "

    def clock(match: re.Match[str]) -> str:
        minutes = match[2]
        if minutes == "00":
            return f" {_digits(match[1].lstrip('0') or '0')} o'clock "
        said = f"oh {_ONES[int(minutes)]}" if minutes[0] == "0" else cardinal(int(minutes))
        return f" {_digits(match[1].lstrip('0') or '0')} {said} "

    def decimal(match: re.Match[str]) -> str:
        return f" {_digits(match[1])} point {' '.join(_ONES[int(c)] for c in match[2])} "

    text = re.sub(rf"([$€£¥]) ?({_NUMBER})(?:\.(\d\d)(?!\d))?", money, text)
    text = re.sub(r"(?<![\d:])([01]?\d|2[0-3]):([0-5]\d)(?![\d:])", clock, text)
    text = re.sub(r"(?<!\d)(\d{1,6})(?:st|nd|rd|th)\b", lambda m: f" {ordinal(int(m[1]))} ", text)
    text = re.sub(rf"({_NUMBER})\.(\d+)", decimal, text)
    text = re.sub(_MINUS, " minus ", text)
    return re.sub(_NUMBER, lambda m: f" {_digits(m[0])} ", text)


def _punctuate(text: str) -> str:
    """One space between words, none before a mark, one mark at a time, one at the end."""
    text = " ".join(text.split())
    text = re.sub(r"(?<![a-z])'|'(?![a-z])", "", text)  # quotes, not apostrophes
    text = re.sub(r"\s+(?=[!,.:;?])", "", " ".join(text.split()))
    text = re.sub(r"[!,.:;?]+", lambda m: _strongest(m[0]), text)
    text = re.sub(r"([!,.:;?])(?=[^\s])", r"\1 ", text).strip(" ,;:").lstrip(" !,.:;?")
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _strongest(marks: str) -> str:
    return next(mark for mark in "?!.;:," if mark in marks)
