"""Programmatic dependent launch: a kernel starts while the previous one still runs.

From compute capability 9.0, a kernel launched this way may start at once and then waits, itself,
for the end of the previous kernel.  Before that wait it must not write, and must not read what
other kernels write; it may fetch weights.  Call `start` first in a kernel.
"""
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-decorators=False
# ruff: noqa: ANN001

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import (
    gdc_launch_dependents,
    gdc_wait,
)

CAPABILITY = (9, 0)
CACHE_LINE: tl.constexpr = tl.constexpr(128)


@triton.jit
def start(overlaps: tl.constexpr) -> None:
    """Let the next kernel start, and wait for the previous one."""
    if overlaps:
        gdc_launch_dependents()
        gdc_wait()


@triton.jit
def start_after_fetching(rows, lines: tl.constexpr, overlaps: tl.constexpr) -> None:
    """`start`, after prefetching the first cache lines of some rows.

    Args:
        rows: pointers `[N, 1]` to memory that no kernel writes.
        lines: cache lines per row.
    """
    if overlaps:
        gdc_launch_dependents()
        addresses = rows.to(tl.int64) + tl.arange(0, lines)[None] * CACHE_LINE
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
            "=r,l",
            [addresses],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
        gdc_wait()


def launch_options(x: torch.Tensor, rounds_each_step: bool = False) -> dict[str, bool]:
    """Keyword arguments to launch a kernel that has a constant `overlaps`.

    Args:
        rounds_each_step: round after each product and each sum, as torch does; do not fuse them.
            The option is always passed, because Triton 3.9 warns without it and 3.10 has another
            default.
    """
    options = {"enable_fp_fusion": not rounds_each_step}
    if has_pdl(x.device):
        return options | {"overlaps": True, "launch_pdl": True}
    return options | {"overlaps": False}


@cache
def has_pdl(device: torch.device) -> bool:
    """Whether the device supports it.  True for meta, where tests count launches."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= CAPABILITY
    return device.type == "meta"
