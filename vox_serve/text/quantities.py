"""Rewritings of quantities, numbers and abbreviations into what damga's grammars read well.

Each has an example in the tests.
"""

from __future__ import annotations

# ruff: noqa: RUF001 - signs of units are the subject here
import re
import unicodedata
from collections.abc import Callable

from vox_serve.text.grammar import read

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
    "L": "liters",
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
_ABBREVIATIONS = {  # before a name or a number, beside those that damga reads
    "Gen": "General",
    "Sgt": "Sergeant",
    "Capt": "Captain",
    "Lt": "Lieutenant",
    "Col": "Colonel",
    "Rev": "Reverend",
    "Gov": "Governor",
    "Sen": "Senator",
    "Rep": "Representative",
    "Fig": "Figure",
    "fig": "figure",
    "Vol": "Volume",
    "vol": "volume",
    "Ch": "Chapter",
    "ch": "chapter",
    "Sec": "Section",
    "sec": "section",
    "Eq": "Equation",
    "Apt": "Apartment",
    "pp": "pages",
    "p": "page",
}
_MONEY = {"$": "dollar", "€": "euro", "£": "pound"}
_units = "|".join(sorted(map(re.escape, _UNITS), key=len, reverse=True))
_quantity = r"\d[\d,]*(?:\.\d+)?"
_Rewriting = tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]


def rewritten(text: str) -> str:
    """For the grammars."""
    text = _ascii_digits(text).translate(_BEFORE)
    for pattern, replacement in _REWRITINGS:
        text = pattern.sub(replacement, text)
    return text


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
    one = read(f"1 {unit}").removeprefix("one ")
    if unit in _UNITS:
        one = _UNITS[unit].removesuffix("s")
    return f"{article} {number} {one}" if one.replace(" ", "").isalpha() else match[0]


def _powered(match: re.Match[str]) -> str:
    exponent = unicodedata.normalize("NFKC", match[1]).lstrip("^").replace("\N{MINUS SIGN}", "-")
    return {"2": " squared", "3": " cubed"}.get(exponent, f" to the power of {exponent}")


def _month_first(match: re.Match[str]) -> str:
    month, day, year = match.groups()
    return f"{day}/{month}/{year}" if int(day) > 12 >= int(month) else match[0]


_REWRITINGS: tuple[_Rewriting, ...] = (
    (re.compile(r"\bhttps?://"), ""),
    (re.compile(r"#(?=\d)"), "number "),
    (re.compile(r"\+\d[\d ().-]{6,18}\d|(?<![\d-])\d{1,9}(?:-\d{1,9}){3,5}(?![\d-])"), _spaced),
    (re.compile(r"\b0\d{2,4}(?: \d{3,6}){1,2}\b"), _spaced),
    (
        re.compile(
            r"(?<![\d.,])[1-9]\d{0,2}(?:(?: \d{3}){2,6}|(?:[\u00a0\u202f]\d{3}){1,6})(?!\d)"
        ),
        _joined,
    ),
    (re.compile(r"\bw/(o\b)?(?= ?[a-z])"), lambda match: "without" if match[1] else "with "),
    (re.compile(r"\bPh\.D\.?"), "PhD"),
    (
        re.compile(rf"\b({'|'.join(_ABBREVIATIONS)})\. ?(?=[A-Z\d])"),
        lambda match: f"{_ABBREVIATIONS[match[1]]} ",
    ),
    (re.compile(r"(?<=\d) s\b|(?<=\.\d)s\b"), " seconds"),
    (
        re.compile(r"(?<=[\dA-Za-z)])(\^\d{1,4}\b|[⁻⁰¹²³⁴-⁹]*[⁰¹⁴-⁹][⁰¹²³⁴-⁹]*|⁻[²³]|(?<=\d)[²³])"),
        _powered,
    ),
    (re.compile(rf"({_quantity}) ?([€£₹])"), r"\2\1"),
    (re.compile(rf"({_quantity}) (USD|EUR|GBP|CHF|JPY|INR)\b"), r"\2 \1"),
    (re.compile(rf"([$€£₹])({_quantity}) ?[-–] ?(?=\d)"), r"\1\2 to \1"),
    (
        re.compile(rf"\b([Aa]n?) ([$€£])({_quantity})((?: (?:thousand|[mbtr]+illion))?)(?= [a-z])"),
        lambda match: f"{match[1]} {match[3]}{match[4]} {_MONEY[match[2]]}",
    ),
    (re.compile(rf"\b([Aa]n?) ({_quantity})[ -]?([A-Za-zµΩ°²³/]{{1,6}})(?=[ )]|$)"), _single),
    (
        re.compile(rf"({_quantity}) ?({_units})(?![\w/²³])"),
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
