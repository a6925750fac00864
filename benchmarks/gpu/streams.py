"""Finds the number of streams that one device can speak in real time.

Every stream has a slot and some context, all are in one batch, and the engine runs freely.  A
stream underruns if its frame n arrives later than 80 ms x n after its first.  No stream joins or
leaves; the HTTP section shows how prefill affects others.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch

from benchmarks.gpu.bench import (
    FRAME_SECONDS,
    Bench,
    an_engine,
    free_memory,
    log,
    one_line,
    speaking,
    stop,
)
from benchmarks.gpu.timing import percentiles, warm_clocks
from vox_serve.bench.figures import percentile
from vox_serve.engine.device import RESERVED_BYTES, free_bytes, slot_bytes
from vox_serve_csm.model import CsmModel

FIRST = 64
WARM_FRAMES = 5
RESOLUTION = 16
OUT_OF_MEMORY = "out_of_memory"
"""The name of the phase in the engine's `Stats`."""


def run(bench: Bench) -> None:
    model = bench.model()
    warm_clocks(bench.device, bench.scale.warm_seconds)
    fit = min(bench.scale.most_streams, slots_that_fit(model, bench.device))
    bench.result["slots_that_fit"] = fit
    trials: dict[str, Any] = bench.result.setdefault("trials", {})

    def real_time(count: int) -> bool:
        try:
            found = trial(bench, model, count)
        except torch.OutOfMemoryError as error:
            found = {"real_time": False, "failed": one_line(error)}
        free_memory()
        trials[str(count)] = found
        bench.write()
        log(f"{count} streams: {found}")
        return bool(found["real_time"])

    def search() -> dict[str, Any]:
        first = min(FIRST, max(1, fit // 2))
        step = RESOLUTION if bench.scale.full_size else 1
        count, whole = largest(real_time, first, fit, step, lambda: bench.left > 20)
        return {"streams": count, "of": fit, "found_whole": whole, "resolution": step}

    bench.part("largest", search, needs=30)


def slots_that_fit(model: CsmModel, device: torch.device) -> int:
    """Slots whose caches, codec state and intermediate results fit the free memory."""
    free = free_bytes(device)
    return 1024 if free is None else int((free - RESERVED_BYTES) // slot_bytes(model))


def largest(
    fits: Callable[[int], bool], first: int, most: int, step: int, goes_on: Callable[[], bool]
) -> tuple[int, bool]:
    """The largest count up to `most` that fits: by doubling, then bisection down to `step`.

    Returns 0 if neither `first` nor any smaller count fits; the second value is False if `goes_on`
    ended the search early.
    """
    low, high, count = 0, most + 1, first
    while goes_on():
        if fits(count):
            low = count
        else:
            high = count
        if high - low <= step or low == most:
            return low, True
        doubled = min(2 * low, most)
        count = doubled if low and doubled < high else (low + high) // 2
    return low, False


def trial(bench: Bench, model: CsmModel, count: int) -> dict[str, Any]:
    """One batch of this many streams; all frames arrive with the step that reads them."""
    frames = bench.scale.stream_frames
    with an_engine(model, count) as engine:
        speaking(engine, count, bench.scale.stream_context, WARM_FRAMES + frames + 2)
        arrivals = []
        while len(arrivals) < WARM_FRAMES + frames:
            stats = engine.step().stats
            if stats.errors:
                kind = torch.OutOfMemoryError if OUT_OF_MEMORY in stats.errors else RuntimeError
                raise kind(f"{len(stats.errors)} streams failed: {stats.errors[0]}")
            if stats.frames:
                assert stats.frames == count, "a stream was left out of a step"
                arrivals.append(time.perf_counter())
        stop(engine)
    arrivals = arrivals[WARM_FRAMES:]
    gaps = [later - earlier for earlier, later in pairwise(arrivals)]
    late = max(at - arrivals[0] - n * FRAME_SECONDS for n, at in enumerate(arrivals))
    in_time = late <= 0 and (percentile(gaps, 99) or 0.0) < FRAME_SECONDS
    return {"real_time": in_time, "gap": percentiles(gaps), "latest_ms": round(1000 * late, 2)}
