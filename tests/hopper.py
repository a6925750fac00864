"""Compiles Triton kernels for a Hopper GPU, sm_90, on a machine without one.

A launch compiles the kernel instead of running it, with the arguments of the launch.  So alignment
and specialised values are those of a real launch.  Tensors are on the meta device.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from vox_serve.nn import kernels

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"


@attrs.frozen
class Compiled:
    """A kernel compiled by ptxas."""

    name: str
    options: str
    """Its compile-time options, in one line."""
    warps: int
    registers: int
    shared: int
    """Bytes, static and dynamic."""
    local: int
    """Bytes of stack and spilled registers per thread."""
    ptx: str

    def __str__(self) -> str:
        return (
            f"{self.name:24} {self.registers:3} registers {self.shared:6} B shared "
            f"{self.local:2} B local {self.warps} warps  {self.options}"
        )


class _Driver:
    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


class Launches(list[Compiled]):
    """The launched kernels, in order."""

    @property
    def different(self) -> list[Compiled]:
        return sorted({id(each): each for each in self}.values(), key=lambda each: each.name)


@contextmanager
def hopper() -> Iterator[Launches]:
    """In this context, the meta device counts as CUDA, and launches are compiled and recorded."""
    launches, made = Launches(), {}
    run = JITFunction.run

    def compiled(self, *args, grid, warmup, **options):
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        if id(kernel) not in made:
            given = {name: value for name, value in options.items() if value is not False}
            made[id(kernel)] = _read(kernel, given), kernel
        launches.append(made[id(kernel)][0])
        return kernel

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JITFunction, "run", compiled)
        patch.setattr(kernels, "DEVICES", ("cuda", "meta"))
        triton.runtime.driver.set_active(_Driver())
        try:
            yield launches
        finally:
            triton.runtime.driver._active = None


def _read(kernel, options: dict[str, object]) -> Compiled:
    usage = _usage(kernel.asm["cubin"])
    shown = {
        k: v
        for k, v in options.items()
        if k not in ("overlaps", "launch_pdl", "num_warps", "enable_fp_fusion")
    }
    return Compiled(
        kernel.metadata.name,
        " ".join(f"{key}={value}" for key, value in shown.items()),
        kernel.metadata.num_warps,
        usage["REG"],
        kernel.metadata.shared,
        usage["STACK"] + usage["LOCAL"],
        kernel.asm["ptx"],
    )


def _usage(cubin: bytes) -> dict[str, int]:
    import tempfile

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [TOOLS / "cuobjdump", "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: int(number) for name, number in re.findall(r"([A-Z]+):(\d+)", text)}


def bfloat16(*shape: int, device: str = "meta") -> torch.Tensor:
    return torch.empty(*shape, dtype=torch.bfloat16, device=device)
