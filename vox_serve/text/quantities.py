"""Rewrites quantities, numbers and abbreviations into forms that damga's grammars read well.

Each rule has an example in the tests.
"""

from __future__ import annotations

# ruff: noqa: RUF001 - this module is about signs of units
import re
import unicodedata
from collections.abc import Callable
from datetime import datetime

from vox_serve.text.capitals import roman
from vox_serve.text.grammar import octet, read, spelled
from vox_serve.text.names import (
    ABBREVIATIONS,
    DAYS,
    DOLLARS,
    LONE_UNITS,
    MONEY,
    MONTH,
    MONTHS,
    POINTS,
    RARE_MONEY,
    SCALES,
    SPANNED,
    TIMES,
    UNITS,
    WITHOUT_DOT,
)

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
        "′": "'",
        "″": '"',
        "№": "No. ",
        "μ": "µ",
    }
)
_units = "|".join(sorted(map(re.escape, UNITS), key=len, reverse=True))
_quantity = r"\d[\d,]*(?:\.\d+)?"
_Rewriting = tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]


def rewritten(text: str, day_first: bool = False) -> str:
    """Rewrite a text for the grammars.

    Args:
        day_first: read 3/4/2025 as 3 April.
    """
    text = _ascii_digits(text).translate(_BEFORE)
    text = _CODE.sub(_code, text)
    text = _LONG.sub(lambda match: spelled(match[0]), text)
    text = _DATE.sub(lambda match: _date(match, day_first), text)
    text = _DAY.sub(lambda match: _day(match, day_first), text)
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
    if "㍱" <= character <= "㏟":  # units in one character
        return form.replace("2", "²").replace("3", "³")
    if unicodedata.category(character) == "Nl":
        return form.upper()  # Roman numerals
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


def _reached(match: re.Match[str]) -> str:
    """Read the number after a word such as `call` digit by digit, unless it is a date."""
    digits = sum(map(str.isdecimal, match[2]))
    date = re.fullmatch(r"\d+([/-])\d+\1\d+", match[2]) and digits == 8
    return match[0] if date or not 7 <= digits <= 15 else match[1] + _dialled(match[2])


def _lettered(match: re.Match[str]) -> str:
    """`1-800-FLOWERS`: digits, then words."""
    return f"{_dialled(match[1])}, {match[2].replace('-', ' ')}"


def _joined(match: re.Match[str]) -> str:
    """Write a number that has spaces, dots or apostrophes between thousands with commas."""
    whole, _, _, decimals = match.groups()
    number = f"{int(re.sub('[^0-9]', '', whole)):,}"
    return f"{number}.{decimals}" if decimals else number


def _dollars(match: re.Match[str]) -> str:
    """`A$50`: the country's dollars."""
    return read(match[2]).replace("dollar", f"{DOLLARS[match[1]]} dollar", 1)


