"""Rewrites quantities, numbers and abbreviations into forms that damga's grammars read well.

Each rule has an example in the tests.
"""

from __future__ import annotations

# ruff: noqa: RUF001 - this module is about signs of units
import re
import unicodedata
from collections.abc import Callable

from vox_serve.text.grammar import octet, read, spelled

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
_UNITS = {  # units that damga does not read
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
_ABBREVIATIONS = {  # before a name or a number; those that damga does not read
    "Ave": "Avenue",
    "Ft": "Fort",
    "ca": "circa",
    "est": "established",
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
    "ext": "extension",
    "Ext": "Extension",
    "tel": "telephone",
    "Tel": "Telephone",
    "ver": "version",
    "Ver": "Version",
    "pp": "pages",
    "p": "page",
}
_RARE_MONEY = "₤₺₽₴₦₱฿₫₪₡₲₵₸₮₭₿"
_MONEY = {"$": "dollar", "€": "euro", "£": "pound"}
_WITHOUT_DOT = {
    "vs": "versus",
    "etc": "et cetera",
    "Ltd": "Limited",
    "Inc": "Incorporated",
    "Blvd": "Boulevard",
    "Dept": "Department",
    "dept": "department",
    "c/o": "care of",
    "approx": "approximately",
}
_DAYS = {
    "Mon": "Monday",
    "Tue": "Tuesday",
    "Tues": "Tuesday",
    "Wed": "Wednesday",
    "Thu": "Thursday",
    "Thurs": "Thursday",
    "Fri": "Friday",
    "Sat": "Saturday",
    "Sun": "Sunday",
}
_MONTH = "Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec"
_LONE_UNITS = "km/h|km|cm|mm|kg|mg|ml|lbs|mph|kWh|[kMG]Hz"
"""These always mean units, even without a number."""
_units = "|".join(sorted(map(re.escape, _UNITS), key=len, reverse=True))
_quantity = r"\d[\d,]*(?:\.\d+)?"
_Rewriting = tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]


def rewritten(text: str, day_first: bool = False) -> str:
    """Rewrite a text for the grammars.

    Args:
        day_first: read 3/4/2025 as 3 April.
    """
    text = _ascii_digits(text).translate(_BEFORE)
    text = _LONG.sub(lambda match: spelled(match[0]), text)
    text = _DATE.sub(lambda match: _date(match, day_first), text)
    for pattern, replacement in _REWRITINGS:
        text = pattern.sub(replacement, text)
    return text


def _ascii_digits(text: str) -> str:
    """Write digits of all scripts, and fractions, in the forms that the grammars know."""
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
    """Read a telephone number digit by digit, with a pause between its groups."""
    return _dialled(match[0])


def _dialled(number: str) -> str:
    groups = ", ".join(" ".join(group) for group in re.findall(r"\d+", number))
    return f"plus {groups}" if number[0] == "+" else groups


def _joined(match: re.Match[str]) -> str:
    """Write a number that has spaces between thousands with commas."""
    return f"{int(''.join(match[0].split())):,}"


def _single(match: re.Match[str]) -> str:
    """`a 5 km run`: a unit in an adjective is singular."""
    article, number, unit = match.groups()
    one = read(f"1 {unit}").removeprefix("one ")
    if unit in _UNITS:
        one = _UNITS[unit].removesuffix("s")
    return f"{article} {number} {one}" if one.replace(" ", "").isalpha() else match[0]


def _lone(match: re.Match[str]) -> str:
    """Write out a unit without a number."""
    if match.string[: match.start()].endswith(("per ", "each ")):
        return read(f"1 {match[1]}").removeprefix("one ")
    return read(f"2 {match[1]}").removeprefix("two ")


def _powered(match: re.Match[str]) -> str:
    exponent = unicodedata.normalize("NFKC", match[1]).lstrip("^").replace("\N{MINUS SIGN}", "-")
    return {"2": " squared", "3": " cubed"}.get(exponent, f" to the power of {exponent}")


def _date(match: re.Match[str], day_first: bool) -> str:
    """Rewrite a date for the grammars, which read the day first and need a four-digit year."""
    first, _, second, year = match.groups()
    one, two = int(first), int(second)
    if not (0 < min(one, two) <= 12 and max(one, two) <= 31):
        return match[0]
    if one <= 12 and (two > 12 or not day_first):
        one, two = two, one
    if len(year) == 2:
        year = f"{'20' if int(year) < 50 else '19'}{year}"
    return f"{one}/{two}/{year}"


def _address(match: re.Match[str]) -> str:
    octets = [int(number) for number in match[0].split(".")]
    return " dot ".join(map(octet, octets)) if max(octets) < 256 else match[0]


_LONG = re.compile(r"\d{16,}")  # too long to be said as a number
_DATE = re.compile(r"(?<![\d/-])(\d{1,2})([/-])(\d{1,2})\2(\d{4}|\d{2})(?![\d/-]|\.\d)")
_TELEPHONE = (
    r"(?:[Cc]all|[Dd]ial|[Rr]ing|[Tt]ext|[Ff]ax|[Pp]hone|[Tt]el(?:ephone)?|[Cc]ell|[Mm]obile)"
)
_EMERGENCY = "000|110|111|112|119|311|411|911|988|999"

