"""Rewrites text that damga's grammars cannot read into forms that they can.

Libraries find and name telephone numbers, money and units.  The rules here use no library: each is
for a notation that libraries do not read or read wrongly, and has an example in the tests.
"""

from __future__ import annotations

# ruff: noqa: RUF001 - this module is about signs
import re
import unicodedata
from collections.abc import Callable
from datetime import datetime
from functools import partial

from vox_serve.text.capitals import roman
from vox_serve.text.grammar import octet, spelled
from vox_serve.text.money import NUMBER, with_money
from vox_serve.text.names import BARE, DAYS, DOTTED, MONTHS, POINTS
from vox_serve.text.telephones import dialled, with_telephones
from vox_serve.text.units import ALWAYS, SYMBOL
from vox_serve.text.units import name as unit

_BEFORE = str.maketrans("−⁄‑‐∕′″μº", "-/--/'\"µ°") | str.maketrans(
    {"℃": "°C", "℉": "°F", "¢": " cents", "№": "No. "}
)
_Step = Callable[[str], str]


def rewritten(text: str, day_first: bool = False) -> str:
    """Rewrite a text for the grammars.

    Args:
        day_first: read 3/4/2025 as 3 April.
    """
    text = _ascii_digits(text).translate(_BEFORE)
    text = _CODE.sub(_code, text)
    text = _DATE.sub(lambda match: _date(match, day_first), text)
    text = _DAY.sub(lambda match: _day(match, day_first), text)
    for step in _STEPS:
        text = step(text)
    return text


_ascii = partial(unicodedata.normalize, "NFKC")


def _ascii_digits(text: str) -> str:
    """Write digits of all scripts, and fractions, in the forms that the grammars know."""
    return text if text.isascii() else "".join(map(_ascii_digit, text))


def _ascii_digit(character: str) -> str:
    if character.isdecimal():
        return str(unicodedata.decimal(character))
    form = _ascii(character)
    if "㍱" <= character <= "㏟":  # units in one character
        return form.replace("2", "²").replace("3", "³")
    if unicodedata.category(character) == "Nl":
        return form.upper()  # Roman numerals
    if unicodedata.category(character) == "No" and "⁄" in form:
        return f" {form}".replace("⁄", "/")
    return form if unicodedata.east_asian_width(character) == "F" else character


def _joined(match: re.Match[str]) -> str:
    """Write a number that has spaces, dots or apostrophes between thousands with commas."""
    whole, _, _, decimals = match.groups()
    number = f"{int(re.sub('[^0-9]', '', whole)):,}"
    return f"{number}.{decimals}" if decimals else number


def _instant(match: re.Match[str]) -> str:
    """A date with a time, as computers write it (ISO 8601)."""
    try:
        at = datetime.fromisoformat(match[0])
    except ValueError:
        return match[0]
    zone = re.sub(r"([+-])0?(\d+):(\d\d)", r"\1 \2 \3", at.tzname() or "").removesuffix(" 00")
    zone = zone.replace("+", " plus").replace("-", " minus")
    seconds = f" and {at.second} seconds" if at.second else ""
    return f"{at:%Y-%m-%d}, {at:%H:%M}{seconds} {zone}".rstrip()


def _code(match: re.Match[str]) -> str:
    """A hexadecimal number, hash or address, one character at a time."""
    said = {":": "colon", "-": ","}
    return " ".join(said.get(c, c.upper()) for c in match[0].lower().removeprefix("0x"))


def _inches(match: re.Match[str]) -> str:
    """`12" wide`, unless the mark closes a quotation; `2 in.`."""
    article, number, mark = match.groups()
    if mark == '"' and match.string.count('"', 0, match.start()) % 2:
        return match[0]
    single = article or number == "1" or "/" in number
    return f"{article or ''}{number} {'inch' if single else 'inches'}"


def _lasting(match: re.Match[str]) -> str:
    """`1h 30m`: hours, minutes and seconds."""
    names = {"h": "hour", "m": "minute", "s": "second"}
    times = re.findall(r"(\d+) ?([hms])", match[0])
    return " ".join(f"{n} {names[unit]}{'' if n == '1' else 's'}" for n, unit in times)


