"""Reads telephone numbers digit by digit; phonenumbers finds them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from phonenumbers import PhoneNumberMatch

_LEAST_DIGITS = 7
_ASKED = re.compile(
    r"\b(?:call|dial|ring|text|fax|phone|tel(?:ephone)?|cell|mobile)"
    r"(?: me| us)?(?: at| on)?[.:]? \(?$",
    re.IGNORECASE,
)
# phonenumbers knows these by country, and the text's country is unknown.
_EMERGENCY = re.compile(
    r"(?i)\b((?:call|dial|ring|text|phone)[.:]? )"
    r"(000|110|111|112|119|311|411|911|988|999)(?![\d-])"
)

_PART = re.compile(r"[\w.,$€£'+-]$")
"""Ends the beginning of a number, an amount or a code."""


def with_telephones(text: str) -> str:
    """Spell out the digits of telephone numbers, with a pause between groups."""
    text = _EMERGENCY.sub(lambda match: match[1] + dialled(match[2]), text)
    if sum(map(str.isdecimal, text)) < _LEAST_DIGITS:
        return text
    said, read = [], 0
    for found in sorted(_found(text), key=lambda each: each.start):
        if found.start < read:
            continue
        extension = found.number.extension or ""
        number = re.sub(r"\D+$", "", found.raw_string.removesuffix(extension))
        said += [text[read : found.start], dialled(number)]
        if extension:
            said.append(f", extension {' '.join(extension)}")
        read = found.end
    return "".join([*said, text[read:]])


def dialled(number: str) -> str:
    """The digits of each group, one by one."""
    groups = ", ".join(" ".join(group) for group in re.findall(r"\d+", number))
    return f"plus {groups}" if number.startswith("+") else groups


def _found(text: str) -> Iterator[PhoneNumberMatch]:
    from phonenumbers import Leniency, PhoneNumberMatcher

    # Numbers of other countries begin with `+`, or with 0 as in the United Kingdom.
    for country in ("US", "GB"):
        for found in PhoneNumberMatcher(text, country, Leniency.POSSIBLE):
            if _is_meant(found, text[: found.start], country):
                yield found


def _is_meant(found: PhoneNumberMatch, before: str, country: str) -> bool:
    """Whether this is a telephone number, not another number of the same length."""
    written = found.raw_string
    groups = [len(group) for group in re.findall(r"\d+", written)]
    if sum(groups) < _LEAST_DIGITS or written.count("/") > 1 or _PART.search(before):
        return False
    if written.startswith("+") or found.number.extension or _ASKED.search(before):
        return True
    if country == "GB":
        return written.lstrip("(").startswith("0") and sum(groups) > 8 and "." not in written
    return groups[-3:] == [3, 3, 4] or (groups == [3, 4] and written.startswith("555"))