_REWRITINGS: tuple[_Rewriting, ...] = (
    (re.compile(r"\bhttps?://"), ""),
    (re.compile(r"(?<=\w)\?(?=\w+=)"), " question mark "),
    (re.compile(r"(\blocalhost|\w\.\w+):(?=\d{2,5}\b)"), r"\1 colon "),
    (re.compile(r"(?<!\S)\.(?=[A-Za-z])"), "dot "),
    (re.compile(r"\bI\.e\.,?"), "That is"),
    (re.compile(r"\bE\.g\.,?"), "For example"),
    (re.compile(r"(?<!\d )(?<![\d.])\b([ap])\.m\."), r"\1 m"),
    (re.compile(r"\b(Mr|Mrs|Ms|Dr|Prof)(?= [A-Z])"), r"\1."),
    (re.compile(rf"\b({'|'.join(_WITHOUT_DOT)})\b(?:\.(?= ))?"), lambda m: _WITHOUT_DOT[m[1]]),
    (
        re.compile(rf"\b({'|'.join(_ABBREVIATIONS)})\. ?(?=[A-Z\d(+])"),
        lambda match: f"{_ABBREVIATIONS[match[1]]} ",
    ),
    (
        re.compile(rf"\b({'|'.join(_DAYS)})\.(?=,? (?:\d|{_MONTH}))"),
        lambda match: _DAYS[match[1]],
    ),
    (re.compile(rf"(?<![\w/.,-])(?<![\d½¼¾] )({_LONE_UNITS})(?![\w/²³])"), _lone),
    (re.compile(r"(?<!\d)(?<!\d )°([CF])\b"), lambda m: f" {_UNITS['°' + m[1]]}"),
    (
        re.compile(
            rf"\b({_TELEPHONE}[.:]? )((?:\d{{3}}-\d{{4}}|{_EMERGENCY}|\d{{7,15}})(?![\d-]))"
        ),
        lambda match: match[1] + _dialled(match[2]),
    ),
    (re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w-]|\.\d)"), _address),
    (re.compile(r"#(?=\d)"), "number "),
    (re.compile(r"\+\d[\d ().-]{6,18}\d|(?<![\d-])\d{1,9}(?:-\d{1,9}){3,5}(?![\d-])"), _spaced),
    (re.compile(r"\b0\d{1,4}(?: \d{3,8}){1,3}\b|\b0\d(?: \d\d){4}\b"), _spaced),
    (
        re.compile(
            r"(?<![\d.,])(?<!\d )[1-9]\d{0,2}"
            r"(?:(?: \d{3}){2,4}|(?:[\u00a0\u202f]\d{3}){1,4})(?! ?\d)"
        ),
        _joined,
    ),
    (re.compile(r"\bw/(o\b)?(?= ?[a-z])"), lambda match: "without" if match[1] else "with "),
    (re.compile(r"\bPh\.D\.?"), "PhD"),
    (re.compile(r"(?<=\d) s\b|(?<=\.\d)s\b"), " seconds"),
    (
        re.compile(
            r"(?<=[\dA-Za-z)])(\^-?\d{1,4}\b|[⁻⁰¹²³⁴-⁹]*[⁰¹⁴-⁹][⁰¹²³⁴-⁹]*|⁻[²³]|(?<=\d)[²³])"
        ),
        _powered,
    ),
    (re.compile(r"(?<=\d)[×✕](?=\d)"), " × "),
    (
        re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)[eE]([+-]?)(\d{1,3})\b"),
        lambda m: f"{m[1]} times 10 to the power of {'minus ' if m[2] == '-' else ''}{m[3]}",
    ),
    (re.compile(r"(?<=\d) ?in\.(?= [a-z])|(?<=\d)in\b"), " inches"),
    (re.compile(r"(?<=\d\d)K\b"), " thousand"),
    (re.compile(r"([$€£])(\d+),(\d\d)(?![\d,])"), r"\1\2.\3"),
    (re.compile(r"(?<![\w.])(?:-([$€£¥₹])|([$€£¥₹])-)(?=\d)"), r"minus \1\2"),
    (re.compile(rf"([{_RARE_MONEY}]) ?({_quantity})"), r"\2 \1"),
    (re.compile(rf"({_quantity}) ?([€£₹])"), r"\2\1"),
    (re.compile(rf"({_quantity}) (USD|EUR|GBP|CHF|JPY|INR)\b"), r"\2 \1"),
    (re.compile(rf"([$€£₹])({_quantity}) ?[-–] ?(?=\d)"), r"\2 to \1"),
    (
        re.compile(rf"\b([Aa]n?) ([$€£])({_quantity})((?: (?:thousand|[mbtr]+illion))?)(?= [a-z])"),
        lambda match: f"{match[1]} {match[3]}{match[4]} {_MONEY[match[2]]}",
    ),
    (re.compile(rf"\b([Aa]n?) ({_quantity})[ -]?([A-Za-zµΩ°²³/]{{1,6}})(?=[ )]|$)"), _single),
    (
        re.compile(rf"({_quantity}) ?({_units})(?![\w/²³])"),
        lambda match: f"{match[1]} {_UNITS[match[2]]}",
    ),
    # Otherwise `about 3.14` would be read as a time of day.
    (
        re.compile(
            r"(?<![\d.,:/$€£¥₹])(\d{1,2})\.([0-5]\d)(?!\d|[.:/]\d| ?(?:[ap]\.?m\b|hours|hrs|h\b))"
        ),
        lambda match: f"{match[1]} point {' '.join(match[2])}",
    ),
    (re.compile(r"(\d)'(\d{1,2})\""), r"\1 feet \2 inches"),
)