def _powered(match: re.Match[str]) -> str:
    exponent = _ascii(match[1]).lstrip("^").replace("\N{MINUS SIGN}", "-")
    return {"2": " squared", "3": " cubed"}.get(exponent, f" to the power of {exponent}")


def _ordered(one: int, two: int, day_first: bool) -> tuple[int, int] | None:
    """The day and the month of a date, if it can be one."""
    if not (0 < min(one, two) <= 12 and max(one, two) <= 31):
        return None
    return (two, one) if one <= 12 and (two > 12 or not day_first) else (one, two)


def _date(match: re.Match[str], day_first: bool) -> str:
    """Rewrite a date for the grammars, which read the day first and need a four-digit year."""
    date, year = _ordered(int(match[1]), int(match[3]), day_first), match[4]
    if len(year) == 2:
        year = f"{'20' if int(year) < 50 else '19'}{year}"
    return f"{date[0]}/{date[1]}/{year}" if date else match[0]


def _day(match: re.Match[str], day_first: bool) -> str:
    """`on 3/4`: a date without a year."""
    date = _ordered(int(match[2]), int(match[3]), day_first)
    return f"{match[1]} {[*MONTHS.values()][date[1] - 1]} {date[0]}" if date else match[0]


def _address(match: re.Match[str]) -> str:
    octets = [int(number) for number in match[0].split(".")]
    return " dot ".join(map(octet, octets)) if max(octets) < 256 else match[0]


def _measured(match: re.Match[str]) -> str:
    """A number with its unit; after an article it is an adjective (`a 5 km run`)."""
    article, number, symbol = match.groups()
    adjective = bool(article) and match.string[match.end() : match.end() + 1] in (" ", ")", "")
    said = unit(symbol, number == "1", adjective)
    return f"{article or ''}{number} {said}" if said else match[0]


def _any(names: dict[str, str]) -> str:
    return "|".join(map(re.escape, names))


_SPANNED = DAYS | MONTHS
_SCALES = {"K": "thousand", "M": "million", "mn": "million", "B": "billion", "bn": "billion"}
_SIGNS = {"~": "about ", "@": " at ", "#": "number ", ".": "dot ", "?": " question mark "} | {
    "%": " percent", "×": " × ", "✕": " × "
}  # fmt: skip
_CODE = re.compile(
    r"(?<![\w:-])(?:0x[\dA-Fa-f]+|(?=[\d:-]*(?:[A-Fa-f]|::))(?=[A-Fa-f:-]*\d)"
    r"(?:[\dA-Fa-f]{7,40}|[\dA-Fa-f]{0,4}(?::[\dA-Fa-f]{0,4}){2,7}"
    r"|[\dA-Fa-f]{4,12}(?:-[\dA-Fa-f]{4,12}){3,}))(?![\w:-])"
)
_DATE = re.compile(r"(?<![\d/-])(\d{1,2})([/-])(\d{1,2})\2(\d{4}|\d{2})(?![\d/-]|\.\d)")
_DAY = re.compile(
    rf"\b([Oo]n|[Uu]ntil|[Ss]ince|[Dd]ue|(?:{_any(DAYS)})[.,]?) (\d{{1,2}})/(\d{{1,2}})(?![/\d])"
)


def _rule(pattern: str, replacement: str | Callable[[re.Match[str]], str]) -> _Step:
    return partial(re.compile(pattern).sub, replacement)


