"""Puts units of measure into words.  pint parses them; it knows all prefixes and quotients."""

from __future__ import annotations

# ruff: noqa: SIM905 - lists of symbols read best as plain text
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from pint import UnitRegistry

_OTHERWISE = dict(  # units that pint does not know or gives another name
    pair.split(" = ")
    for pair in """bpm = beats per minute, bps = bits per second, cu ft = cubic feet,
    dpi = dots per inch, fl oz = fluid ounces, fps = frames per second, Gb = gigabits,
    KB = kilobytes, kbps = kilobits per second, kn = knots, kΩ = kilohms,
    L/100 km = liters per hundred kilometers, Mb = megabits, mmHg = millimeters of mercury,
    mo = months, mos = months, mpg = miles per gallon, Nm = newton meters,
    ppm = parts per million, ppb = parts per billion, psi = pounds per square inch, px = pixels,
    rpm = revolutions per minute, wk = weeks, wks = weeks""".replace("\n   ", "").split(", ")
)
_LONE = frozenset(
    "J L Pa bar cal cc cd cl cm dB dl dm eV ft g gal hPa ha hp kB kHz kJ kN kPa kV kVA kW kWh kbit"
    " kcal keV kg km l lb lbs lm lx mA mAh mK mL mT mV mW mbar mg mi min ml mm mol mph ms mSv nm"
    " nmi ns oz qt rad tbsp tsp yd yr yrs GB GHz GW GWh Gbit GiB Hz KiB MB MHz MPa MW MWh MV Mbit"
    " MiB PB Sv TB THz TWh TiB VA Wh Ω °C °F".split()
)
"""Units after a number.  pint knows more, and some of them are words: `5 pm`, `3 rd`, `1 in`."""
_SHORT = frozenset("m g l L s h d t V A W N J K Ω".split())
"""Letters that are units in a quotient or after an article (`a 5 m wall`); others are not."""
_PLURALS = {"foot": "feet", "inch": "inches"} | {
    same: same for same in ("hertz", "siemens", "lux", "horsepower")
}
_SINGULARS = {plural: single for single, plural in _PLURALS.items()}
_POWERS = {1: "", 2: "square ", 3: "cubic "}
_TAIL = re.compile(r" (?:per|of|Celsius|Fahrenheit|squared|cubed)\b")
ALWAYS = "km/h|km|cm|mm|kg|mg|ml|lbs|mph|kWh|[kMG]Hz"
"""These mean units even without a number."""
SYMBOL = (
    r"[lL]/100 ?km|fl oz|cu ft|sq\.? (?:ft|mi?|km)"
    r"|[A-Za-zµΩ°][A-Za-zµΩ°²³⁻¹·⋅23]{0,11}(?:/\(?[A-Za-zµΩ°²³⁻¹·⋅23]{1,12}\)?){0,2}"
)
"""What may be a unit after a number."""


@lru_cache(1024)
def name(symbol: str, single: bool = False, adjective: bool = False) -> str:
    """A unit in words, e.g. of `kWh/m²`; empty if the symbol is not a unit.

    Args:
        single: after `1`.
        adjective: between an article and a noun, so also singular.
    """
    single = single or adjective
    if symbol.lower().startswith("l/100"):
        symbol = "L/100 km"
    if symbol in _OTHERWISE:
        return _numbered(_OTHERWISE[symbol], single)
    symbol = symbol.replace("sq.", "sq")
    first, *others = symbol.split("/")
    if others:
        below = [_product(other.strip("()"), True) for other in others]
        above = _product(first, single)
        if not above and first.isalpha() and len(first) > 2:
            above = first  # words/min
        return " per ".join([above, *below]) if above and all(below) else ""
    known = symbol in _LONE or symbol.startswith("sq ") or (adjective and symbol in _SHORT)
    if not known and (len(symbol) == 1 or not set(symbol) & set("µ²³·⋅")):
        return ""
    return _product(symbol, single)


def _product(symbols: str, single: bool) -> str:
    """A product of units and powers in words; empty if it is not one."""
    if symbols in _OTHERWISE:
        return _numbered(_OTHERWISE[symbols], single)
    if len(symbols) == 1 and symbols not in _SHORT:
        return ""
    squared = re.sub(r"(?<=[a-z])[23]$", lambda match: "²³"[int(match[0]) - 2], symbols)  # m/s2
    try:
        found = _registry().parse_units(squared.replace("⋅", "·"))
    except Exception:  # noqa: BLE001 - pint raises errors of any kind for what is not a unit
        return ""
    powers = cast("dict[str, float]", dict(found._units))
    said = [_power(unit, power) for unit, power in powers.items()]
    return _numbered(" ".join(said), single) if all(said) else ""


def _power(unit: str, power: float) -> str:
    """A unit to a power; empty if that has no common name."""
    unit = unit.replace("_", " ").replace("ampere", "amp").replace("metric ton", "ton")
    if unit == "second" and power == 2:
        return "second squared"
    return _POWERS[int(power)] + unit if power in _POWERS else ""


def _numbered(said: str, single: bool) -> str:
    """In the singular or the plural, as `said` is."""
    tail = _TAIL.search(said)
    end = tail.start() if tail else len(said)
    head, space, word = said[:end].rpartition(" ")
    one = _SINGULARS.get(word, word.removesuffix("s") if word not in _PLURALS else word)
    ending = next((each for each in _PLURALS if one.endswith(each)), "")
    many = one.removesuffix(ending) + _PLURALS[ending] if ending else f"{one}s"
    return f"{head}{space}{one if single else many}{said[end:]}"


@lru_cache(1)
def _registry() -> UnitRegistry[Any]:
    from pint import UnitRegistry

    return UnitRegistry()
