"""Written English to words: numbers, money, units, dates, addresses, signs and capitals.

damga's grammars do most of it.  What stands here is data and the few rewritings that lead to what
damga reads well, or mend what it leaves: each has an example in the tests.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache

from vox_serve.text.sentences import Sentences

_LONGEST = 400
"""Characters that damga gets at once: it holds the interpreter meanwhile."""

_AROUND = "\"'“”‘’()[]*"
_PLAIN_WORD = re.compile(r"[A-Za-z]?[a-z]*(?:['’-][a-z]+)*[,;:]?")
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
    "©": "copyright",
    "®": "registered",
    "™": "trademark",
    "‰": "per mille",
    "Ω": "ohms",
    "−": "minus",
    "→": "to",
}
_PAUSES = "|•‣⁃▪●◦·←↑↓↔⇒➜►▶★☆✓✔✗✘"
_BEFORE = str.maketrans(
    {
        "℃": "°C",
        "℉": "°F",
        "¢": " cents",
        "−": "-",
        "⁄": "/",
        "‑": "-",
        "‐": "-",
        "∕": "/",
        "μ": "µ",
    }
)
_UNITS = {  # those that damga does not read
    "m/s²": "meters per second squared",
    "GB/s": "gigabytes per second",
    "MB/s": "megabytes per second",
    "Mbit/s": "megabits per second",
    "Gbit/s": "gigabits per second",
    "kbit/s": "kilobits per second",
    "kbps": "kilobits per second",
    "µm": "micrometers",
    "µg": "micrograms",
    "µs": "microseconds",
    "µl": "microliters",
    "nm": "nanometers",
    "mW": "milliwatts",
    "mA": "milliamps",
    "mAh": "milliamp hours",
    "mV": "millivolts",
    "kV": "kilovolts",
    "Ω": "ohms",
    "kΩ": "kilohms",
    "dB": "decibels",
    "Pa": "pascals",
    "hPa": "hectopascals",
    "kPa": "kilopascals",
    "psi": "pounds per square inch",
    "rpm": "revolutions per minute",
    "bpm": "beats per minute",
    "fps": "frames per second",
    "dpi": "dots per inch",
    "ppm": "parts per million",
    "px": "pixels",
    "kcal": "kilocalories",
    "cal": "calories",
    "kJ": "kilojoules",
    "J": "joules",
    "tsp": "teaspoons",
    "tbsp": "tablespoons",
    "gal": "gallons",
    "qt": "quarts",
    "yd": "yards",
    "°C": "degrees Celsius",
    "°F": "degrees Fahrenheit",
}
_INITIALS = frozenset("US IT WHO".split())  # noqa: SIM905 - also words, if the others shout
_ACRONYMS = frozenset("NASA NATO COVID FIFA UEFA OPEC IKEA ASAP JPEG LASER RADAR".split())  # noqa: SIM905
"""Said as words, though no list of words has them."""
_LEAST = {2: 30_000, 3: 3_000}
"""How often a short word occurs in the word list's corpus, to be one; 100 times if longer."""
_LONGEST_INITIALS = 5

_quantity = r"\d[\d,]*(?:\.\d+)?"
_Rewriting = tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]


def words(text: str, spells: bool) -> str:
    """Write out what is not words; lines stay.

    Args:
        spells: signs, capitals and abbreviations too, for a voice that knows letters only;
            otherwise these are left to the model.
    """
    return "\n".join(
        " ".join(_sentence(sentence, spells) for sentence in _sentences(line))
        for line in text.split("\n")
    )


def _sentences(line: str) -> list[str]:
    reader = Sentences(_LONGEST)
    return [*reader.feed(line), *reader.flush()]


def _sentence(sentence: str, spells: bool) -> str:
    if _is_plain(sentence):
        return sentence
    spoken = _ascii_digits(sentence).translate(_BEFORE)
    for pattern, replacement in _BEFOREHAND:
        spoken = pattern.sub(replacement, spoken)
    spoken = _read(spoken)
    spoken = " ".join(map(_mended, spoken.split()))
    return _without_signs(_capitals(spoken) if spells else spoken, spells)


