"""Compares vox_serve with its peers on a CPU: the same work, in turn, in one run.

    python -m benchmarks.csm                     the demo voice and CSM at full size
    python -m benchmarks.csm --only demo         only the demo voice
    python -m benchmarks.csm --from-json FILE --page docs/performance.md

Prints the tables and writes JSON to benchmarks/results/; --page writes the page and
its picture.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import loading, machine, ours, quality, served
from benchmarks.checkpoint import TOKENIZER, write_full_size
from benchmarks.columns import (
    COMPILE_SECONDS,
    FORMS,
    Column,
    Setting,
    in_turn,
    our_columns,
    our_engines,
    peer_columns,
    try_threads,
)
from benchmarks.picture import draw
from benchmarks.report import page, tables
from benchmarks.spread import spreads
from vox_serve.engine.engine import Engine

RESULTS = Path(__file__).parent / "results"
FULL_SIZE = Path.home() / ".cache/vox_serve/full-size-random"
SMALL_BATCHES = (1, 4)
GROUPS = (("float16", "bfloat16"), ("float16", "int8"))
"""All forms at full size with 16 slots, and a peer, need more than 24 GB."""
CLIENTS = (1, 4, 8)
CLOSED_LOOP_SECONDS = 10.0
LOADING_SECONDS = 0.4


class Parts:
    """Runs the parts of one setting, logs them, and records how long each took."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str, part: Callable[[], Any]) -> Any:
        log(f"{self._setting.key}: {name}")
        start = time.perf_counter()
        found = part()
        self.seconds[name] = time.perf_counter() - start
        return found


def run(setting: Setting, rounds: int, texts: int, frames: int) -> dict[str, Any]:
    """Measure everything about one model.

    Args:
        rounds: measured rounds, after one for warming up.
        texts, frames: for the comparison with float32: texts, and the most frames of each.
    """
    part, left_out = Parts(setting), dict[str, str]()
    result: dict[str, Any] = {
        "frames": {str(b): f for b, f in setting.frames.items()},
        "rounds": {str(b): setting.rounds(b, rounds) for b in setting.frames},
    }
    result["loading"] = part("memory while loading", lambda: _loading(setting))
    batches, floor, voices = _speed(setting, rounds, part, left_out)
    result |= {"batches": batches, "floor": floor, "first_audio": voices, "left_out": left_out}
    _return_memory()  # before the server or the float32 form is loaded
    result["quality"] = part(
        "beside float32",
        lambda: quality.measure(setting.model, "cpu", quality.TEXTS[:texts], frames),
    )
    if setting.model == "demo":
        result["served"] = part(
            "through the server",
            lambda: served.measure(setting.model, ours.TEXT, rounds, CLIENTS, CLOSED_LOOP_SECONDS),
        )
    return result | {"peak": machine.peak_memory(), "seconds": part.seconds}


def _loading(setting: Setting) -> dict[str, dict[str, float]]:
    return {
        f"vox_serve_{form}": loading.measure(setting.engine_config(form, 1), LOADING_SECONDS)
        for form in FORMS
    }


