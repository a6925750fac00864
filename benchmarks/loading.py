"""Measures memory and time of loading one form of a model, in a separate process.

    python -m benchmarks.loading MODEL DTYPE QUANTIZE SECONDS

prints one JSON object.  The process is separate, because the largest resident set of a process
never falls.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time

import torch

import vox_serve_csm.checkpoint  # noqa: F401  # so that its import is not the model's memory
from benchmarks import machine, ours
from vox_serve.config import EngineConfig
from vox_serve.engine.load import load_engine
from vox_serve.plugins import load_plugins


def measure(config: EngineConfig, seconds: float) -> dict[str, float]:
    """Run this module with a configuration and read its output.

    Returns:
        `seconds` to load and warm up with one slot; `weights`, `rise` of the resident set
        meanwhile and `peak` until one text of `seconds` has been spoken, all in bytes;
        `rise_over_weights`.

    Raises:
        RuntimeError: it failed; the message has the end of its error output.
    """
    command = [sys.executable, "-m", "benchmarks.loading"]
    command += [config.model, config.dtype, config.quantize, str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"loading {config.model} failed: {done.stderr.strip()[-500:]}")
    figures: dict[str, float] = json.loads(done.stdout)
    return figures | {"rise_over_weights": figures["rise"] / figures["weights"]}


def _run(config: EngineConfig, seconds: float) -> dict[str, float]:
    plugins = load_plugins()
    # Memory that libraries allocate on first use does not belong to the model.
    torch.nn.functional.linear(torch.ones(1, 8), torch.ones(8, 8))
    before, start = machine.resident_memory(), time.perf_counter()
    engine, _ = load_engine(config, plugins)
    spent, loaded = time.perf_counter() - start, machine.peak_memory()
    ours.speak(engine, [ours.TEXT], seconds)
    return {
        "seconds": spent,
        "weights": engine.model.weight_bytes,
        "rise": loaded - before,
        "peak": machine.peak_memory(),
    }


if __name__ == "__main__":
    name, dtype, quantize, length = sys.argv[1:]
    asked = EngineConfig(model=name, dtype=dtype, quantize=quantize, device="cpu", max_batch_size=1)
    print(json.dumps(_run(asked, float(length))))
