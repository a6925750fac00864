"""A linear layer over few rows as one Triton kernel, fused with the operations around it.

With up to `FEW_ROWS` rows, a product takes as long as reading its weights, and the rest of a step's
cost depends on the number of kernels.  So this kernel replaces several: it adds the outputs that
earlier layers left, normalises, multiplies and gates.  The rows are the short side of the product,
padded to 16, which tensor cores need.

A layer whose result is added to the residual stores it as float32 parts `[S, N, H]`.  The next
reader of the residual sums them in order: without atomics, and no row depends on another.

The kernel starts while the previous one still runs, and waits for it only after it has begun to
prefetch its own weights (`vox_serve.nn.pdl`).

Imported only where it is used, because Triton exists only for Linux.
"""
# A kernel's arguments are device pointers and numbers, for which Python has no types.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-decorators=False
# ruff: noqa: ANN001, ANN202

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from vox_serve.nn.kernels import FEW_ROWS
from vox_serve.nn.linear import Held
from vox_serve.nn.pdl import CACHE_LINE, launch_options, start_after_fetching

WIDTH_BLOCK = 16
AHEAD_BYTES = 4096
"""How much of a weight's row is fetched before the previous kernel has ended."""
PROGRAMS = 128
"""About as many as a Hopper GPU has multiprocessors; with fewer, sums are split."""


@triton.jit
def _residual(
    x_at, parts_at, sum_at, inside, part_stride, parts: tl.constexpr, keeps_sum: tl.constexpr
):
    """A block of `x` plus its parts, rounded once; stored, if at all, by the first program."""
    x = tl.load(x_at, mask=inside, other=0.0)
    if parts > 0:
        total = x.to(tl.float32)
        for part in tl.static_range(parts):
            part_at = parts_at + part * part_stride
            total += tl.load(part_at, mask=inside, other=0.0).to(tl.float32)
        x = total.to(x.dtype)
    if keeps_sum:
        # Compare a block: Triton 3.9's interpreter does not accept a scalar in a mask.
        tl.store(sum_at, x, mask=tl.where(inside, tl.program_id(0), 1) == 0)
    return x


@triton.jit(do_not_specialize=["rows"])
def _linear(
    x_ptr,
    ids_ptr,
    parts_ptr,
    norm_ptr,
    weight_ptr,
    scale_ptr,
    out_ptr,
    sum_ptr,
    rows,
    x_stride,
    part_stride,
    part_row_stride,
    size,
    span,
    width,
    gate_offset,
    out_stride,
    eps,
    gathers: tl.constexpr,
    parts: tl.constexpr,
    normalises: tl.constexpr,
    keeps_sum: tl.constexpr,
    gates: tl.constexpr,
    scales: tl.constexpr,
    rows_block: tl.constexpr,
    width_block: tl.constexpr,
    size_block: tl.constexpr,
    ahead: tl.constexpr,
    precision: tl.constexpr,
    overlaps: tl.constexpr,
):
    """Compute `width_block` outputs of all rows, over one split of the inputs."""
    lines = tl.program_id(0) * width_block + tl.arange(0, width_block)
    row = tl.arange(0, rows_block)
    columns = tl.arange(0, size_block)
    begin = tl.program_id(1) * span
    end = begin + span
    real = (row < rows)[:, None]
    # Past the last row, that row is read again; its results are not stored.
    line = tl.minimum(lines, width - 1)
    weight_rows = weight_ptr + line.to(tl.int64)[:, None] * size
    start_after_fetching(weight_rows + begin, ahead, overlaps)

    if gathers:
        x_row = tl.load(ids_ptr + row, mask=row < rows, other=0)[:, None] * x_stride
    else:
        x_row = row[:, None] * x_stride
    dtype = x_ptr.dtype.element_ty
    part_row, sum_row = row[:, None] * part_row_stride, row[:, None] * size
    squares = tl.zeros((rows_block,), tl.float32)
    product = tl.zeros((width_block, rows_block), tl.float32)
    gated = tl.zeros((width_block, rows_block), tl.float32)
    for place in range(begin, end, size_block):
        column = (place + columns)[None]
        inside = column < end
        x = _residual(
            x_ptr + x_row + column,
            parts_ptr + part_row + column,
            sum_ptr + sum_row + column,
            real & inside,
            part_stride,
            parts,
            keeps_sum,
        )
        if normalises:
            total = x.to(tl.float32)
            squares += tl.sum(total * total, axis=1)
            weight = tl.load(norm_ptr + column, mask=inside, other=0.0)
            x = (total * weight.to(tl.float32)).to(dtype)
        x = tl.trans(x)
        weight = tl.load(weight_rows + column, mask=inside, other=0.0).to(dtype)
        product = tl.dot(weight, x, product, input_precision=precision)
        if gates:
            weight = tl.load(weight_rows + gate_offset + column, mask=inside, other=0.0)
            gated = tl.dot(weight.to(dtype), x, gated, input_precision=precision)

    if normalises:  # scaling the product is the same as scaling the row
        scale = tl.rsqrt(squares / size + eps)[None]
        product *= scale
        gated *= scale
    if scales:
        product *= tl.load(scale_ptr + line)[:, None]
        if gates:
            gated *= tl.load(scale_ptr + width + line)[:, None]
    if gates:
        product = product / (1.0 + tl.exp(-product)) * gated
    at = out_ptr + tl.program_id(1) * rows * out_stride + row[None] * out_stride + lines[:, None]
    stored = (lines < width)[:, None] & (row < rows)[None]
    tl.store(at, product.to(out_ptr.dtype.element_ty), mask=stored)