def _speed(
    setting: Setting, rounds: int, part: Parts, left_out: dict[str, str]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Batches, floors and first audio, with all engines and peers in memory at once."""
    # With as many slots as needed: each has keys and values, and memory is limited.
    few = max(SMALL_BATCHES)
    engines = part("load vox_serve", lambda: our_engines(setting, few))
    columns = our_columns(engines, setting)
    threads = columns[0].threads[1]
    prompt = _prompt(engines["float16"])
    peers = part("load peers", lambda: list(peer_columns(setting, prompt, left_out)))
    if threads < machine.ALL_THREADS:
        part("threads of the peers", lambda: _try_threads(setting, peers))
    columns += peers
    rates = part("how fast weights are read", _rates)

    def turns(name: str, batch: int) -> dict[str, dict[str, list[float]]]:
        count, frames = setting.rounds(batch, rounds), setting.frames[batch]
        return part(name, lambda: in_turn(columns, batch, frames, count, left_out))

    batches = {str(batch): turns(f"batch {batch}", batch) for batch in SMALL_BATCHES}
    torch.set_num_threads(threads)
    voices = part("first audio", lambda: _first_audio(engines, rounds))
    sizes = {form: ours.bytes_per_frame(engine) for form, engine in engines.items()}
    (many,) = setting.frames.keys() - set(SMALL_BATCHES)
    peers = [peer for peer in peers if many in peer.batches]
    found = batches[str(many)] = {}
    for forms in setting.groups:
        columns.clear()
        engines.clear()
        torch.compiler.reset()  # what it compiled holds its model
        _return_memory()
        shown = f"{many} slots, {', '.join(forms)}"
        engines |= part(f"reload vox_serve, {shown}", lambda f=forms: our_engines(setting, many, f))
        torch.set_num_threads(threads)
        columns += our_columns(engines, setting) + peers
        peers.clear()
        for key, figures in turns(f"batch {shown}", many).items():
            found.setdefault(key, figures)
    columns.clear()
    engines.clear()
    _return_memory()
    again = part("how fast weights are read, again", _rates)
    rates = {form: max(rates[form], again[form]) for form in FORMS}
    floor = _floors(sizes, batches["1"], rates)
    torch.set_num_threads(threads)
    return batches, floor, voices


def _return_memory() -> None:
    """Return what was freed to the system: an engine makes glibc keep it, gigabytes of a model."""
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def _prompt(engine: Engine) -> torch.Tensor:
    """Token ids `[T]` of the text."""
    model = engine.model
    return model.prompt(ours.TEXT, model.voices[0], context=()).inputs["tokens"][:, -1]


def _try_threads(setting: Setting, peers: list[Column]) -> None:
    eager = next((peer for peer in peers if peer.key == "transformers"), None)
    if eager is None:
        return
    for batch, frames in setting.frames.items():
        try_threads(eager, batch, frames)
    for peer in peers:  # compiled code depends on the number of threads
        peer.threads.update(eager.threads)


def _first_audio(engines: dict[str, Engine], rounds: int) -> dict[str, dict[str, list[float]]]:
    runs: dict[str, list[dict[str, float]]] = {form: [] for form in engines}
    for number in range(rounds):
        for form, engine in engines.items():
            runs[form].append(ours.first_audio(engine, ours.TEXT, seed=number))
    return {f"vox_serve_{form}": spreads(each) for form, each in runs.items()}


def _rates() -> dict[str, float]:
    """Bytes per second, by form, with all threads."""
    torch.set_num_threads(machine.ALL_THREADS)
    return {form: machine.bandwidth(form, repeats=20) for form in FORMS}


def _floors(
    sizes: dict[str, int], single: dict[str, Any], rates: dict[str, float]
) -> dict[str, dict[str, float]]:
    """The time in which this machine can read the weights of a frame, in their form."""
    floors = {}
    for form, size in sizes.items():
        seconds = size / rates[form]
        floors[f"vox_serve_{form}"] = {
            "bytes": size,
            "bytes_per_second": rates[form],
            "seconds": seconds,
            "share": seconds / single[f"vox_serve_{form}"]["frame"][0],
        }
    return floors


def log(line: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {line}", file=sys.stderr, flush=True)


def demo(rounds: int) -> dict[str, Any]:
    """A setting with real weights, which speaks until its text ends."""
    setting = Setting("demo", "demo", TOKENIZER, dict.fromkeys((1, 4, 16)))
    return run(setting, rounds, texts=10, frames=40)


def full(directory: Path, rounds: int) -> dict[str, Any]:
    """A setting with random weights, which never end, so the number of frames is fixed."""
    log(f"full: checkpoint in {directory}")
    write_full_size(directory)
    frames, most_rounds = {1: 6, 4: 4, 16: 3}, {16: 2}
    # With fewer rows, float32 is faster than bfloat16 too, but does not fit beside the rest.
    setting = Setting(
        "full", str(directory), directory, frames, most_rounds, GROUPS, float32_from=16
    )
    return run(setting, rounds, texts=2, frames=4)


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """Run everything requested; results are written at once, so an interrupted run keeps them."""
    found: dict[str, Any] = {
        "machine": machine.describe(),
        "command": f"python -m benchmarks.csm {asked.shown}",
        "compile_seconds": COMPILE_SECONDS,
        "results": {},
    }
    for name, part in (
        ("demo", lambda: demo(asked.rounds)),
        ("full", lambda: full(asked.checkpoint, asked.rounds)),
    ):
        if asked.only in (None, name):
            found["results"][name] = part()
            write(found, asked.output, asked.only)
    return found


def write(found: dict[str, Any], directory: Path, only: str | None) -> None:
    device = str(found["machine"]["device"]).lower().replace(" ", "-")
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / f"csm-{device}-{os.cpu_count()}-cores-{only or 'all'}.json"
    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    log(f"wrote {file}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", choices=("demo", "full"))
    parser.add_argument(
        "--checkpoint",
        type=Path,
        default=FULL_SIZE,
        help="where the full-size checkpoint is or goes",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS, help="directory of the JSON")
    parser.add_argument("--page", type=Path, help="write the page there, its picture beside it")
    parser.add_argument("--from-json", type=Path, help="measure nothing: take these results")
    asked = parser.parse_args()
    # Without paths, because the page must not name a place on someone's disk.
    asked.shown = f"--rounds {asked.rounds}" + (f" --only {asked.only}" if asked.only else "")
    if asked.from_json:
        found = json.loads(asked.from_json.read_text(encoding="utf-8"))
    else:
        found = measure(asked)
    print(tables(found))
    if asked.page:
        picture = asked.page.with_suffix(".png")
        draw(found, picture)
        asked.page.write_text(page(found, asked.page.name, picture.name), encoding="utf-8")
        log(f"wrote {asked.page} and {picture}")


if __name__ == "__main__":
    main()
