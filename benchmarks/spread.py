"""Summarizes a figure over several rounds: median, minimum and maximum."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median


def spread(values: Iterable[float]) -> list[float]:
    """`[median, minimum, maximum]`."""
    found = list(values)
    return [median(found), min(found), max(found)]


def spreads(rounds: Sequence[dict[str, float]]) -> dict[str, list[float]]:
    """The spread of each figure in the rounds."""
    return {name: spread(each[name] for each in rounds) for name in rounds[0]}
