"""damga's grammars: what they read, and single numbers."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache


@lru_cache(1)
def _grammar() -> Callable[[str], str]:
    from damga import Normalizer

    normalise: Callable[[str], str] = Normalizer("tn", "en").normalize
    return normalise


def read(text: str) -> str:
    return _grammar()(text) or text


@lru_cache(256)
def number(digits: str) -> str:
    """Digits that stand alone, in words."""
    said = read(digits)
    if any(map(str.isdecimal, said)):
        said = " ".join(read(c) if c.isdecimal() else "," for c in digits)
    return said
