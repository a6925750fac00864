"""Measures time on a device and its memory's speed, and summarizes figures.

On a CPU, the same calls read the host's clock, so every section can be tried without a GPU.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch

from vox_serve.bench.figures import percentile


class Marks:
    """Points in a device's time: CUDA events, or the host's clock on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[Any] = []

    def mark(self) -> None:
        """Mark the time after all work launched so far."""
        if self._device.type != "cuda":
            self._marks.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append(event)

    def spans(self) -> list[float]:
        """Seconds between one mark and the next; waits for the last."""
        pairs = zip(self._marks, self._marks[1:], strict=False)
        if self._device.type != "cuda":
            return [later - earlier for earlier, later in pairs]
        self._marks[-1].synchronize()
        return [earlier.elapsed_time(later) / 1000 for earlier, later in pairs]


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Median, minimum and maximum, in milliseconds."""
    return {
        name: round(1000 * of(seconds), 4)
        for name, of in (("median", median), ("least", min), ("most", max))
    }


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """p50, p95 and p99, in milliseconds; values that occurred (nearest rank)."""
    found = {f"p{p}": percentile(seconds, p) for p in (50, 95, 99)}
    return {name: round(1000 * value, 3) for name, value in found.items() if value is not None}


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def warm_clocks(device: torch.device, seconds: float) -> None:
    """Multiply matrices for some time, because an idle GPU runs at a fraction of its clock rate."""
    size = 4096 if device.type == "cuda" else 64
    matrix = torch.rand(size, size, device=device)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for _ in range(10):
            matrix @ matrix
        synchronize(device)


def bandwidth(device: torch.device, num_bytes: int, repeats: int = 20) -> dict[str, float]:
    """Bytes per second of the device's memory, by a copy (read and written) and by a sum (read).

    Medians; `best` is the larger one, and the floors of the frame table use it.

    Args:
        num_bytes: of each of two buffers; much larger than the caches.
    """
    source = torch.rand(num_bytes // 4, device=device)
    target = torch.empty_like(source)
    rates = {}
    for name, run, moved in (
        ("copy", lambda: target.copy_(source), 2 * source.nbytes),
        ("read", source.sum, source.nbytes),
    ):
        for _ in range(3):
            run()
        marks = Marks(device)
        for _ in range(repeats):
            marks.mark()
            run()
        marks.mark()
        rates[name] = moved / median(marks.spans())
    return rates | {"best": max(rates.values())}
