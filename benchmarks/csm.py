"""Our engine beside transformers on the same checkpoint, in one run, interleaved.

    python -m benchmarks.csm                     the demo voice and CSM at full size
    python -m benchmarks.csm --only demo         a minute

Both get the same weights, prompt and frame count, greedy; each decodes its
codes with its own codec.  Prints a table and writes JSON to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import attrs
import torch
from transformers import CsmForConditionalGeneration

from benchmarks import machine
from benchmarks.checkpoint import TOKENIZER, write_full_size
from vox_serve.config import EngineConfig
from vox_serve.engine.engine import Engine
from vox_serve.engine.load import load_engine, number_formats
from vox_serve.engine.messages import Audio, SpeechRequest
from vox_serve.nn import held_bytes
from vox_serve.plugins import load_plugins

RESULTS = Path(__file__).parent / "results"
TEXT = "the past is just a story we tell ourselves."
FRAME_SECONDS = 0.08
ALL_THREADS = torch.get_num_threads()


def ours(engine: Engine, texts: list[str], seconds: float | None) -> dict[str, float]:
    """Speak texts together; seconds per frame, first audio, phases, real-time factor."""
    for number, text in enumerate(texts):
        engine.add(SpeechRequest(str(number), text, max_seconds=seconds))
    start = time.perf_counter()
    first, samples, steps = 0.0, 0, []
    phases: dict[str, float] = {}
    while engine.has_work:
        began = time.perf_counter()
        output = engine.step()
        steps.append(time.perf_counter() - began)
        for name, spent in output.stats.phase_seconds:
            phases[name] = phases.get(name, 0.0) + spent
        samples += sum(len(e.pcm) // 2 for e in output.events if isinstance(e, Audio))
        first = first or (time.perf_counter() - start if samples else 0.0)
    spent = time.perf_counter() - start
    audio = samples / engine.model.codec.sample_rate
    frame = {f"{name}_per_frame": phases[name] / len(steps) for name in phases if name != "prefill"}
    return {
        "first_audio": first,
        "frame": median(steps[1:]),
        "real_time_factor": spent / audio,
        **frame,
    }


def theirs(model: Any, engine: Engine, count: int, seconds: float | None) -> dict[str, float]:
    """The same by transformers: `generate` over a batch, then its codec."""
    tokens = engine.model.prompt(TEXT, engine.model.voices[0], ()).inputs["tokens"]
    ids = tokens[:, -1].repeat(count, 1)
    limit = round(seconds / FRAME_SECONDS) if seconds else 150
    greedy = {"do_sample": False, "depth_decoder_do_sample": False, "output_audio": True}
    start = time.perf_counter()
    model.generate(ids, max_new_tokens=1, **greedy)
    first = time.perf_counter() - start  # it hands nothing out before its end
    start = time.perf_counter()
    audio = model.generate(ids, max_new_tokens=limit, **greedy)
    spent = time.perf_counter() - start
    samples = [len(each) for each in audio]
    return {
        "first_audio": first,
        "frame": (spent - first) / (max(samples) // 1920 - 1),
        "real_time_factor": spent / (sum(samples) / 24000),
    }


def compare(
    engine: Engine, quantised: Engine, model: Any, count: int, seconds: float | None, rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Ours and theirs in turn; per figure [median, least, most] of the rounds.

    Ours runs with the threads that the engine chose; transformers with one thread and with all,
    of which the faster is reported.
    """
    chosen = torch.get_num_threads()
    runs: dict[str, list[dict[str, float]]] = {
        who: [] for who in ("vox_serve", "vox_serve_int8", "one", "all")
    }
    for number in range(rounds + 1):
        done = {"vox_serve": ours(engine, [TEXT] * count, seconds)}
        done["vox_serve_int8"] = ours(quantised, [TEXT] * count, seconds)
        for name, threads in (("one", 1), ("all", ALL_THREADS)):
            torch.set_num_threads(threads)
            done[name] = theirs(model, engine, count, seconds) | {"threads": threads}
        torch.set_num_threads(chosen)
        if number:  # the first round warms up
            for name, each in done.items():
                runs[name].append(each | {"threads": each.get("threads", chosen)})
    faster = min(("one", "all"), key=lambda name: median(run["frame"] for run in runs[name]))
    runs = {
        "vox_serve": runs["vox_serve"],
        "vox_serve_int8": runs["vox_serve_int8"],
        "transformers": runs[faster],
    }
    return {
        who: {key: [f(run[key] for run in each) for f in (_median, min, max)] for key in each[0]}
        for who, each in runs.items()
    }


