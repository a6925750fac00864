"""The suite's first section: describes the machine, and writes the random checkpoint."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime

import torch

from benchmarks.gpu.bench import Bench
from benchmarks.machine import package_version
from vox_serve.bench.report import describe_client

PACKAGES = ("torch", "triton", "transformers", "moshi", "numpy")


def run(bench: Bench) -> None:
    bench.part("machine", lambda: describe(bench.device))
    bench.part("checkpoint", lambda: {"bytes": written(bench)})


def describe(device: torch.device) -> dict[str, str | int]:
    """Device, processor, versions and date; missing packages are listed as missing."""
    found: dict[str, str | int] = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "device": "cpu",
        "processor": describe_client()["processor"],
        "cores": os.cpu_count() or 0,
        "python": sys.version.split()[0],
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "device": properties.name,
            "device_memory_gib": round(properties.total_memory / 2**30, 1),
            "multiprocessors": properties.multi_processor_count,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "cuda": str(torch.version.cuda),
        }
    return found | {name: package_version(name) for name in PACKAGES}


def written(bench: Bench) -> int:
    return sum(file.stat().st_size for file in bench.checkpoint().glob("*.safetensors"))
