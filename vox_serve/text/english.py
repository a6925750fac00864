"""Writes English out in words: numbers, money, units, dates, addresses, signs and capitals.

damga's grammars do most of the work, and normt2s reads formulas.  This module prepares text for
damga and repairs its output.  Each rule has an example in the tests.
"""

from __future__ import annotations

# ruff: noqa: RUF001 - quotation marks of all kinds
import re
from functools import lru_cache
from typing import TYPE_CHECKING

from vox_serve.text.capitals import capitals
from vox_serve.text.grammar import number, read
from vox_serve.text.quantities import rewritten
from vox_serve.text.sentences import Sentences
from vox_serve.text.signs import without_signs

if TYPE_CHECKING:
    from normt2s import Normalizer

MONTH_FIRST = ("en", "en-us", "en-ph")
"""Language tags in which 3/4/2025 means March 4."""
_LONGEST = 400
"""Most characters passed to damga at once: it holds the interpreter lock while it works."""
_LONGEST_FORMULA = 400
"""normt2s takes quadratic time for nested matrices."""

_AROUND = "\"'“”‘’()[]*"
_PLAIN_WORD = re.compile(r"[A-Za-z]?[a-z]*(?:['’-][a-z]+)*[,;:]?")
_SHORT_FORM = re.compile(
    r"[b-df-hj-np-tv-xz]+|etc|inc|dept|approx|ca|est|ext|tel|ver|mi|cf|viz|i{2,3}|iv|vi{1,3}|ix"
    r"|[a-z]-th"
)
"""Lower-case words that are not said as written."""
_INITIALISM = re.compile(r"\W*(?:[^\W\d]\.)+[^\W\d]?\W*")
_INNER_DOT = re.compile(r"(?<=[^\W\d])\.(?=\w)|(?<=\w)\.(?=[^\W\d])")
_LOOSE_DIGITS = str.maketrans(
    {chr(0x2080 + n): str(n) for n in range(10)}
    | {chr(0x2460 + n): f" {n + 1} " for n in range(20)}
)
"""Subscripts (H₂O) and numbers in circles; the grammars know neither."""
_OPERATORS = (
    ("->", " → "),
    ("=>", " → "),
    ("§§", " sections "),
    ("!=", " ≠ "),
    ("<=", " ≤ "),
    (">=", " ≥ "),
)
# emot's list of emoticons has not been updated since 2021, and contains `8)` and `D:`.
_EMOTICON = re.compile(
    r"(?<!\S)(?:[:;=][-'’^o]?[()\[\]DPpOo/\\|*3$]|<3|[>(]{0,2}[\^<>TOo;@=-][_.][\^<>TOo;@=-][)>]{0,2}"
    r"|\\?¯\\?_\(ツ\)_/¯)(?!\S)"
)
_DIGITS = re.compile(r"\d[\d,.]*\d|\d")


def words(text: str, spells: bool, tag: str = "en") -> str:
    """Write out everything that is not a word; keep line ends.

    Args:
        spells: also write out signs, capitals and abbreviations, for a voice that knows only
            letters; otherwise the model reads them.
        tag: the language tag; unless it is in `MONTH_FIRST`, dates have the day before the month.
    """
    day_first = tag not in MONTH_FIRST
    return "\n".join(
        " ".join(_sentence(sentence, spells, day_first) for sentence in _sentences(line))
        for line in text.split("\n")
    )


def formula(latex: str) -> str:
    """LaTeX, without its delimiters, in words; unchanged if it is malformed or too long."""
    latex = " ".join(latex.split())
    if not latex or len(latex) > _LONGEST_FORMULA:
        return latex
    said: str = _formulas().normalize(f"${latex}$")
    return said.removeprefix("$").removesuffix("$")


@lru_cache(1)
def _formulas() -> Normalizer:
    from normt2s import Normalizer

    return Normalizer("en")


def _sentences(line: str) -> list[str]:
    reader = Sentences(_LONGEST)
    return [*reader.feed(line), *reader.flush()]


def _sentence(sentence: str, spells: bool, day_first: bool) -> str:
    if _is_plain(sentence):
        return sentence
    sentence = sentence.translate(_LOOSE_DIGITS)
    if spells:
        sentence = _EMOTICON.sub("", sentence)
        for written, sign in _OPERATORS:
            sentence = sentence.replace(written, sign)
    spoken = read(rewritten(sentence, day_first))
    if sentence.endswith("."):
        spoken = re.sub(r" dot\.?$", ".", spoken)  # after an address at the end
    spoken = " ".join(map(_mended, spoken.split())).replace(" 's", "'s")
    return without_signs(capitals(spoken) if spells else spoken, spells)


def _is_plain(sentence: str) -> bool:
    """Whether there is nothing to write out: every word is in lower case or only capitalised.

    A single capital may be a numeral (World War I) or a letter (Plan B).  `A` and `I` are words at
    the beginning and after a word in lower case.
    """
    *others, last = sentence.split()
    previous_small = True
    for word in [*others, last.rstrip(".!?…")]:
        bare = word.strip(_AROUND)
        if not _PLAIN_WORD.fullmatch(bare) or _SHORT_FORM.fullmatch(bare.lower()):
            return False
        single = bare[:1].isupper() and len(bare.rstrip(",;:")) == 1
        if single and (not previous_small or bare[0] not in "AI"):
            return False
        previous_small = not bare[:1].isupper()
    return True


def _mended(word: str) -> str:
    """Write out what the grammars left of an address, a version, a ratio or a code."""
    if word.isalpha() or _INITIALISM.fullmatch(word):
        return word
    word = _INNER_DOT.sub(lambda m: " point " if m.string[m.end()].isdecimal() else " dot ", word)
    word = re.sub(r"(?<=\d):(?=\d)", " to ", word)
    return _DIGITS.sub(lambda match: f" {number(match[0])} ", word).strip()