def _instant(match: re.Match[str]) -> str:
    """A date with a time, as computers write it (ISO 8601)."""
    try:
        at = datetime.fromisoformat(match[0])
    except ValueError:
        return match[0]
    said = f"{at:%Y-%m-%d}, {at:%H:%M}" + (f" and {at.second} seconds" if at.second else "")
    offset = at.utcoffset()
    if offset is None:
        return said
    hours, minutes = divmod(int(abs(offset.total_seconds())) // 60, 60)
    sign = "minus" if offset.total_seconds() < 0 else "plus"
    zone = f" {sign} {hours}" + (f" {minutes}" if minutes else "") if offset else ""
    return f"{said} UTC{zone}"


def _code(match: re.Match[str]) -> str:
    """A hexadecimal number, hash or address, one character at a time."""
    said = {":": "colon", "-": ","}
    return " ".join(said.get(c, c.upper()) for c in match[0].lower().removeprefix("0x"))


def _primes(match: re.Match[str]) -> str:
    """`12" wide`: inches, unless the mark closes a quotation."""
    article, number = match.groups()
    if match.string.count('"', 0, match.start()) % 2:
        return match[0]
    single = article or number == "1" or "/" in number
    return f"{article or ''}{number} {'inch' if single else 'inches'}"


def _lasting(match: re.Match[str]) -> str:
    """`1h 30m`: hours, minutes and seconds."""
    times = re.findall(r"(\d+) ?([hms])", match[0])
    return " ".join(f"{n} {TIMES[unit]}{'' if n == '1' else 's'}" for n, unit in times)


def _extension(match: re.Match[str]) -> str:
    return f", extension {' '.join(match[1])}"


def _angle(match: re.Match[str]) -> str:
    degrees, minutes, seconds = match.groups()
    said = f"{degrees} degrees {minutes} minutes "
    return f"{said}{seconds} seconds " if seconds else said


def _charge(match: re.Match[str]) -> str:
    digits, sign = unicodedata.normalize("NFKC", match[1]), match[2]
    return f" {digits} {'plus' if sign == '⁺' else 'minus'} "


def _unit(unit: str, single: bool) -> str:
    first, *others = UNITS[unit].split()
    return " ".join([first.removesuffix("s") if single else first, *others])


def _single(match: re.Match[str]) -> str:
    """`a 5 km run`: a unit in an adjective is singular."""
    article, number, unit = match.groups()
    if unit in ("st", "nd", "rd", "th"):
        return match[0]
    one = read(f"1 {unit}").removeprefix("one ")
    if unit in UNITS:
        one = _unit(unit, True)
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


def _day(match: re.Match[str], day_first: bool) -> str:
    """`on 3/4`: a date without a year."""
    one, two = int(match[2]), int(match[3])
    month, day = (two, one) if day_first or one > 12 else (one, two)
    if not (0 < month <= 12 and 0 < day <= 31):
        return match[0]
    return f"{match[1]} {[*MONTHS.values()][month - 1]} {day}"


def _address(match: re.Match[str]) -> str:
    octets = [int(number) for number in match[0].split(".")]
    return " dot ".join(map(octet, octets)) if max(octets) < 256 else match[0]


_CODE = re.compile(
    r"(?<![\w:-])(?:0x[\dA-Fa-f]+|(?=[\d:-]*(?:[A-Fa-f]|::))(?=[A-Fa-f:-]*\d)"
    r"(?:[\dA-Fa-f]{7,40}|[\dA-Fa-f]{0,4}(?::[\dA-Fa-f]{0,4}){2,7}"
    r"|[\dA-Fa-f]{4,12}(?:-[\dA-Fa-f]{4,12}){3,}))(?![\w:-])"
)
_LONG = re.compile(r"\d{16,}")  # too long to be said as a number
_DATE = re.compile(r"(?<![\d/-])(\d{1,2})([/-])(\d{1,2})\2(\d{4}|\d{2})(?![\d/-]|\.\d)")
_DAY = re.compile(
    rf"\b([Oo]n|[Uu]ntil|[Ss]ince|[Dd]ue|(?:{'|'.join(DAYS)})[.,]?)"
    r" (\d{1,2})/(\d{1,2})(?![/\d])"
)
_TELEPHONE = (
    r"(?:[Cc]all|[Dd]ial|[Rr]ing|[Tt]ext|[Ff]ax|[Pp]hone|[Tt]el(?:ephone)?|[Cc]ell|[Mm]obile)"
)
_EMERGENCY = "000|110|111|112|119|311|411|911|988|999"

_REWRITINGS: tuple[_Rewriting, ...] = (
    (re.compile(r"\b[a-z]{2,8}(?:\+[a-z]{2,8})?://(?:[^\s/@]+@)?"), ""),  # nor a password
    (
        re.compile(
            r"(?<![\d-])\d{4}-\d\d-\d\d[T ]\d\d:\d\d"
            r"(?::\d\d(?:\.\d{1,9})?)?(?:Z|[+-]\d\d:?\d\d)?(?![\d:-])"
        ),
        _instant,
    ),
    (re.compile(r"\b([A-Z])–(?=[A-Z]\b)"), r"\1 to "),
    (re.compile(r"(\d(?:st|nd|rd|th))-(?=[a-z])"), r"\1 "),
    (re.compile(r"(?<!\w)\((i{1,3}|iv|vi{0,3}|ix)\)"), lambda m: f"({roman(m[1].upper())})"),
    (re.compile(r"(?<![\d/])9/11(?![\d/])"), "nine eleven"),
    (re.compile(r"~(?=\d)"), "about "),
    (re.compile(r"(?<=\w)@(?=\d)"), " at "),
    (re.compile(r"\b([A-Za-z]+\d+)-(?=\d)"), r"\1 "),  # i7-12700
    (re.compile(r"\b([IVXL]{2,})['’]s\b"), r"\1 's"),
    (re.compile(r"\b([IVXL]{2,})[-–](?=[IVXL]{2,}\b)"), r"\1 to "),
    (
        re.compile(r"(?<![\d-])((?:19|20)\d\d)-(0[1-9])(?![\d-])"),
        lambda m: f"{[*MONTHS.values()][int(m[2]) - 1]} {m[1]}",
    ),
    (re.compile(r"\bc\. ?(?=\d{3,4}\b)"), "circa "),
    (re.compile(r"(\b[A-Z][a-z]+ )Dr\b\.?(?=$|[,;])"), r"\1Drive"),
    (re.compile(r"\b[nN]º ?(?=\d)"), "number "),
    (re.compile(r"º(?=[CF]\b)"), "°"),
    (re.compile(r"(?<=[A-Za-z\d])([⁰¹²³⁴-⁹]*)([⁺⁻])(?![⁰¹²³⁴-⁹])"), _charge),
    (
        re.compile(r"\b(?=\w*\d[A-Z])(?:[A-Z][a-z]?\d*){3,}\b"),  # H2SO4
        lambda m: " ".join(re.findall(r"[A-Z][a-z]?|\d+", m[0])),
    ),
    (re.compile(r"(?<=\w)\?(?=\w+=)"), " question mark "),
    (re.compile(r"(\blocalhost|\w\.\w+):(?=\d{2,5}\b)"), r"\1 colon "),
    (re.compile(r"(?<!\S)\.(?=[A-Za-z])"), "dot "),
    (re.compile(r"\bI\.e\.,?"), "That is"),
    (re.compile(r"\bE\.g\.,?"), "For example"),
    (re.compile(r"(?<!\d )(?<![\d.])\b([ap])\.m\."), r"\1 m"),
    (re.compile(r"\b(Mr|Mrs|Ms|Dr|Prof)(?= [A-Z])"), r"\1."),
    (
        re.compile(rf"(?<![\w./])({'|'.join(WITHOUT_DOT)})\b(?:\.(?= ))?"),
        lambda m: WITHOUT_DOT[m[1]],
    ),
    (
        re.compile(rf"\b({'|'.join(ABBREVIATIONS)})\. ?(?=[A-Z\d(+])"),
        lambda match: f"{ABBREVIATIONS[match[1]]} ",
    ),
    (
        re.compile(rf"\b({'|'.join(DAYS)})\.(?=,? (?:\d|{MONTH}))"),
        lambda match: DAYS[match[1]],
    ),
    (re.compile(rf"(?<![\w/.,-])(?<![\d½¼¾] )({LONE_UNITS})(?![\w/²³])"), _lone),
    (re.compile(r"(?<!\d)(?<!\d )°([CF])\b"), lambda m: f" {UNITS['°' + m[1]]}"),
    (re.compile(r"(?<=\d{4}),? (?:x(?=\d)|ext(?:ension|\.)? ?)(\d{1,6})\b"), _extension),
    (
        re.compile(rf"\b({_TELEPHONE}[.:]? )({_EMERGENCY})(?![\d-])"),
        lambda match: match[1] + _dialled(match[2]),
    ),
    (
        re.compile(rf"\b({_TELEPHONE}(?: (?:me|us))?(?: at| on)?[.:]? )([(\d][\d ()/-]{{5,}}\d)"),
        _reached,
    ),
    (
        re.compile(
            r"(?<![\d-])(?:555-\d{4}(?![\d-])|\d{5}-\d{4}(?![\d-])|\d{3}-\d{4}(?=, extension))"
        ),
        _spaced,
    ),
    (re.compile(r"\b((?:1-)?\d{3,4}(?:-\d{3})?)-([A-Z]{3,}\b|[A-Z]+-[A-Z]+\b)"), _lettered),
    (re.compile(r"(?<![\d-])\d{4}(?:[ -]\d{4}){2,6}(?:[ -]\d{1,3})?(?![\d-])"), _spaced),
    (
        re.compile(
            r"(?<![\w.,'])([1-9]\d{0,2}(?:(?: \d{3}){2,4}| 0\d\d|(?:[\u00a0\u202f'’]\d{3}){1,4}"
            r"|(?:\.\d{3}){2,4}|(?:\.\d{3}){1,4}(?=,\d\d?(?!\d))))(([.,])(\d{1,2}))?(?![.,]?\d| \d)"
        ),
        _joined,
    ),
    (re.compile(r"(?<![\d,])(\d{1,2}),(\d\d)(?:,(\d\d))?,(\d{3})(?![,\d])"), r"\1\2\3\4"),
    (re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w-]|\.\d)"), _address),
    (re.compile(r"#(?=\d)|\bno\. ?(?=\d)"), "number "),
    (re.compile(r"\+\d[\d ().-]{6,18}\d|(?<![\d-])\d{1,9}(?:-\d{1,9}){3,5}(?![\d-])"), _spaced),
    (
        re.compile(
            r"(?<!\w)\(?0\d{1,4}\)?(?: \d{3,8}){1,3}\b|\b0\d{2,4}[/-]\d{4,8}\b|\b0\d(?: \d\d){4}\b"
        ),
        _spaced,
    ),
    (re.compile(r"\bw/(o\b)?"), lambda match: "without" if match[1] else "with "),
    (re.compile(r"\bPh\.D\.?"), "PhD"),
    (
        re.compile(r"\b\d+ ?(?:h ?\d+ ?m(?: ?\d+ ?s)?|h ?\d+ ?s|m ?\d+ ?s)\b"),
        _lasting,
    ),
    (
        re.compile(r"\b(in|for|after|every|within|[Ww]ait|takes|took) (\d{1,3})s\b"),
        r"\1 \2 seconds",
    ),
    (re.compile(r"(?<=\d) s\b|(?<=\.\d)s\b"), " seconds"),
    (re.compile(r"(?<![\w'’.])(\d{0,2}[1-9])s\b"), r"\1 seconds"),
    (
        re.compile(r"(?<![\w.])(144|240|360|480|720|1080|1440|2160|4320)([pi])(\d\d)?\b"),
        lambda m: f"{octet(int(m[1]))} {m[2].upper()} {m[3] or ''}",
    ),
    (
        re.compile(
            r"(?<=\d)(:[0-5]\d(?: ?[ap]m)?|st|nd|rd|th|[kKmM]|°[CF]?|%"
            r"| ?(?:km/h|mph|kg|km|cm|mm|[kMG]Hz))[-–](?=\d)"
        ),
        r"\1 to ",
    ),
    (re.compile(r"(?<![\d-])(\d{1,2})[-–](?=\d{1,2}(?::\d\d)? ?[ap]\.?m\b)"), r"\1 to "),
    (
        re.compile(rf"\b({'|'.join(SPANNED)})\.?[-–]({'|'.join(SPANNED)})\b\.?"),
        lambda m: f"{SPANNED[m[1]]} to {SPANNED[m[2]]}",
    ),
    (re.compile(r"(\d+)° ?(\d+)'(?: ?(\d+(?:\.\d+)?)\")? ?"), _angle),
    (re.compile(r"(\d ?°|minutes|seconds) ?([NSEW])\b"), lambda m: f"{m[1]} {POINTS[m[2]]}"),
    (re.compile(r"(?<![\d.,])1 ?in\b\.?(?=[ ,]|$)"), "1 inch"),
    (
        re.compile(
            r"(?<=[\dA-Za-z)])(\^-?\d{1,4}\b|[⁻⁰¹²³⁴-⁹]*[⁰¹⁴-⁹][⁰¹²³⁴-⁹]*|⁻[²³]|[²³]{2,}|(?<=\d)[²³])"
        ),
        _powered,
    ),
    (re.compile(r"(?<=\d)[×✕](?=\d)"), " × "),
    (
        re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)[eE]([+-]?)(\d{1,3})\b"),
        lambda m: f"{m[1]} times 10 to the power of {'minus ' if m[2] == '-' else ''}{m[3]}",
    ),
    (re.compile(r"\bsq\. ?(?=(?:ft|m|mi)\b)"), "sq "),
    (re.compile(r"(\d)' ?(\d{1,2})\""), r"\1 feet \2 inches"),
    (re.compile(r"(\d)'(?= (?:tall|high|wide|long|deep)\b)"), r"\1 feet"),
    (re.compile(r"(\b[Aa]n? )?(?<![\d./])(\d[\d./]*)\"(?!\w)"), _primes),
    (re.compile(r"(\d/\d+) ?%"), r"\1 percent"),
    (re.compile(r"(?<=\d) ?in\.(?= [a-z]|$)|(?<=\d)in\b"), " inches"),
    (re.compile(r"(?<![\w.,$€£-])(\d{2,3})K\b"), r"\1 thousand"),
    (re.compile(r"([$€£]\d[\d,.]*[kKmMbB]?)\+"), r"\1 plus"),
    (
        re.compile(rf"(?<![\d,])(\d+),(\d\d?)(?= ?(?:{LONE_UNITS}|%|°|[mgl])(?![\w/]))"),
        r"\1.\2",  # a decimal comma
    ),
    (re.compile(r"([$€£])(\d+),(\d\d?)(?![\d,])"), r"\1\2.\3"),
    (re.compile(r"\bRs\.? ?(?=\d)"), "₹"),
    (
        re.compile(rf"\b({'|'.join(DOLLARS)})(\${_quantity}(?:[kKmMB]n?\b| [mbtr]+illion\b)?)"),
        _dollars,
    ),
    (
        re.compile(rf"([$€£₹])({_quantity}) ?(T|mn|lakh|crore)\b"),
        lambda m: f"{m[2]} {SCALES.get(m[3], m[3])} {MONEY[m[1]]}s",
    ),
    (
        re.compile(
            rf"(?<![\w.$€£¥₹])({_quantity})"
            r"(bn\b|mn\b|(?<!\b3)M\b|[MB](?= [a-z]{3,}s\b)|(?<=\.\d)B\b)"
        ),
        lambda m: f"{m[1]} {SCALES[m[2]]}",
    ),
    (re.compile(r"(?<![\w.])(?:-([$€£¥₹])|([$€£¥₹])-)(?=\d)"), r"minus \1\2"),
    (re.compile(rf"([{RARE_MONEY}]) ?({_quantity})"), r"\2 \1"),
    (re.compile(rf"({_quantity}) ?([€£₹])"), r"\2\1"),
    (re.compile(rf"({_quantity}) (USD|EUR|GBP|CHF|JPY|INR)\b"), r"\2 \1"),
    (re.compile(rf"([$€£₹])({_quantity}) ?[-–] ?(?=\d)"), r"\2 to \1"),
    (
        re.compile(rf"\b([Aa]n?) ([$€£])({_quantity})((?: (?:thousand|[mbtr]+illion))?)(?= [a-z])"),
        lambda match: f"{match[1]} {match[3]}{match[4]} {MONEY[match[2]]}",
    ),
    (re.compile(rf"\b([Aa]n?) ({_quantity})[ -]?([A-Za-zµΩ°²³/]{{1,6}})(?=[ )]|$)"), _single),
    (
        re.compile(rf"({_quantity}) ?({_units})(?![\w/²³])"),
        lambda match: f"{match[1]} {_unit(match[2], match[1] == '1')}",
    ),
    # Otherwise `about 3.14` would be read as a time of day.
    (
        re.compile(
            r"(?<![\d.,:/$€£¥₹])(\d{1,2})\.([0-5]\d)(?!\d|[.:/]\d| ?(?:[ap]\.?m\b|hours|hrs|h\b))"
        ),
        lambda match: f"{match[1]} point {' '.join(match[2])}",
    ),
)