def read(
    x: torch.Tensor,
    ids: torch.Tensor | None,
    added: torch.Tensor | None,
    norm: torch.Tensor,
    eps: float,
    weights: Held,
    gates: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`residual.read` over `x` `[..., H]`, or over the rows `ids` of a table."""
    if added is not None and added.dim() == x.dim():
        added = added[None]  # left by a pass over more rows than are read here
    rows = x.reshape(-1, x.shape[-1])
    shape = (*x.shape[:-1], x.shape[-1]) if ids is None else (len(ids), 1, x.shape[-1])
    width = weights.width // (2 if gates else 1)
    out = _padded(math.prod(shape[:-1]), width, x)
    total = None if ids is None and added is None else x.new_empty(shape)
    _launch(rows, ids, added, norm, eps, weights, gates, out[None], total)
    return out.view(*shape[:-1], -1)[..., :width], x if total is None else total


def product(x: torch.Tensor, weights: Held) -> torch.Tensor:
    """`[..., K]` to `[..., N]`."""
    rows = x.reshape(-1, x.shape[-1])
    out = _padded(len(rows), weights.width, x)
    _launch(rows, None, None, None, 0.0, weights, False, out[None])
    return out.view(*x.shape[:-1], -1)[..., : weights.width]


def parts(x: torch.Tensor, weights: Held) -> torch.Tensor:
    """`[..., K]` to the parts of a sum, float32 `[S, ..., N]`."""
    rows, width = x.reshape(-1, x.shape[-1]), weights.width
    halves = width <= WIDTH_BLOCK * PROGRAMS // 2 and x.shape[-1] % 32 == 0
    shape = (2 if halves else 1, *x.shape[:-1], width)
    out = torch.empty(shape, dtype=torch.float32, device=x.device)
    _launch(rows, None, None, None, 0.0, weights, False, out.view(shape[0], -1, width))
    return out


def _padded(rows: int, width: int, x: torch.Tensor) -> torch.Tensor:
    """Rows that start at aligned addresses."""
    return torch.empty(rows, -(-width // 64) * 64, dtype=x.dtype, device=x.device)


def _launch(
    x: torch.Tensor,
    ids: torch.Tensor | None,
    added: torch.Tensor | None,
    norm: torch.Tensor | None,
    eps: float,
    weights: Held,
    gates: bool,
    out: torch.Tensor,
    total: torch.Tensor | None = None,
) -> None:
    """Write `out` `[splits, rows, at least width]`, and the residual to `total`."""
    splits, rows, out_stride = out.shape
    size, width = x.shape[1], weights.width // (2 if gates else 1)
    span, item = size // splits, weights.weight.element_size()
    added = None if added is None else added.flatten(1, -2)
    width_block, most = (32, 128) if gates else (WIDTH_BLOCK, 128 if norm is not None else 256)
    size_block = min(most, triton.next_power_of_2(span))
    ahead = min(AHEAD_BYTES, span * item) // CACHE_LINE.value
    _linear[(triton.cdiv(width, width_block), splits)](
        x,
        x if ids is None else ids,
        x if added is None else added,
        x if norm is None else norm,
        weights.weight,
        x if weights.scale is None else weights.scale,
        out,
        x if total is None else total,
        rows,
        x.stride(0),
        0 if added is None else added.stride(0),
        0 if added is None else added.stride(1),
        size,
        span,
        width,
        width * size,
        out_stride,
        eps,
        gathers=ids is not None,
        parts=0 if added is None else len(added),
        normalises=norm is not None,
        keeps_sum=total is not None,
        gates=gates,
        scales=weights.scale is not None,
        rows_block=FEW_ROWS,
        width_block=width_block,
        size_block=size_block,
        ahead=1 << max(ahead.bit_length() - 1, 0),
        precision="ieee" if x.dtype == torch.float32 else "tf32",
        num_warps=4,
        num_stages=3,
        **launch_options(x),
    )
