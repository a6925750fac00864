"""Compares other engines with ours, on the same device, in the same process, one after another.

All use the same dtype, text and number of frames, and the same random weights if they can read
them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from importlib.util import find_spec
from statistics import median
from typing import Any

import torch

from benchmarks.gpu.bench import (
    TEXT,
    Bench,
    Skipped,
    an_engine,
    free_memory,
    request,
)
from benchmarks.gpu.timing import warm_clocks
from vox_serve.engine.engine import Engine
from vox_serve.messages import Audio
from vox_serve_csm.model import CsmModel

FIGURES = ("first_audio", "frame", "real_time_factor")


def run(bench: Bench) -> None:
    # If a peer cannot be imported, ours is measured anyway.
    warm_clocks(bench.device, bench.scale.warm_seconds)
    model = bench.model()
    ids = model.prompt(TEXT, model.voices[0], context=()).inputs["tokens"][:, -1]
    ours(bench, model)
    del model
    free_memory()
    scale = bench.scale
    directory, dtype = bench.checkpoint(), getattr(torch, scale.dtype)

    def transformers(compiled: bool) -> Callable[[], Any]:
        def make() -> Any:
            from benchmarks.peers import Transformers

            if compiled and not scale.full_size:
                raise Skipped("compiling takes minutes on a CPU")
            return Transformers(directory, scale.device, dtype, compiled)

        return make

    def moshi() -> Any:
        if find_spec("moshi") is None:
            raise Skipped("moshi is not installed")
        from benchmarks.moshi_peer import Moshi

        config = json.loads((directory / "config.json").read_text())
        return Moshi(config, scale.device, dtype)

    def speak_ids(peer: Any, batch: int, frames: int) -> Any:
        return peer.speak(ids.repeat(batch, 1), frames)

    def speak(peer: Any, batch: int, frames: int) -> Any:
        return peer.speak(batch, frames)

    theirs(bench, "transformers", transformers(False), speak_ids, 30)
    theirs(bench, "moshi", moshi, speak, 20)
    theirs(bench, "transformers, compiled", transformers(True), speak_ids, 60)


def theirs(
    bench: Bench,
    name: str,
    make: Callable[[], Any],
    speak: Callable[[Any, int, int], Any],
    needs: float,
) -> None:
    """A peer over the batches; the first run of each warms up."""
    held: list[Any] = []

    def load() -> dict[str, float]:
        start = time.perf_counter()
        held.append(make())
        return {"seconds": round(time.perf_counter() - start, 2)}

    if bench.part(f"{name}, load", load, needs=needs) is None:
        return
    for batch in bench.scale.peer_batches:

        def measure(batch: int = batch) -> dict[str, Any]:
            frames = bench.scale.peer_frames
            speak(held[0], batch, frames)
            runs = [speak(held[0], batch, frames) for _ in range(bench.scale.peer_rounds)]
            return summary([{key: getattr(r, key) for key in FIGURES} for r in runs])

        bench.part(f"{name}, batch {batch}", measure, needs=needs / 2)
    held.clear()
    free_memory()


def ours(bench: Bench, model: CsmModel) -> None:
    with an_engine(model, max(bench.scale.peer_batches)) as engine:
        for batch in bench.scale.peer_batches:

            def measure(batch: int = batch) -> dict[str, Any]:
                frames = bench.scale.peer_frames
                together(engine, batch, frames)
                return summary(
                    [together(engine, batch, frames) for _ in range(bench.scale.peer_rounds)]
                )

            bench.part(f"vox_serve, batch {batch}", measure, needs=10)


def together(engine: Engine, count: int, frames: int) -> dict[str, float]:
    """Speak the text in a batch of this size, greedily; returns seconds."""
    for number in range(count):
        engine.add(request(str(number), TEXT, frames, sampling={"temperature": 0.0}))
    start = time.perf_counter()
    first, samples = 0.0, 0
    while engine.has_work:
        events = engine.step().events
        samples += sum(len(e.pcm) // 2 for e in events if isinstance(e, Audio))
        first = first or (time.perf_counter() - start if samples else 0.0)
    spent = time.perf_counter() - start
    audio = samples / engine.model.codec.sample_rate
    return {
        "first_audio": first,
        "frame": (spent - first) / (frames - 1),
        "real_time_factor": spent / audio,
    }


def summary(runs: list[dict[str, float]]) -> dict[str, list[float]]:
    """Median, minimum and maximum of each figure, in seconds."""
    return {
        key: [round(of(run[key] for run in runs), 6) for of in (_median, min, max)]
        for key in FIGURES
    }


def _median(values: Any) -> float:
    return median(list(values))
