"""The Triton kernels behind `vox_serve.nn.kernels`, which documents what each computes.

Imported only where it is used, because Triton exists only for Linux.  Every function
launches a grid that depends only on shapes, reads nothing back and allocates what it returns.
"""
# A kernel's arguments are device pointers and numbers, for which Python has no types.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-decorators=False
# ruff: noqa: ANN001, ANN202

from __future__ import annotations

import torch
import triton
import triton.language as tl

from vox_serve.nn.pdl import launch_options, start


@triton.jit
def _normed(x, weight_ptr, columns, inside, size, eps):
    mean_square = tl.sum(x * x, axis=0) / size
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    return x * tl.rsqrt(mean_square + eps) * weight


@triton.jit
def _rms_norm(
    x_ptr, weight_ptr, out_ptr, x_stride, size, eps, block: tl.constexpr, overlaps: tl.constexpr
):
    start(overlaps)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, block)
    inside = columns < size
    x = tl.load(x_ptr + row * x_stride + columns, mask=inside, other=0.0).to(tl.float32)
    normed = _normed(x, weight_ptr, columns, inside, size, eps)
    tl.store(out_ptr + row * size + columns, normed.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _add_rms_norm(
    x_ptr,
    residual_ptr,
    weight_ptr,
    out_ptr,
    sum_ptr,
    part_stride,
    x_stride,
    residual_stride,
    size,
    eps,
    parts: tl.constexpr,
    block: tl.constexpr,
    overlaps: tl.constexpr,
):
    start(overlaps)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, block)
    inside = columns < size
    residual_row = residual_ptr + row * residual_stride
    total = tl.load(residual_row + columns, mask=inside, other=0.0).to(tl.float32)
    for part in tl.static_range(parts):
        x_row = x_ptr + part * part_stride + row * x_stride
        total += tl.load(x_row + columns, mask=inside, other=0.0).to(tl.float32)
    total = total.to(sum_ptr.dtype.element_ty)
    tl.store(sum_ptr + row * size + columns, total, mask=inside)
    normed = _normed(total.to(tl.float32), weight_ptr, columns, inside, size, eps)
    tl.store(out_ptr + row * size + columns, normed.to(out_ptr.dtype.element_ty), mask=inside)


def _rows(x: torch.Tensor) -> torch.Tensor:
    """`x` as `[N, H]` with contiguous rows; copied only if it must be."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()


def _norm_warps(block: int) -> int:
    return min(max(block // 512, 1), 8)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    rows = _rows(x)
    count, size = rows.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    block = triton.next_power_of_2(size)
    if count:
        _rms_norm[(count,)](
            rows,
            weight,
            out,
            rows.stride(0),
            size,
            eps,
            block=block,
            num_warps=_norm_warps(block),
            **launch_options(x),
        )
    return out


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """x has the residual's shape, or, as parts of a sum, one more dimension in front."""
    parts = x if x.dim() > residual.dim() else x[None]
    parts, residual_rows = parts.flatten(1, -2), _rows(residual)
    if parts.stride(2) != 1:
        parts = parts.contiguous()
    count, size = residual_rows.shape
    out = torch.empty(residual.shape, dtype=residual.dtype, device=x.device)
    total = torch.empty_like(out)
    block = triton.next_power_of_2(size)
    if count:
        _add_rms_norm[(count,)](
            parts,
            residual_rows,
            weight,
            out,
            total,
            parts.stride(0),
            parts.stride(1),
            residual_rows.stride(0),
            size,
            eps,
            parts=len(parts),
            block=block,
            num_warps=_norm_warps(block),
            **launch_options(x),
        )
    return out, total


@triton.jit
def _head_norms(
    qkv_ptr, scale_ptr, stride, heads, dim, eps, block: tl.constexpr, overlaps: tl.constexpr
):
    start(overlaps)
    head = tl.program_id(1)
    columns = tl.arange(0, block)
    inside = columns < dim
    at = qkv_ptr + tl.program_id(0).to(tl.int64) * stride + head * dim + columns
    x = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    of = scale_ptr + tl.where(head < heads, 0, dim)
    tl.store(at, _normed(x, of, columns, inside, dim, eps).to(qkv_ptr.dtype.element_ty), inside)


def head_norms(
    qkv: torch.Tensor, weight: torch.Tensor, eps: float, heads: int, kv_heads: int
) -> torch.Tensor:
    rows, dim = _rows(qkv), len(weight) // 2
    if len(rows):
        _head_norms[(len(rows), heads + kv_heads)](
            rows,
            weight,
            rows.stride(0),
            heads,
            dim,
            eps,
            block=triton.next_power_of_2(dim),
            num_warps=1,
            **launch_options(qkv),
        )
    return rows.view(qkv.shape)


@triton.jit
def _silu_mul(gate_up_ptr, out_ptr, row_stride, size, block: tl.constexpr, overlaps: tl.constexpr):
    start(overlaps)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * block + tl.arange(0, block)
    inside = columns < size
    dtype = out_ptr.dtype.element_ty
    gate_row = gate_up_ptr + row * row_stride
    gate = tl.load(gate_row + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_row + size + columns, mask=inside, other=0.0).to(tl.float32)
    silu = (gate / (1.0 + tl.exp(-gate))).to(dtype).to(tl.float32)
    tl.store(out_ptr + row * size + columns, (silu * up).to(dtype), mask=inside)


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    rows = _rows(gate_up)
    count, size = rows.shape[0], rows.shape[1] // 2
    out = torch.empty((*gate_up.shape[:-1], size), dtype=gate_up.dtype, device=gate_up.device)
    block = min(triton.next_power_of_2(size), 1024)
    if count:
        grid = (count, triton.cdiv(size, block))
        strides = rows.stride(0), size
        _silu_mul[grid](rows, out, *strides, block=block, num_warps=4, **launch_options(rows))
    return out


@triton.jit
def _fp8_rows(
    x_ptr,
    out_ptr,
    scale_ptr,
    row_stride,
    size,
    largest,
    block: tl.constexpr,
    overlaps: tl.constexpr,
):
    start(overlaps)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, block)
    inside = columns < size
    x = tl.load(x_ptr + row * row_stride + columns, mask=inside, other=0.0).to(tl.float32)
    scale = tl.div_rn(tl.maximum(tl.max(tl.abs(x), axis=0), 1e-12), largest)
    tl.store(scale_ptr + row, scale)
    held = tl.div_rn(x, scale).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row * size + columns, held, mask=inside)


def fp8_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    rows = _rows(x)
    count, size = rows.shape
    out = torch.empty(count, size, dtype=torch.float8_e4m3fn, device=x.device)
    scale = torch.empty(count, 1, dtype=torch.float32, device=x.device)
    block = triton.next_power_of_2(size)
    if count:
        largest = torch.finfo(out.dtype).max
        _fp8_rows[(count,)](
            rows,
            out,
            scale,
            rows.stride(0),
            size,
            largest,
            block=block,
            num_warps=_norm_warps(block),
            **launch_options(x),
        )
    return out, scale
