"""Reads money: CLDR's names of currencies (Babel) where damga's grammars have none."""

from __future__ import annotations

# ruff: noqa: RUF001, SIM905 - this module is about signs; lists of codes read best as plain text
import re
import unicodedata
from functools import lru_cache

NUMBER = r"\d+(?:,\d+)*(?:\.\d+)?"
_SCALES = {
    "k": "thousand", "m": "million", "mn": "million", "b": "billion", "bn": "billion",
    "t": "trillion", "tn": "trillion",
}  # fmt: skip
_CODES = (
    "AUD BRL CAD CHF CNY CZK DKK EUR GBP HKD HUF IDR ILS INR JPY KRW MXN NOK NZD PLN RUB SEK SGD"
    " THB TWD UAH USD VND ZAR".split()
)
"""Others also mean something else before a number: `PHP 8`, `COP 28`."""
_SHORT_NAMES = {
    "$": "dollar", "US$": "dollar", "USD": "dollar", "€": "euro", "EUR": "euro", "£": "pound",
    "GBP": "pound", "₹": "rupee", "INR": "rupee", "¥": "yen", "JPY": "yen",
}  # fmt: skip
_READ = {"US$": "$", "USD": "$", "EUR": "€", "GBP": "£", "INR": "₹", "JPY": "¥", "CHF": "CHF "} | {
    sign: sign for sign in "$€£₹¥₩"
}
"""damga reads these signs, with the names of cents and pence."""
_ALSO = {"C$": "CAD", "S$": "SGD"}
"""Signs that CLDR does not list for English."""
_SIGN = rf"(?<![A-Za-z])(?:[A-Z]{{1,3}}\$|[$€£¥฿₠-₿]|Rs\b\.?|{'|'.join(_CODES)})"
_SCALE = r"(?:thousand|[mbtr]+illion|lakh|crore|[kKmMbB]n?|tn|T)\b"
_MONEY = re.compile(
    rf"(?P<article>\b[Aa]n? )?(?P<minus>(?<!\w)-)?(?:"
    rf"(?P<sign>{_SIGN}) ?(?P<less>-)?(?P<number>{NUMBER})(?: ?(?P<scale>{_SCALE}))?(?P<more>\+)?"
    rf"|(?<![\w.,$€£¥₹-])(?P<amount>{NUMBER})(?P<times> ?{_SCALE})?"
    rf" ?(?P<after>[€£₹₠-₿]|(?:{'|'.join(_CODES)})\b))"
)
_SPAN = re.compile(rf"([$€£₹])({NUMBER}) ?[-–] ?(?=\d)")
_SPANS = re.compile(rf"([$€£₹]{NUMBER} ?(?:{_SCALE})?)[-–](?=[$€£₹])")


def with_money(text: str) -> str:
    """Name currencies that damga does not know; move those it knows to where it finds them."""
    return _MONEY.sub(_named, _SPAN.sub(r"\2 to \1", _SPANS.sub(r"\1 to ", text)))


def _named(match: re.Match[str]) -> str:
    sign = match["sign"] or match["after"]
    number = match["number"] or match["amount"]
    scale = (match["scale"] or match["times"] or "").strip()
    sign = "₹" if sign.startswith("Rs") else sign
    if re.fullmatch(r"\d+,\d\d?", number):  # a decimal comma
        number = number.replace(",", ".")
    scale = _SCALES.get(scale.lower(), scale)
    said = f"{number} {scale}".strip()
    minus = "minus " if match["minus"] or match["less"] else ""
    single, plural = _names(sign)
    if match["article"] and re.match(r" [a-z]", match.string[match.end() :]):
        return f"{match['article']}{said} {single}"
    whole, _, cents = number.partition(".")
    if sign in _READ and not scale:
        said = f"{_READ[sign]}{number}"
    elif len(cents) == 2 and not scale and plural.endswith("dollars"):
        dollars = f"{whole} {single if whole == '1' else plural} " if int(whole) else ""
        said = f"{dollars}{cents} cents"
    else:
        said = f"{said} {single if said == '1' else plural}"
    return f"{match['article'] or ''}{minus}{said}{' plus' if match['more'] else ''}"


@lru_cache(256)
def _names(sign: str) -> tuple[str, str]:
    """The name of a currency, singular and plural."""
    if name := _SHORT_NAMES.get(sign):
        return name, name if name == "yen" else f"{name}s"
    from babel import Locale
    from babel.numbers import get_currency_name

    signs = {sign: code for code, sign in Locale("en").currency_symbols.items()} | _ALSO
    code = signs.get(sign, sign)
    if code in Locale("en").currencies:
        return get_currency_name(code, 1, "en"), get_currency_name(code, 2, "en")
    if sign.endswith("$"):
        return f"{sign[:-1]} dollar", f"{sign[:-1]} dollars"
    name = unicodedata.name(sign, "").lower().removesuffix(" sign")
    return name, name