def _is_plain(sentence: str) -> bool:
    """Nothing to write out: words in small letters, or with a capital at their beginning.

    A single capital may be a numeral (World War I) or a letter (Plan B), but `I` after a word in
    small letters, and `A` and `I` at the beginning, are words.
    """
    *others, last = sentence.split()
    previous_small = True
    for word in [*others, last.rstrip(".!?…")]:
        bare = word.strip(_AROUND)
        if not _PLAIN_WORD.fullmatch(bare):
            return False
        if bare[:1].isupper() and len(bare.rstrip(",;:")) == 1:
            if not previous_small or (bare[0] not in "AI"):
                return False
        previous_small = not bare[:1].isupper()
    return True


@lru_cache(1)
def _grammar() -> Callable[[str], str]:
    from damga import Normalizer

    normalise: Callable[[str], str] = Normalizer("tn", "en").normalize
    return normalise


def _read(text: str) -> str:
    return _grammar()(text) or text


@lru_cache(256)
def _number(digits: str) -> str:
    """Digits that stand alone, in words."""
    read = _read(digits)
    if any(map(str.isdecimal, read)):
        read = " ".join(_read(c) if c.isdecimal() else "," for c in digits)
    return read


def _ascii_digits(text: str) -> str:
    """Digits of all scripts, and fractions, as the grammars know them."""
    if text.isascii():
        return text
    return "".join(map(_ascii_digit, text))


def _ascii_digit(character: str) -> str:
    if character.isdecimal():
        return str(unicodedata.decimal(character))
    form = unicodedata.normalize("NFKC", character)
    if unicodedata.category(character) == "No" and "⁄" in form:
        return f" {form}".replace("⁄", "/")
    fullwidth = unicodedata.east_asian_width(character) == "F"
    return form if fullwidth else character


def _spaced(match: re.Match[str]) -> str:
    """A telephone number, digit by digit, with a pause between its groups."""
    groups = ", ".join(" ".join(group) for group in re.findall(r"\d+", match[0]))
    return f"plus {groups}" if match[0][0] == "+" else groups


def _joined(match: re.Match[str]) -> str:
    """A number with spaces between its thousands."""
    return f"{int(''.join(match[0].split())):,}"


def _single(match: re.Match[str]) -> str:
    """`a 5 km run`: the unit that an adjective has is that of one."""
    article, number, unit = match.groups()
    one = _read(f"1 {unit}").removeprefix("one ")
    if unit in _UNITS:
        one = _UNITS[unit].removesuffix("s")
    return f"{article} {number} {one}" if one.replace(" ", "").isalpha() else match[0]


def _powered(match: re.Match[str]) -> str:
    exponent = unicodedata.normalize("NFKC", match[1]).lstrip("^")
    return {"2": " squared", "3": " cubed"}.get(exponent, f" to the power of {exponent}")


def _month_first(match: re.Match[str]) -> str:
    month, day, year = match.groups()
    return f"{day}/{month}/{year}" if int(day) > 12 >= int(month) else match[0]