def _median(values: Any) -> float:
    return median(list(values))


def load_memory(directory: Path, dtype: str, weights: str | None) -> dict[str, float]:
    """Load in a process of its own: seconds, weights, and how far memory rose."""
    code = (
        "import json, sys, torch, vox_serve_csm.checkpoint as c\n"
        "from benchmarks import machine\n"
        "from vox_serve import LoadOptions\n"
        "from pathlib import Path\n"
        "import time\n"
        "torch.nn.functional.linear(torch.ones(1, 8), torch.ones(8, 8))\n"
        "before, start = machine.resident_memory(), time.perf_counter()\n"
        "m = c.load_model(LoadOptions(Path(sys.argv[1]), 'cpu', *sys.argv[2:]))\n"
        "seconds = time.perf_counter() - start\n"
        "print(json.dumps({'seconds': seconds, 'weights': m.weight_bytes,\n"
        "                  'rise': machine.peak_memory() - before}))\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(directory), dtype, *([weights] if weights else [])],
        check=True,
        capture_output=True,
        text=True,
    )
    figures: dict[str, float] = json.loads(out.stdout)
    return figures | {"rise_over_weights": figures["rise"] / figures["weights"]}


def served(model: str, body: dict[str, Any], rounds: int) -> dict[str, list[float]]:
    """Through `python -m vox_serve.launch` and HTTP: first audio and real-time factor."""
    command = [sys.executable, "-m", "vox_serve.launch", "--port", "0", "--log-level", "warning"]
    command += ["--model", model, "--max-batch-size", "4"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        address = next(w for line in process.stdout if "address" in line for w in line.split()[1:2])
        firsts, factors = [], []
        for number in range(rounds + 1):
            first, spent, audio = _stream(f"{address}/generate", body)
            if number:
                firsts.append(first)
                factors.append(spent / audio)
    finally:
        process.terminate()
        process.wait(60)
    return {
        "first_audio": [f(firsts) for f in (median, min, max)],
        "real_time_factor": [f(factors) for f in (median, min, max)],
        "exit_code": [float(process.returncode)],
    }


def _stream(url: str, body: dict[str, Any]) -> tuple[float, float, float]:
    data = json.dumps(body | {"streaming": True}).encode()
    headers = {"Content-Type": "application/json"}
    start = time.perf_counter()
    with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=600) as answer:
        size, first = 0, 0.0
        while chunk := answer.read1():
            size += len(chunk)
            first = first or time.perf_counter() - start
    return first, time.perf_counter() - start, (size - 44) / 48000


def bytes_per_frame(engine: Engine) -> int:
    """Weights that one frame at batch 1 reads: the backbone once, the depth decoder K - 1 times."""
    net: Any = engine.model.network  # type: ignore[attr-defined]  # a CSM
    passes = engine.model.num_codebooks - 1
    once = sum(held_bytes(m) for m in (net.backbone, net.head, net.depth_heads))
    return once + passes * sum(held_bytes(m) for m in (net.depth, net.projector))


def run(directory: Path, model: str, seconds: float | None, rounds: int) -> dict[str, Any]:
    log(f"{model}: memory while loading")
    config = EngineConfig(model=model, max_batch_size=4, device="cpu")
    result: dict[str, Any] = {"load": load_memory(directory, *number_formats(config, "cpu"))}
    engine, _ = load_engine(config, load_plugins())
    quantised, _ = load_engine(attrs.evolve(config, quantize="int8"), load_plugins())
    log(f"{model}: loading transformers")
    reference = CsmForConditionalGeneration.from_pretrained(directory, dtype=torch.bfloat16).eval()
    log(f"{model}: one at a time")
    result["single"] = compare(engine, quantised, reference, 1, seconds, rounds)
    chosen = torch.get_num_threads()
    torch.set_num_threads(ALL_THREADS)
    rate = machine.bandwidth()
    torch.set_num_threads(chosen)
    floor = bytes_per_frame(engine) / rate
    result["floor"] = {
        "bandwidth_gb_per_s": rate / 1e9,
        "frame_seconds": floor,
        "share_of_floor": floor / result["single"]["vox_serve"]["frame"][0],
    }
    log(f"{model}: four together")
    result["four_together"] = compare(engine, quantised, reference, 4, seconds, rounds)
    del engine, quantised, reference
    log(f"{model}: through the server")
    body = {"text": TEXT, "temperature": 0} | ({"max_seconds": seconds} if seconds else {})
    result["served"] = served(model, body, rounds)
    return result


