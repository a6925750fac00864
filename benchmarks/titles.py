"""The titles of columns in the page and the picture, and the design's targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs

FRAME_SECONDS = 0.08
COLUMNS: Mapping[str, str] = {
    "vox_serve_float16": "vox_serve",
    "vox_serve_bfloat16": "vox_serve, bfloat16",
    "vox_serve_int8": "vox_serve, int8",
    "transformers": "transformers",
    "transformers_compiled": "transformers, compiled",
    "moshi": "moshi",
}
SETTINGS: Mapping[str, str] = {
    "demo": "The demo voice",
    "full": "CSM at full size, random weights",
}


@attrs.frozen
class Target:
    """A target of the design.

    Args:
        name: the figure and its target.
        setting: whose results are read.
        read: takes those results; returns the measurement in words, and whether the target is met.
    """

    name: str
    setting: str
    read: Callable[[Mapping[str, Any]], tuple[str, bool]]


def real_time(batch: int, frame: float) -> float:
    """Seconds of audio per second, all rows together."""
    return batch * FRAME_SECONDS / frame


def _frame(column: str, most: float) -> Callable[[Mapping[str, Any]], tuple[str, bool]]:
    def read(result: Mapping[str, Any]) -> tuple[str, bool]:
        frame, share = result["batches"]["1"][column]["frame"][0], result["floor"][column]["share"]
        return f"{frame:.3f} s, {100 * share:.0f} %", frame <= most or share >= 0.8

    return read


def _aggregate(result: Mapping[str, Any]) -> tuple[str, bool]:
    rate = real_time(16, result["batches"]["16"]["vox_serve_float16"]["frame"][0])
    return f"{rate:.2f}x", rate >= 2


def _single(result: Mapping[str, Any]) -> tuple[str, bool]:
    factor = result["served"]["single"]["real_time_factor"][0]
    return f"{factor:.3f}", factor <= 0.15


def _clients(result: Mapping[str, Any], count: int) -> Mapping[str, Any]:
    loops: list[dict[str, Any]] = result["served"]["closed_loop"]
    return next(loop for loop in loops if loop["load"] == count)


def _underruns(result: Mapping[str, Any]) -> tuple[str, bool]:
    loop = _clients(result, 8)
    return (
        f"{loop['underruns']} in {loop['ok']} requests",
        loop["underruns"] == 0 and loop["ok"] == loop["requests"],
    )


def _first_audio(result: Mapping[str, Any]) -> tuple[str, bool]:
    p95 = _clients(result, 4)["first_audio"]["p95"]
    if p95 is None:
        return "no sound", False
    return f"{1000 * p95:.0f} ms", p95 <= 0.150


TARGETS = (
    Target("demo voice over HTTP: time over audio 0.15 or less at batch 1", "demo", _single),
    Target("demo voice over HTTP: eight live streams without an underrun", "demo", _underruns),
    Target(
        "demo voice over HTTP: first audio p95 of 150 ms or less, four clients",
        "demo",
        _first_audio,
    ),
    Target(
        "full size, float16: 0.60 s per frame at batch 1, or 80 % of the floor",
        "full",
        _frame("vox_serve_float16", 0.60),
    ),
    Target("full size, bfloat16: likewise", "full", _frame("vox_serve_bfloat16", 0.60)),
    Target(
        "full size, int8: 0.35 s per frame at batch 1, or 80 % of the floor",
        "full",
        _frame("vox_serve_int8", 0.35),
    ),
    Target("full size: 2x real time in aggregate at batch 16", "full", _aggregate),
)
