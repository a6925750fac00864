"""Checks correctness on this device, before speed is measured.

Compares our frames with transformers' (float32, a reduced CSM with a head size that the attention
kernel supports), captured steps with the same steps run eagerly, and tests `--deterministic`.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping
from collections.abc import Sequence as Rows
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.bench import TEXT, Bench, an_engine, free_memory, request
from benchmarks.gpu.frames import FP8_CAPABILITY
from benchmarks.quality import compare, speak
from plugins.csm.tests.checkpoints import (
    Frames,
    reference_frames,
    text_ids,
    write_checkpoint,
)
from vox_serve.engine.engine import Engine
from vox_serve.messages import Audio, Failed, SpeechRequest
from vox_serve.model import LoadOptions
from vox_serve.testing import watch_frames
from vox_serve_csm.checkpoint import load_model

ROOT = Path(__file__).parents[2]
# The last one reaches over more than one split of the attention kernel.
TEXTS = (
    "hello there",
    "a",
    "how are you today?",
    "no",
    "it's 10 o'clock. 'tis late!" + " no" * 100,
)
KERNEL_TESTS = (
    "tests/nn",
    "tests/nn/test_triton_sampler.py",
    "tests/engine/test_step_function.py",
)
QUALITY_TEXTS = (TEXT, "your table for two is ready.")
LARGEST_ERROR = 0.1
"""Mean error of a logit over the spread of the logits, in bfloat16."""
IMPORTED_BY_TESTS = (
    *("litestar", "uvicorn", "msgspec", "websockets", "httptools", "soundfile", "soxr"),
    *("av", "openai", "requests", "schemathesis"),
)


COUNT = re.compile(r"(\d+)(?:/\d+)? (?:tests )?(passed|failed|skipped|collected|errors?)\b")


class WrongResult(AssertionError):
    """The device computed a wrong result."""


def run(bench: Bench) -> None:
    bench.part("pytest", lambda: gpu_tests(bench))
    bench.part("parity", lambda: parity(bench))
    bench.part("captured", lambda: captured_as_eager(bench), needs=20)
    bench.part("deterministic", lambda: deterministic(bench), needs=20)
    bench.part("logits", lambda: logits(bench), needs=40)


def gpu_tests(bench: Bench) -> dict[str, Any]:
    """Run `pytest -m gpu` in a separate process.

    If packages that tests or fixtures import are missing, only the kernels' tests run, without
    fixtures, and the result states this.
    """
    missing = [name for name in IMPORTED_BY_TESTS if importlib.util.find_spec(name) is None]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu"]
    if missing:
        command += ["--noconftest", *KERNEL_TESTS]
    elif not bench.scale.full_size:
        command += ["--collect-only", *KERNEL_TESTS]  # without a device, all would be skipped
    limit = max(20.0, 0.6 * bench.left)
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=limit, check=False
    )
    (bench.scratch / "pytest.txt").write_text(done.stdout + done.stderr)
    counts = {kind: int(number) for number, kind in COUNT.findall(done.stdout.strip()[-300:])}
    found: dict[str, Any] = {"exit_code": done.returncode, "counts": counts}
    if missing:
        found["only"] = f"{' '.join(KERNEL_TESTS)}: {', '.join(missing)} not installed"
    if done.returncode:
        failing = re.findall(r"^(?:FAILED|ERROR) .*", done.stdout, re.MULTILINE)[:20]
        bench.result["failing_tests"] = failing
        raise WrongResult(f"pytest ended with {done.returncode}, {counts}; see failing_tests")
    return found


def parity(bench: Bench) -> dict[str, Any]:
    """Greedy float32 codes equal transformers', even while other requests join and leave."""
    directory, frames = bench.scratch / "reduced", bench.scale.parity_frames
    sizes = {"head_dim": 32, "max_position_embeddings": 1024}
    reference = write_checkpoint(directory, depth={"head_dim": 32}, **sizes)
    # transformers 5.17 does not tie the two tables, whatever its configuration says.
    table = reference.depth_decoder.model.embed_tokens.weight
    with torch.no_grad():
        reference.backbone_model.embed_tokens.embed_audio_tokens.weight.copy_(table)
    reference.save_pretrained(directory)
    expected = {text: reference_frames(reference, text_ids(text), frames) for text in TEXTS}
    model = load_model(LoadOptions(directory, bench.scale.device, "float32"))
    for text in TEXTS:
        with an_engine(model, 4) as engine:
            require_same(
                f"{text[:20]!r} alone",
                codes(engine, {0: [("0", text)]}, frames)["0"],
                expected[text],
            )
    # The third joins two running ones, one leaves, and slots are reused.
    plan = {
        0: [("0", TEXTS[0]), ("1", TEXTS[4])],
        2: [("2", TEXTS[2])],
        4: [("3", TEXTS[1])],
        frames // 2: [("4", TEXTS[3]), ("5", TEXTS[0])],
    }
    with an_engine(model, 3) as engine:
        spoken = codes(engine, plan, frames, leaves={4: "0"})
    for name, text in [each for joining in plan.values() for each in joining]:
        length = len(spoken[name])
        if name != "0" and length != frames:
            raise WrongResult(f"request {name} has {length} frames, not {frames}")
        require_same(f"request {name}, which joined", spoken[name], expected[text][:length])
    return {"texts": len(TEXTS), "requests_in_company": len(spoken), "frames": frames}


