"""Profiles a frame on the device: kernels by time, their number, and idle time."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.bench import Bench, an_engine, speaking, stop
from benchmarks.gpu.timing import synchronize, warm_clocks
from vox_serve_csm.model import CsmModel

WARM_FRAMES = 5
TOP = 25


def run(bench: Bench) -> None:
    model = bench.model()
    warm_clocks(bench.device, bench.scale.warm_seconds)
    for batch in bench.scale.profile_batches:
        bench.part(f"batch {batch}", lambda b=batch: profiled(bench, model, b), needs=15)


def profiled(bench: Bench, model: CsmModel, batch: int) -> dict[str, Any]:
    """Some steps of the whole engine: launches, kernels and reads."""
    cuda, frames = bench.device.type == "cuda", bench.scale.profile_frames
    activity = ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU
    with an_engine(model, batch) as engine:
        speaking(engine, batch, bench.scale.stream_context, WARM_FRAMES + frames + 2)
        for _ in range(WARM_FRAMES):
            engine.step()
        synchronize(bench.device)
        with profile(activities=[activity]) as recorded:
            for _ in range(frames):
                engine.step()
            synchronize(bench.device)
        stop(engine)
    kind = DeviceType.CUDA if cuda else DeviceType.CPU
    spans = [
        (event.name, event.time_range.start, event.time_range.end)
        for event in recorded.events()
        if event.device_type == kind
    ]
    return shares(spans, frames)


def shares(spans: list[tuple[str, float, float]], frames: int) -> dict[str, Any]:
    """From (name, begin, end) in microseconds: per frame, and the largest by time."""
    if not spans:
        raise RuntimeError("the profiler saw nothing on the device")
    times: dict[str, float] = defaultdict(float)
    counts = Counter(name for name, _, _ in spans)
    for name, begin, end in spans:
        times[name] += end - begin
    whole = max(end for _, _, end in spans) - min(begin for _, begin, _ in spans)
    ranked = sorted(times, key=times.__getitem__, reverse=True)[:TOP]
    return {
        "kernels_per_frame": round(len(spans) / frames, 1),
        "ms_per_frame": round(whole / frames / 1000, 4),
        "idle_share": round(1 - busy(spans) / whole, 4) if whole else None,
        "top": [
            {
                "kernel": name[:160],
                "ms_per_frame": round(times[name] / frames / 1000, 4),
                "per_frame": round(counts[name] / frames, 1),
            }
            for name in ranked
        ],
    }


def busy(spans: list[tuple[str, float, float]]) -> float:
    """The time during which at least one is running."""
    total, reached = 0.0, float("-inf")
    for _, begin, end in sorted(spans, key=lambda span: span[1]):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total
