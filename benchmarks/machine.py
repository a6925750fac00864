"""Describes the machine, which every result names, and measures how fast it reads weights."""

from __future__ import annotations

import os
import platform
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.ours import layer_bytes
from vox_serve.nn import Linear
from vox_serve.nn.linear import pack

ALL_THREADS = torch.get_num_threads()


def describe() -> dict[str, str | int | float]:
    """Processor, cores, versions, date and current load."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count() or 0,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "load_average": round(os.getloadavg()[0], 2),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: package_version(name) for name in ("transformers", "moshi")},
    }


def package_version(name: str) -> str:
    """The version of a package, or a note that it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


@torch.inference_mode()
def bandwidth(form: str, gigabytes: float = 0.5, repeats: int = 5) -> float:
    """Bytes per second at which matrices are read by a matrix-vector product; the best run.

    A decode step at batch 1 does this, so it gives a lower bound of its time.

    Args:
        form: the format of the matrices: `float16`, `int8` (`vox_serve.nn.linear`) or `bfloat16`.
    """
    rows, columns = 8192, 2048
    dtype = torch.bfloat16 if form == "bfloat16" else torch.float32
    matrices: list[Any] = []
    held = 0
    while held < gigabytes * 1e9:
        matrix: Any = Linear(columns, rows).to(dtype)
        matrices.append(matrix if form == "bfloat16" else pack(matrix, form))
        held += layer_bytes(matrices[-1])
    x = torch.rand(1, columns, dtype=dtype)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        for matrix in matrices:
            matrix(x)
        best = min(best, time.perf_counter() - start)
    return held / best


def peak_memory(pid: str = "self") -> int:
    """Largest resident set of a process so far, in bytes (Linux)."""
    return _status("VmHWM", pid)


def resident_memory() -> int:
    """Resident set now, in bytes (Linux)."""
    return _status("VmRSS", "self")


def _status(key: str, pid: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"this kernel does not report {key}")


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()