def codes(
    engine: Engine,
    plan: Mapping[int, Rows[tuple[str, str]]],
    frames: int,
    leaves: Mapping[int, str] | None = None,
    **fields: Any,
) -> dict[str, Frames]:
    """The frames of requests that join at the steps of a plan; greedy by default."""
    spoken: dict[str, Frames] = defaultdict(list)
    watch_frames(engine, lambda sequence, frame: spoken[sequence.id].append(frame.codes))
    fields = {"sampling": {"temperature": 0.0}, **fields}
    step = 0
    while engine.has_work or step <= max(plan):
        for name, text in plan.get(step, ()):
            engine.add(request(name, text, frames, **fields))
        if leaves and step in leaves:
            engine.abort(leaves[step])
        no_failure(engine.step().events)
        step += 1
    return spoken


def captured_as_eager(bench: Bench) -> dict[str, Any]:
    """Replayed steps give the codes and samples of the same steps run eagerly."""
    model, frames = bench.model(), max(4, bench.scale.parity_frames // 2)
    requests = [request(str(n), TEXT, frames, sampling={"seed": n}) for n in range(3)]
    outcomes = []
    for capture in (True, False):
        with an_engine(model, 4) as engine:
            if not capture:
                runner = engine.runner
                for step in (
                    runner._advance_step,
                    runner._emit_step,
                    runner._take_step,
                    runner._sound_step,
                ):
                    step._stream = None  # a server does not need a switch for this
            outcomes.append(everything(engine, requests))
    for name in outcomes[0]:
        for kind in ("codes", "pcm"):
            require_same(f"{kind} of {name}", outcomes[0][name][kind], outcomes[1][name][kind])
    return {"requests": len(requests), "frames": frames, "captured": bench.device.type == "cuda"}


def deterministic(bench: Bench) -> dict[str, Any]:
    """With the flag, other requests do not change a request's bytes; compare without it."""
    model, frames = bench.model(), max(4, bench.scale.parity_frames // 2)
    asked = request("asked", TEXT, frames, sampling={"seed": 7})
    others = [request(str(n), TEXT[: 12 + 9 * n], frames, sampling={"seed": n}) for n in range(3)]
    same = {}
    for flag in (True, False):
        sounds = []
        for company in ([], others):
            with an_engine(model, 4, deterministic=flag) as engine:
                sounds.append(everything(engine, [*company, asked])["asked"]["pcm"])
        same[flag] = sounds[0] == sounds[1]
    if not same[True]:
        raise WrongResult("--deterministic: other requests change the bytes")
    return {"frames": frames, "same_without_the_flag": same[False]}


def everything(engine: Engine, requests: Rows[SpeechRequest]) -> dict[str, dict[str, Any]]:
    """Codes and samples of requests, each of which joins two steps after the previous one."""
    spoken: dict[str, dict[str, Any]] = {r.id: {"codes": [], "pcm": b""} for r in requests}
    watch_frames(engine, lambda sequence, frame: spoken[sequence.id]["codes"].append(frame.codes))
    waiting, step = list(requests), 0
    while waiting or engine.has_work:
        if waiting and step % 2 == 0:
            engine.add(waiting.pop(0))
        events = engine.step().events
        no_failure(events)
        for event in events:
            if isinstance(event, Audio):
                spoken[event.request_id]["pcm"] += event.pcm
        step += 1
    return spoken


def logits(bench: Bench) -> dict[str, Any]:
    """Compare the smaller weight formats by teacher-forced logits; see `benchmarks/quality.py`."""
    frames, forms = max(2, bench.scale.parity_frames // 2), {"bfloat16": ("bfloat16", "none")}
    if bench.device.type == "cuda" and torch.cuda.get_device_capability() >= FP8_CAPABILITY:
        forms["fp8"] = ("bfloat16", "fp8")
    model = bench.model(dtype="float32")
    reference = [speak(model, text, frames) for text in QUALITY_TEXTS]
    del model
    found: dict[str, Any] = {"texts": len(QUALITY_TEXTS), "frames": frames}
    for name, (dtype, quantize) in forms.items():
        free_memory()
        model = bench.model(quantize, dtype)
        spoken = [
            speak(model, text, frames, said.codes)
            for text, said in zip(QUALITY_TEXTS, reference, strict=True)
        ]
        del model
        found[name] = compare(reference, spoken)
    if not found["bfloat16"]["mean_error"] < LARGEST_ERROR:  # NaN is not
        raise WrongResult(f"bfloat16: {found['bfloat16']}")
    return found


def require_same(what: str, ours: Any, expected: Any) -> None:
    """Raise WrongResult with the first place where they differ."""
    if ours != expected:
        pairs = zip(ours, expected, strict=False)
        place = next((n for n, (one, other) in enumerate(pairs) if one != other), len(expected))
        raise WrongResult(f"{what}: differs from place {place} of {len(expected)}")


def no_failure(events: Rows[Any]) -> None:
    for event in events:
        if isinstance(event, Failed):
            raise WrongResult(f"request {event.request_id} failed: {event.error.message}")
