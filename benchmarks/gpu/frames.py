"""The frame table: milliseconds per frame by batch and context, and as a share of the floor.

A frame's floor is the bytes that it must read, over the bandwidth that was measured in the same
run: weights once, the depth decoder's once for each pass, keys and values of the whole context,
the codec's state.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu.bench import Bench, Skipped, an_engine, free_memory, rewind, speaking, stop
from benchmarks.gpu.timing import bandwidth, spread, synchronize, warm_clocks
from benchmarks.ours import bytes_per_frame
from vox_serve.engine.engine import Engine
from vox_serve.nn import held_bytes
from vox_serve_csm.model import CsmModel

BLOCKS = 5
FP8_CAPABILITY = (8, 9)
FILL = "random keys, values and hidden states, written without a prefill"


def run(bench: Bench) -> None:
    rates = bench.part("bandwidth", lambda: bandwidth(bench.device, bench.scale.buffer_bytes))
    bench.result["filled_with"] = FILL
    warm_clocks(bench.device, bench.scale.warm_seconds)
    for name, quantize in ((bench.scale.dtype, "none"), ("fp8", "fp8")):
        table(bench, name, quantize, rates["best"] if rates else None)


def table(bench: Bench, name: str, quantize: str, rate: float | None) -> None:
    """One model over all batches and contexts; each cell is a part."""
    held: list[CsmModel] = []

    def load() -> dict[str, int]:
        if quantize == "fp8":
            require_fp8(bench.device)
        held.append(bench.model(quantize))
        return {"weight_bytes": held[0].weight_bytes}

    if bench.part(f"{name}, load", load, needs=15) is None:
        return
    scale = bench.scale
    with an_engine(held.pop(), max(scale.batches)) as engine:
        for batch in scale.batches:
            for context in scale.contexts:
                bench.part(
                    f"{name}, batch {batch}, context {context}",
                    lambda b=batch, c=context: cell(engine, b, c, scale.frames, rate),
                    needs=8,
                )
    free_memory()


def require_fp8(device: torch.device) -> None:
    """Raises Skipped."""
    if device.type != "cuda":
        raise Skipped("fp8 is for CUDA")
    capability = torch.cuda.get_device_capability(device)
    if capability < FP8_CAPABILITY:
        raise Skipped(f"compute capability {capability} has no fp8; {FP8_CAPABILITY} has")


def cell(
    engine: Engine, batch: int, context: int, frames: int, rate: float | None
) -> dict[str, Any]:
    """Measure each step separately, a frame of all three, and the engine's whole step, with floors.

    A frame may take less time than its steps together, as the codec runs in parallel with the next
    `advance`.
    """
    rows = speaking(engine, batch, context, 10**6)
    runner = engine.runner

    def frame() -> None:
        for step in (runner.advance, runner.emit, runner.decode):
            step(rows)
        for row in rows:
            row.launched += 1

    runs = {
        "advance": lambda: runner.advance(rows),
        "emit": lambda: runner.emit(rows),
        "codec": lambda: runner.decode(rows),
        "frame": frame,
        "engine_step": engine.step,
    }
    found: dict[str, Any] = {}
    try:
        frame()  # captures, and loads what is loaded lazily
        for name, run in runs.items():
            rewind(engine, rows, context)
            found[name] = spread(blocks(engine.model.device, run, frames))
    finally:
        stop(engine)
    if rate is not None:
        for name, floor in floors(engine, batch, context, rate).items():
            found[name]["floor"] = round(1000 * floor, 4)
            found[name]["share_of_floor"] = round(1000 * floor / found[name]["median"], 3)
    return found


def blocks(device: torch.device, run: Callable[[], object], frames: int) -> list[float]:
    """Seconds per call in blocks of back-to-back calls; `frames` calls in all.

    Uses the host's clock, with the device idle before and after a block, because the steps run on
    several CUDA streams, and events on one of them would miss the others.
    """
    calls = max(1, frames // BLOCKS)
    run()
    seconds = []
    for _ in range(BLOCKS):
        synchronize(device)
        start = time.perf_counter()
        for _ in range(calls):
            run()
        synchronize(device)
        seconds.append((time.perf_counter() - start) / calls)
    return seconds


def floors(engine: Engine, batch: int, context: int, rate: float) -> dict[str, float]:
    """The time in seconds to read each step's bytes, for the batch and context of the cell."""
    model: Any = engine.model
    backbone = held_bytes(model.network.backbone)
    kv = engine.runner.kv
    codec_state = (engine.runner.cache_bytes - kv.num_bytes) // kv.keys.shape[1]
    read = {
        "advance": backbone + batch * context * kv.position_bytes,
        "emit": bytes_per_frame(engine) - backbone,
        # The codec's figure includes its encoder.
        "codec": held_bytes(model.codec._decoder) + batch * codec_state,
    }
    seconds = {name: count / rate for name, count in read.items()}
    return seconds | {"frame": sum(seconds.values())}
