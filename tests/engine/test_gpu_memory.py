"""The memory of a GPU is measured once a second, that of a CPU never."""

from __future__ import annotations

import pytest
import torch

from vox_serve.engine import gpu_memory
from vox_serve.engine.gpu_memory import GPUMemory


def test_the_memory_of_a_gpu_is_measured_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (30, 80))
    monkeypatch.setattr(gpu_memory.time, "monotonic", lambda: now)
    memory = GPUMemory(torch.device("cuda:0"))
    assert memory.look() == (50, 30)
    now += 0.9
    assert memory.look() is None
    now += 0.2
    assert memory.look() == (50, 30)


def test_a_cpu_reports_no_memory() -> None:
    assert GPUMemory(torch.device("cpu")).look() is None
