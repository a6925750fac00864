"""A linear layer over few rows as one Triton kernel, with what stands around it inside.

At up to `ROWS` rows a product takes as long as its weights take to be read, and what a step then
costs beyond that is the number of its kernels.  So this one takes the place of several: it adds
what the layers before left to be added, normalises, multiplies, and gates.  The rows are the
short side of the product, filled up to 16, which the tensor cores need.

A layer whose result is to be added to the residual leaves it as float32 parts `[S, N, H]`, which
whoever reads the residual next adds up, in order: no atomics, and no row depends on another.

With programmatic dependent launch (`pdl`) the next kernel starts while this one runs, and waits
only once its weights are on their way into the cache.

Imported only where it is used: Triton exists on Linux alone.
"""
# A kernel's arguments are pointers and numbers of the device, for which Python has no types.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-decorators=False
# ruff: noqa: ANN001, ANN202

from __future__ import annotations

import torch
import triton
import triton.language as tl

from vox_serve.nn.pdl import CACHE_LINE, launch_options, start_after_fetching

ROWS = 16
AHEAD_BYTES = 4096
"""Of a weight's row, fetched before the kernel before has ended."""
PROGRAMS = 128
"""About as many as a Hopper has multiprocessors: fewer, and a sum is split."""


@triton.jit(do_not_specialize=["rows"])
def _linear(  # noqa: PLR0915  # one kernel
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
    pdl: tl.constexpr,
):
    """`width_block` outputs of all rows, over one split of the inputs."""
    lines = tl.program_id(0) * width_block + tl.arange(0, width_block)
    row = tl.arange(0, rows_block)
    columns = tl.arange(0, size_block)
    begin = tl.program_id(1) * span
    end = begin + span
    real = (row < rows)[:, None]
    # Past the last line that one is read again; what comes of it is not stored.
    line = tl.minimum(lines, width - 1)
    weight_rows = weight_ptr + line.to(tl.int64)[:, None] * size
    start_after_fetching(weight_rows + begin, ahead, pdl)

    if gathers:
        x_row = tl.load(ids_ptr + row, mask=row < rows, other=0)[:, None] * x_stride
    else:
        x_row = row[:, None] * x_stride
    dtype = x_ptr.dtype.element_ty
    own_row = row[:, None] * size
    squares = tl.zeros((rows_block,), tl.float32)
    product = tl.zeros((width_block, rows_block), tl.float32)
    gated = tl.zeros((width_block, rows_block), tl.float32)
    for place in range(begin, end, size_block):
        column = (place + columns)[None]
        inside = column < end
        x = tl.load(x_ptr + x_row + column, mask=real & inside, other=0.0)
        if parts > 0:
            total = x.to(tl.float32)
            for part in tl.static_range(parts):
                at = parts_ptr + part * rows * size + own_row + column
                total += tl.load(at, mask=real & inside, other=0.0).to(tl.float32)
            x = total.to(dtype)
        if keeps_sum:  # the first program's is enough
            mine = real & inside & (tl.program_id(0) == 0)
            tl.store(sum_ptr + own_row + column, x, mask=mine)
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

    if normalises:  # the product of a scaled row is the scaled product
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
    parts: torch.Tensor | None,
    norm: torch.Tensor | None,
    eps: float,
    weight: torch.Tensor,
    scale: torch.Tensor | None = None,
    *,
    ids: torch.Tensor | None = None,
    gates: bool = False,
    keeps_sum: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`kernels.plain_read`; see there.  Returns the product, and the sum or `x` itself."""
    rows, size = (len(x) if ids is None else len(ids)), x.shape[1]
    width = len(weight) // (2 if gates else 1)
    out = torch.empty(rows, width, dtype=x.dtype, device=x.device)
    total = torch.empty(rows, size, dtype=x.dtype, device=x.device) if keeps_sum else x
    _launch(x, parts, norm, eps, weight, scale, ids, out, total, width, 1, gates, keeps_sum)
    return out, total


def parts_of(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor | None = None
) -> torch.Tensor:
    """The product of `x` `[B, K]` and `weight` `[N, K]` as parts of a sum: float32 `[S, B, N]`."""
    width, size = weight.shape
    splits = 2 if width <= ROWS * PROGRAMS // 2 and size % 32 == 0 else 1
    out = torch.empty(splits, len(x), width, dtype=torch.float32, device=x.device)
    _launch(x, None, None, 0.0, weight, scale, None, out, x, width, splits, False, False)
    return out


def _launch(
    x: torch.Tensor,
    parts: torch.Tensor | None,
    norm: torch.Tensor | None,
    eps: float,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    ids: torch.Tensor | None,
    out: torch.Tensor,
    total: torch.Tensor,
    width: int,
    splits: int,
    gates: bool,
    keeps_sum: bool,
) -> None:
    size, item = weight.shape[1], weight.element_size()
    span = size // splits
    width_block, most = (32, 128) if gates else (16, 128 if norm is not None else 512 // item)
    size_block = min(most, triton.next_power_of_2(span))
    ahead = min(AHEAD_BYTES, span * item) // CACHE_LINE.value
    _linear[(triton.cdiv(width, width_block), splits)](
        x,
        x if ids is None else ids,
        x if parts is None else parts,
        x if norm is None else norm,
        weight,
        x if scale is None else scale,
        out,
        total,
        out.shape[-2],
        x.stride(0),
        size,
        span,
        width,
        width * size,
        out.shape[-1],
        eps,
        gathers=ids is not None,
        parts=0 if parts is None else len(parts),
        normalises=norm is not None,
        keeps_sum=keeps_sum,
        gates=gates,
        scales=scale is not None,
        rows_block=ROWS,
        width_block=width_block,
        size_block=size_block,
        ahead=1 << max(ahead.bit_length() - 1, 0),
        precision="ieee" if x.dtype == torch.float32 else "tf32",
        num_warps=4,
        num_stages=3,
        **launch_options(x),
    )