def log(line: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {line}", file=sys.stderr, flush=True)


def table(results: dict[str, Any]) -> str:
    """The figures as Markdown: median (least to most)."""

    def cell(values: list[float]) -> str:
        if values[0] == round(values[0]):
            return str(round(values[0]))
        return f"{values[0]:.3f} ({values[1]:.3f} to {values[2]:.3f})"

    labels = (
        ("frame", "s per frame"),
        ("first_audio", "first audio, s"),
        ("real_time_factor", "time over audio"),
        ("threads", "threads"),
    )
    lines = []
    for name, result in results.items():
        load, floor = result["load"], result["floor"]
        lines += [
            f"### {name}",
            "",
            f"Load: {load['seconds']:.1f} s; memory rose by {load['rise'] / 2**20:.0f} MiB, "
            f"{load['rise_over_weights']:.2f} times the weights. Floor of a frame at batch 1: "
            f"{floor['frame_seconds']:.3f} s at {floor['bandwidth_gb_per_s']:.1f} GB/s; "
            f"ours is at {100 * floor['share_of_floor']:.0f} % of it.",
            "",
            "| | vox_serve | vox_serve, int8 | transformers, bfloat16 |",
            "|---|---|---|---|",
        ]
        for setting in ("single", "four_together"):
            sides = [result[setting][w] for w in ("vox_serve", "vox_serve_int8", "transformers")]
            for key, label in labels:
                cells = " | ".join(cell(side[key]) for side in sides)
                lines.append(f"| {setting}: {label} | {cells} |")
        for key, label in labels[1:3]:
            lines.append(f"| HTTP stream: {label} | {cell(result['served'][key])} | | |")
        lines.append("")
    return "\n".join(lines)


def page(described: dict[str, Any], results: dict[str, Any]) -> str:
    """docs/performance.md."""
    facts = "\n".join(f"| {key} | {value} |" for key, value in described.items())
    return PAGE.format(facts=facts, table=table(results))


PAGE = """# Performance

This page is written by `make bench ARGS="--page docs/performance.md"`; nothing in it is typed by
hand. Both sides got the same weights, prompt and frames, greedy, and decoded with their own codec.
vox_serve holds weights as it does unless told otherwise, in float16 with float32 sums, and in int8;
transformers in bfloat16. With int8 the codes are others: no figure here says how good.
They ran in turn in one process, ours with the threads that the engine chooses,
transformers with one thread or with all, whichever was faster. Figures are medians (least to
most). "Four together" is a batch of four on both sides. "Time over audio" below 1 is faster
than real time.
Transformers hands out no audio before its end: its "first audio" is a run of one frame. The
floor is the time that the weights of a frame take to be read once, at the rate that this machine
reads such matrices one after the other, with all threads.

| machine | |
|---|---|
{facts}

{table}"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", choices=("demo", "full"))
    parser.add_argument("--checkpoint", type=Path, help="where the full-size checkpoint is or goes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, help="write the figures as a page of the documents")
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "demo": lambda: run(TOKENIZER, "demo", None, arguments.rounds),
        "full": lambda: full(arguments),
    }
    for name, part in parts.items():
        if arguments.only in (None, name):
            results[name] = part()
    described = machine.describe()
    print(table(results))
    arguments.output.mkdir(parents=True, exist_ok=True)
    device = str(described["device"]).lower().replace(" ", "-")
    file = arguments.output / f"csm-{device}-{os.cpu_count()}-cores-{arguments.only or 'all'}.json"
    file.write_text(json.dumps({"machine": described, "results": results}, indent=1) + "\n")
    log(f"wrote {file}")
    if arguments.page:
        arguments.page.write_text(page(described, results))
        log(f"wrote {arguments.page}")


def full(arguments: argparse.Namespace) -> dict[str, Any]:
    directory = arguments.checkpoint or Path.home() / ".cache/vox_serve/full-size-random"
    log(f"checkpoint in {directory}")
    write_full_size(directory)
    return run(directory, str(directory), 0.8, arguments.rounds)


if __name__ == "__main__":
    main()
