"""What the figures were measured on; every result names it."""

from __future__ import annotations

import os
import platform
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

from vox_serve.nn.linear import HalfLinear


def describe() -> dict[str, str | int]:
    """Processor, cores, versions and date."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "processor": _processor(),
        "cores": os.cpu_count() or 0,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "moshi": version("moshi"),
    }


def bandwidth(gigabytes: float = 2.0, repeats: int = 5) -> float:
    """Bytes per second at which 16-bit matrices are read by a matrix-vector product; the best run.

    That is what a decode step at batch 1 does, so it is the floor of one.
    """
    rows, columns = 8192, 2048
    count = max(1, round(gigabytes * 1e9 / (rows * columns * 2)))
    matrices = [HalfLinear(torch.rand(rows, columns)) for _ in range(count)]
    x = torch.rand(1, columns)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        for matrix in matrices:
            matrix(x)
        best = min(best, time.perf_counter() - start)
    return count * rows * columns * 2 / best


def peak_memory(pid: str = "self") -> int:
    """Largest resident set of a process so far, in bytes (Linux)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this kernel tells no VmHWM")


def resident_memory() -> int:
    """Resident set now, in bytes (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this kernel tells no VmRSS")


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()
