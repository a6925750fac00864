"""Damaged configurations: with any of them, loading must end quickly with one clear line."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from vox_serve.errors import VoxServeError

WRONG: tuple[Any, ...] = (
    10**9, 10**30, 50_000, 500, -1, 0, 0.5, float("nan"), "7", [], {}, True,
)  # fmt: skip
"""Huge, large, negative, zero, and of the wrong type."""


def check_damaged(
    file: Path,
    config: Mapping[str, Any],
    load: Callable[[], object],
    wrong: Sequence[Any] = WRONG,
    every: bool = True,
) -> int:
    """Replace each number of a configuration by wrong values, and load the checkpoint.

    Args:
        file: the configuration; damaged ones are written there as JSON, then the given one.
        config: its content.
        load: loads the checkpoint, as the server does.
        every: try every value for every number; otherwise each number gets one of them.

    Returns:
        how many were refused.

    Raises:
        AssertionError: one gave neither a model nor a one-line VoxServeError.
    """
    refused = 0
    for number, place in enumerate(_numbers(config)):
        for value in wrong if every else [wrong[number % len(wrong)]]:
            file.write_text(json.dumps(_with(config, place, value)), encoding="utf-8")
            try:
                load()
            except VoxServeError as error:
                refused += 1
                if "\n" in str(error):
                    pytest.fail(f"{place}: {value!r}: more than one line: {error}")
            except BaseException as error:  # noqa: BLE001
                pytest.fail(f"{'.'.join(map(str, place))}: {value!r}: {error!r}")
    file.write_text(json.dumps(config), encoding="utf-8")
    return refused


def _with(config: Mapping[str, Any], place: tuple[str, ...], value: Any) -> Any:
    changed: Any = copy.deepcopy(config)
    table = changed
    for key in place[:-1]:
        table = table[key]
    table[place[-1]] = value
    return changed


def _numbers(tree: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The paths of all numbers, and of lists, which count as numbers."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, (*above, key))
        elif isinstance(value, list | int | float) and not isinstance(value, bool):
            yield (*above, key)