_STEPS: tuple[_Step, ...] = (
    _rule(r"\d{16,}", lambda m: spelled(m[0])),  # too long to be said as a number
    _rule(r"\b[a-z]{2,8}(?:\+[a-z]{2,8})?://(?:[^\s/@]+@)?", ""),  # and without a password
    _rule(
        r"(?<![\d-])\d{4}-\d\d-\d\d[T ]\d\d:\d\d"
        r"(?::\d\d(?:\.\d{1,9})?)?(?:Z|[+-]\d\d:?\d\d)?(?![\d:-])",
        _instant,
    ),
    _rule(r"(?<![\d-])((?:19|20)\d\d)-(0[1-9])(?![\d-])",
          lambda m: f"{[*MONTHS.values()][int(m[2]) - 1]} {m[1]}"),
    _rule(r"(\blocalhost|\w\.\w+):(?=\d{2,5}\b)", r"\1 colon "),
    _rule(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w-]|\.\d)", _address),
    _rule(r"(?<=\w)@(?=\d)|[~#](?=\d)|(?<!\S)\.(?=[A-Za-z])|(?<=[\w/])\?(?=\w+=)"
          r"|(?<=/\d)%|(?<=\d)[×✕](?=\d)", lambda m: _SIGNS[m[0]]),
    # Card numbers, ISBNs and postal codes.
    _rule(r"(?<![\d-])(?:\d{4}(?:[ -]\d{4}){2,6}(?:[ -]\d{1,3})?|\d{5}-\d{4}"
          r"|\d{1,9}(?:-\d{1,9}){3,5})(?![\d-])", lambda m: dialled(m[0])),
    _rule(r"(?<![\d/])9/11(?![\d/])", "nine eleven"),
    # Ranges of other things than plain numbers.
    _rule(r"\b([A-Z])–(?=[A-Z]\b)", r"\1 to "),
    _rule(r"\b([IVXL]{2,})[-–]([IVXL]{2,})\b", lambda m: f"{roman(m[1])} to {roman(m[2])}"),
    _rule(rf"\b({_any(_SPANNED)})\.?[-–]({_any(_SPANNED)})\b\.?",
          lambda m: f"{_SPANNED[m[1]]} to {_SPANNED[m[2]]}"),
    _rule(r"(?<![\d-])(\d{1,2})[-–](?=\d{1,2}(?::\d\d)? ?[ap]\.?m\b)", r"\1 to "),
    _rule(rf"(?<=\d)(:[0-5]\d(?: ?[ap]m)?|st|nd|rd|th|[kKmM]|°[CF]?|%| ?(?:{ALWAYS}))[-–](?=\d)",
          r"\1 to "),
    # Roman numerals; capitals.py reads the others.
    _rule(r"(?<!\w)\((i{1,3}|iv|vi{0,3}|ix)\)", lambda m: f"({roman(m[1].upper())})"),
    _rule(r"\b([IVXL]{2,})['’]s\b", r"\1 's"),
    # Letters with digits.
    _rule(r"\b([A-Za-z]+\d+(?=-\d)|\d+(?:st|nd|rd|th)(?=-[a-z]))-", r"\1 "),  # i7-12700
    _rule(r"(?<=[A-Za-z\d])([⁰¹²³⁴-⁹]*)([⁺⁻])(?![⁰¹²³⁴-⁹])",  # Ca²⁺
          lambda m: f" {_ascii(m[1])} {'plus' if m[2] == '⁺' else 'minus'} "),
    _rule(r"\b(?=\w*\d[A-Z])(?:[A-Z][a-z]?\d*){3,}\b",  # H2SO4
          lambda m: " ".join(re.findall(r"[A-Z][a-z]?|\d+", m[0]))),
    # Abbreviations.
    _rule(r"\b([A-Za-z])-th\b", r"\1'th"),
    _rule(r"\b(?:[nN]°|no\.|(c)\.(?= ?\d{3,4}\b)) ?(?=\d)",
          lambda m: "circa " if m[1] else "number "),
    _rule(r"(\b[A-Z][a-z]+ )Dr\b\.?(?=$|[,;])", r"\1Drive"),
    _rule(r"\b(Mr|Mrs|Ms|Dr|Prof)(?= [A-Z])", r"\1."),
    _rule(rf"(?<![\w./])({_any(BARE)})\b(?:\.(?= ))?", lambda m: BARE[m[1]]),
    _rule(r"\bw/ ?", "with "),
    _rule(rf"\b({_any(DOTTED)})\. ?(?=[A-Z\d(+])", lambda m: f"{DOTTED[m[1]]} "),
    _rule(rf"\b({_any(_SPANNED)})(?:\.|(?=,))(?=,? (?:\d|{_any(MONTHS)}))",
          lambda m: _SPANNED[m[1]]),
    _rule(rf"(?<![\w/.,-])(?<![\d½¼¾] )({ALWAYS}|°[CF])(?![\w/²³])",
          lambda m: unit(m[1], m.string[: m.start()].endswith(("per ", "each ")))),
    with_telephones,
    _rule(r"\b((?:1-)?\d{3,4}(?:-\d{3})?)-([A-Z]{3,}\b|[A-Z]+-[A-Z]+\b)",  # 1-800-FLOWERS
          lambda m: f"{dialled(m[1])}, {m[2].replace('-', ' ')}"),
    # Thousands in groups.
    _rule(
        r"(?<![\w.,'])([1-9]\d{0,2}(?:(?: \d{3}){2,4}| 0\d\d|(?:[\u00a0\u202f'’]\d{3}){1,4}"
        r"|(?:\.\d{3}){2,4}|(?:\.\d{3}){1,4}(?=,\d\d?(?!\d))))(([.,])(\d{1,2}))?(?![.,]?\d| \d)",
        _joined,
    ),
    _rule(r"(?<![\d,])(\d{1,2}),(\d\d)(?:,(\d\d))?,(\d{3})(?![,\d])", r"\1\2\3\4"),
    with_money,
    # Lengths of time.
    _rule(r"\b\d+ ?(?:h ?\d+ ?m(?: ?\d+ ?s)?|h ?\d+ ?s|m ?\d+ ?s)\b", _lasting),
    _rule(r"\b((?:in|for|after|every|within|[Ww]ait|takes|took) \d{1,3}|(?<![\w'’.])\d{0,2}[1-9]"
          r"|\d+\.\d+)s\b|(?<=\d) s\b", lambda m: f"{m[1] or ''} seconds"),
    # Lengths and angles.
    _rule(r"(\d+)° ?(\d+)'(?: ?(\d+(?:\.\d+)?)\")? ?",
          lambda m: f"{m[1]} degrees {m[2]} minutes " + (f"{m[3]} seconds " if m[3] else "")),
    _rule(r"(\d ?°|minutes|seconds) ?([NSEW])\b", lambda m: f"{m[1]} {POINTS[m[2]]}"),
    _rule(r"(\d)'(?: ?(\d{1,2})\"|(?= (?:tall|high|wide|long|deep)\b))",
          lambda m: f"{m[1]} feet" + (f" {m[2]} inches" if m[2] else "")),
    _rule(r"(\b[Aa]n? )?(?<![\d./])(\d[\d./]*)(\"(?!\w)| ?in\.(?= [a-z]|$)|in\b)", _inches),
    # Numbers.
    _rule(r"(?<![\w.])(144|240|360|480|720|1080|1440|2160|4320)([pi])(\d\d)?\b",
          lambda m: f"{octet(int(m[1]))} {m[2].upper()} {m[3] or ''}"),
    _rule(r"(?<![\w.])(\d+(?:\.\d+)?)[eE]([+-]?)(\d{1,3})\b",
          lambda m: f"{m[1]} times 10 to the power of {'minus ' if m[2] == '-' else ''}{m[3]}"),
    _rule(rf"(?<![\w.,$€£¥₹-])(?:(\d{{2,3}})(K)\b|({NUMBER})"
          r"(bn\b|mn\b|(?<!\b3)M\b|[MB](?= [a-z]{3,}s\b)|(?<=\.\d)B\b))",
          lambda m: f"{m[1] or m[3]} {_SCALES[m[2] or m[4]]}"),
    # Units.
    _rule(rf"(?<![\d,])(\d+),(\d\d?)(?= ?(?:{ALWAYS}|%|°|[mgl])(?![\w/]))", r"\1.\2"),  # 1,5 kg
    _rule(rf"(\b[Aa]n? )?(?<![\w.,$€£])({NUMBER})[ -]?({SYMBOL})(?![\w/²³])", _measured),
    _rule(
        r"(?<=[\dA-Za-z)])(\^-?\d{1,4}\b|[⁻⁰¹²³⁴-⁹]*[⁰¹⁴-⁹][⁰¹²³⁴-⁹]*|⁻[²³]|[²³]{2,}|(?<=\d)[²³])",
        _powered,
    ),
    # Otherwise `about 3.14` would be read as a time of day.
    _rule(
        r"(?<![\d.,:/$€£¥₹])(\d{1,2})\.([0-5]\d)(?!\d|[.:/]\d| ?(?:[ap]\.?m\b|hours|hrs|h\b))",
        lambda m: f"{m[1]} point {' '.join(m[2])}",
    ),
)  # fmt: skip
