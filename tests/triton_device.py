"""Runs the tests of Triton kernels: compiled on a GPU, interpreted on a CPU.

The same test serves both; `on_device` passes it the device.  The interpreter must be chosen before
Triton is imported, so interpreted tests run in a separate process, which `run_interpreted` starts.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
HAS_TRITON = importlib.util.find_spec("triton") is not None

on_device = pytest.mark.parametrize(
    "device",
    [pytest.param(torch.device("cpu"), id="interpreted")]
    if INTERPRETED
    else [
        pytest.param(
            torch.device("cuda"),
            id="cuda",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(
                    not (torch.cuda.is_available() and HAS_TRITON),
                    reason="no GPU: the same test runs in Triton's interpreter",
                ),
            ],
        )
    ],
)

INTERPRETER_WARNINGS = [
    # The interpreter computes with numpy, which warns of NaN and overflow; a GPU does not.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning"),
]
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed; Linux has it")


def run_interpreted(*files: str) -> None:
    """Run the tests of `files` that are marked `on_device` in Triton's interpreter."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", *files, "-k", "interpreted", "-q", "--durations=5"]
    run = subprocess.run(
        [*command, "--noconftest", "-p", "no:cacheprovider"],
        env=environment,
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
    print(run.stdout)


def _round_as_torch_does(interpreter) -> None:
    """Make the interpreter round float32 to short formats as GPUs and torch do.

    It truncates bfloat16, and halves numbers that fp8 rounds up to the next power of two.
    """
    convert, tl = interpreter._convert_float, interpreter.tl

    def rounded(data, source, target, mode):
        if source != tl.float32 or target not in (tl.bfloat16, tl.float8e4nv):
            return convert(data, source, target, mode)
        floats = torch.from_numpy(np.array(data, dtype=np.float32))
        if target == tl.bfloat16:
            return floats.bfloat16().view(torch.int16).numpy().view(np.uint16)
        return floats.to(torch.float8_e4m3fn).view(torch.uint8).numpy()

    interpreter._convert_float = rounded


def _multiply_bfloat16(interpreter) -> None:
    """Fix products of bfloat16, which the interpreter stores and multiplies as 16-bit integers."""
    builder, tl = interpreter.InterpreterBuilder, interpreter.tl
    multiply = builder.create_dot

    def create_dot(self, a, b, d, *options):
        if a.dtype == tl.bfloat16:
            a, b = (
                interpreter.TensorHandle(
                    (each.data.astype(np.uint32) << 16).view(np.float32), tl.float32
                )
                for each in (a, b)
            )
        return multiply(self, a, b, d, *options)

    builder.create_dot = create_dot


def _patch_once(interpreter) -> None:
    """Make the interpreter patch Triton's modules once, not at every call of a function.

    A version that returns an undo function is left unchanged.
    """
    patch, done = interpreter._patch_lang, set()

    def patch_once(function):
        module = id(function.__globals__)
        if module not in done:
            undo = patch(function)
            if undo is not None:
                return undo
            done.add(module)
        return None

    interpreter._patch_lang = patch_once


if INTERPRETED and HAS_TRITON:
    from triton.runtime import interpreter

    _round_as_torch_does(interpreter)
    _multiply_bfloat16(interpreter)
    _patch_once(interpreter)