_BEFOREHAND: tuple[_Rewriting, ...] = (
    (re.compile(r"\bhttps?://"), ""),
    (re.compile(r"\+\d[\d ().-]{6,18}\d|(?<![\d-])\d{1,9}(?:-\d{1,9}){3,5}(?![\d-])"), _spaced),
    (
        re.compile(
            r"(?<![\d.,])[1-9]\d{0,2}(?:(?: \d{3}){2,6}|(?:[\u00a0\u202f]\d{3}){1,6})(?!\d)"
        ),
        _joined,
    ),
    (re.compile(r"\bp(p?)\. ?(?=\d)"), lambda match: "pages " if match[1] else "page "),
    (re.compile(r"(?<=\d) s\b"), " seconds"),
    (re.compile(r"(?<=[\dA-Za-z)])(\^\d{1,4}\b|[⁰¹⁴-⁹]+|(?<=\d)[²³])"), _powered),
    (re.compile(rf"({_quantity}) ?([€£₹])"), r"\2\1"),
    (re.compile(rf"({_quantity}) (USD|EUR|GBP|CHF|JPY|INR)\b"), r"\2 \1"),
    (re.compile(rf"([$€£₹])({_quantity}) ?[-–] ?(?=\d)"), r"\1\2 to \1"),
    (
        re.compile(
            rf"\b([Aa]n?) \$({_quantity})((?: (?:thousand|million|billion|trillion))?)(?= [a-z])"
        ),
        r"\1 \2\3 dollar",
    ),
    (re.compile(rf"\b([Aa]n?) ({_quantity})[ -]?([A-Za-zµΩ°²³/]{{1,6}})(?=[ )]|$)"), _single),
    (
        re.compile(
            rf"({_quantity}) ?({'|'.join(sorted(map(re.escape, _UNITS), key=len, reverse=True))})(?![\w/²³])"
        ),
        lambda match: f"{match[1]} {_UNITS[match[2]]}",
    ),
    (re.compile(r"\b(\d{1,2})/(\d{1,2})/(\d{4})\b"), _month_first),
    # `about 3.14` would be a time of day.
    (
        re.compile(
            r"(?<![\d.,:/$€£¥₹])(\d{1,2})\.([0-5]\d)(?!\d|[.:/]\d| ?(?:[ap]\.?m\b|hours|hrs|h\b))"
        ),
        lambda match: f"{match[1]} point {' '.join(match[2])}",
    ),
    (re.compile(r"(\d)'(\d{1,2})\""), r"\1 feet \2 inches"),
)


_INITIALISM = re.compile(r"\W*(?:[^\W\d]\.)+[^\W\d]?\W*")
_INNER_DOT = re.compile(r"(?<=[^\W\d])\.(?=\w)|(?<=\w)\.(?=[^\W\d])")
_DIGITS = re.compile(r"\d[\d,.]*\d|\d")


def _mended(word: str) -> str:
    """What the grammars left of an address, a version, a ratio or a code."""
    if word.isalpha() or _INITIALISM.fullmatch(word):
        return word
    word = _INNER_DOT.sub(lambda m: " point " if m.string[m.end()].isdecimal() else " dot ", word)
    word = re.sub(r"(?<=\d):(?=\d)", " to ", word)
    return _DIGITS.sub(lambda match: f" {_number(match[0])} ", word).strip()


_DASH = re.compile(r"(?<= )-+(?= )|--+")


def _without_signs(text: str, spells: bool) -> str:
    """Signs as words; without `spells` only those that no text is written with every day."""
    if text.isascii() and not spells:
        return text
    spoken = []
    for index, character in enumerate(text):
        if character in _PAUSES:
            spoken.append(", ")
        elif character.isalnum() or character.isspace():
            greek = _lone_greek(text, index)
            spoken.append(f" {greek} " if greek else character)
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
    """The name of a Greek letter that stands for itself; empty for any other character."""
    if not "\N{GREEK CAPITAL LETTER ALPHA}" <= text[index] <= "\N{GREEK SMALL LETTER OMEGA}":
        return ""
    around = text[max(index - 1, 0) : index] + text[index + 1 : index + 2]
    if any(c.isalpha() and not c.isascii() for c in around):
        return ""
    return unicodedata.name(text[index]).split()[-1].lower()


def _is_symbol(character: str) -> bool:
    """Mathematical or of money."""
    return not character.isascii() and unicodedata.category(character) in ("Sm", "Sc")


def _name(sign: str, before: str, after: str) -> str:
    if sign == "#" and not after.isdecimal():
        return "sharp" if before.isalpha() and not after.isalnum() else "hash"
    if sign == "~" and not after.isalnum():
        return "tilde"
    if sign in _SIGNS:
        return _SIGNS[sign]
    return unicodedata.name(sign, "").lower().removesuffix(" sign").replace("-", " ")


def _capitals(text: str) -> str:
    """Abbreviations letter by letter; words in capitals as words."""
    tokens = text.split(" ")
    shouted = any(_is_shouted(token.strip(_AROUND + ".,;:!?")) for token in tokens)
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
    if letters in _ACRONYMS or len(letters) > _LONGEST_INITIALS or _is_word(letters.lower()):
        if letters not in _INITIALS or shouted:
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
