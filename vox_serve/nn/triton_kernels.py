"""The Triton kernels behind `vox_serve.nn.kernels`, whose functions say what each computes.

Imported only where it is used: Triton exists on Linux alone.  Every function launches a grid
that follows from shapes, reads nothing back and allocates what it returns.
"""
# A kernel's arguments are pointers and numbers of the device, for which Python has no types.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-decorators=False
# ruff: noqa: ANN001, ANN202

from __future__ import annotations

import torch
import triton
import triton.language as tl

SPLIT = 256
"""Positions per split of the attention: fixed, so that a row's sums never depend on its company."""


@triton.jit
def _normed(x, weight_ptr, columns, inside, size, eps):
    mean_square = tl.sum(x * x, axis=0) / size
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    return x * tl.rsqrt(mean_square + eps) * weight


@triton.jit
def _rms_norm(x_ptr, weight_ptr, out_ptr, x_stride, size, eps, block: tl.constexpr):
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
    x_stride,
    residual_stride,
    size,
    eps,
    block: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, block)
    inside = columns < size
    x = tl.load(x_ptr + row * x_stride + columns, mask=inside, other=0.0).to(tl.float32)
    residual_row = residual_ptr + row * residual_stride
    residual = tl.load(residual_row + columns, mask=inside, other=0.0).to(tl.float32)
    total = (x + residual).to(sum_ptr.dtype.element_ty)
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
            rows, weight, out, rows.stride(0), size, eps, block=block, num_warps=_norm_warps(block)
        )
    return out


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    rows, residual_rows = _rows(x), _rows(residual)
    count, size = rows.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    total = torch.empty_like(out)
    block = triton.next_power_of_2(size)
    if count:
        _add_rms_norm[(count,)](
            rows,
            residual_rows,
            weight,
            out,
            total,
            rows.stride(0),
            residual_rows.stride(0),
            size,
            eps,
            block=block,
            num_warps=_norm_warps(block),
        )
    return out, total


@triton.jit
def _silu_mul(gate_up_ptr, out_ptr, row_stride, size, block: tl.constexpr):
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
        _silu_mul[grid](rows, out, rows.stride(0), size, block=block, num_warps=4)
    return out


@triton.jit
def _fp8_rows(x_ptr, out_ptr, scale_ptr, row_stride, size, largest, block: tl.constexpr):
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
        )
    return out, scale


@triton.jit
def _rotated(x_ptr, cos, sin, dims, mask, head_dim: tl.constexpr):
    """Rotate as `rope.rotate` does, rounded to the dtype as there; float32 of that dtype."""
    dtype = x_ptr.dtype.element_ty
    x = tl.load(x_ptr + dims, mask=mask, other=0.0).to(tl.float32)
    half = head_dim // 2
    partner = tl.load(x_ptr + (dims + half) % head_dim, mask=mask, other=0.0).to(tl.float32)
    partner = tl.where(dims < half, -partner, partner)
    along = (x * cos).to(dtype).to(tl.float32)
    return (along + partner * sin).to(dtype).to(tl.float32)


@triton.jit
def _attend(
    queries,
    key_rows,
    value_rows,
    key_stride,
    value_stride,
    begin,
    end,
    scale,
    dims,
    group_block: tl.constexpr,
    head_dim: tl.constexpr,
    block: tl.constexpr,
    precision: tl.constexpr,
):
    """Online softmax over cached positions begin .. end - 1, which may be none.

    Returns the highest score, the sum of exponentials relative to it, and the values so
    weighted, not yet divided by that sum.
    """
    highest = tl.full((group_block,), float("-inf"), tl.float32)
    weights = tl.zeros((group_block,), tl.float32)
    total = tl.zeros((group_block, head_dim), tl.float32)
    for start in range(begin, end, block):
        reach = start + tl.arange(0, block)
        line, seen = reach[:, None], (reach < end)[:, None]
        key = tl.load(key_rows + line * key_stride + dims, mask=seen, other=0.0)
        value = tl.load(value_rows + line * value_stride + dims, mask=seen, other=0.0)
        # As float32: tf32 holds 16-bit floats exactly, and leaves more of the weights than they.
        scores = tl.dot(queries, tl.trans(key.to(tl.float32)), input_precision=precision) * scale
        scores = tl.where((reach < end)[None], scores, float("-inf"))
        raised = tl.maximum(highest, tl.max(scores, axis=1))
        shares = tl.exp(scores - raised[:, None])
        kept = tl.exp(highest - raised)
        weights = weights * kept + tl.sum(shares, axis=1)
        total = total * kept[:, None]
        total += tl.dot(shares, value.to(tl.float32), input_precision=precision)
        highest = raised
    return highest, weights, total


@triton.jit
def _decode_attention(
    qkv_ptr,
    cos_ptr,
    sin_ptr,
    keys_ptr,
    values_ptr,
    slots_ptr,
    positions_ptr,
    out_ptr,
    lse_ptr,
    qkv_stride,
    cos_stride,
    sin_stride,
    key_slot_stride,
    key_position_stride,
    key_head_stride,
    value_slot_stride,
    value_position_stride,
    value_head_stride,
    table_size,
    capacity,
    scale,
    heads: tl.constexpr,
    kv_heads: tl.constexpr,
    head_dim: tl.constexpr,
    group_block: tl.constexpr,
    block: tl.constexpr,
    split_size: tl.constexpr,
    splits: tl.constexpr,
    precision: tl.constexpr,
):
    """One row, one key/value head, one split of its positions."""
    row = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    slot = tl.load(slots_ptr + row)
    asked = tl.maximum(tl.load(positions_ptr + row), 0)
    position = tl.minimum(asked, capacity - 1).to(tl.int32)
    begin = split * split_size
    if begin > position:
        return

    group: tl.constexpr = heads // kv_heads
    dims = tl.arange(0, head_dim)
    members = tl.arange(0, group_block)  # more than the group where a product needs 16 lines
    in_group = (members < group)[:, None]
    dtype = keys_ptr.dtype.element_ty
    turn = tl.minimum(asked, table_size - 1)
    cos = tl.load(cos_ptr + turn * cos_stride + dims).to(tl.float32)
    sin = tl.load(sin_ptr + turn * sin_stride + dims).to(tl.float32)
    packed = qkv_ptr + row * qkv_stride
    query_rows = packed + (kv_head * group + members)[:, None] * head_dim
    queries = _rotated(query_rows, cos[None], sin[None], dims[None], in_group, head_dim)
    key_rows = keys_ptr + slot * key_slot_stride + kv_head * key_head_stride
    value_rows = values_ptr + slot * value_slot_stride + kv_head * value_head_stride

    highest, weights, total = _attend(
        queries,
        key_rows,
        value_rows,
        key_position_stride,
        value_position_stride,
        begin,
        tl.minimum(begin + split_size, position),
        scale,
        dims,
        group_block,
        head_dim,
        block,
        precision,
    )

    if position < begin + split_size:  # the split that owns the position: the row's own key
        all_dims = dims < head_dim
        key_row = packed + (heads + kv_head) * head_dim
        value_row = packed + (heads + kv_heads + kv_head) * head_dim
        own_key = _rotated(key_row, cos, sin, dims, all_dims, head_dim).to(dtype)
        own_value = tl.load(value_row + dims).to(dtype)
        tl.store(key_rows + position * key_position_stride + dims, own_key)
        tl.store(value_rows + position * value_position_stride + dims, own_value)
        score = tl.sum(queries * own_key.to(tl.float32)[None], axis=1) * scale
        raised = tl.maximum(highest, score)
        share = tl.exp(score - raised)
        kept = tl.exp(highest - raised)
        weights = weights * kept + share
        total = total * kept[:, None] + share[:, None] * own_value.to(tl.float32)[None]
        highest = raised

    result = total / weights[:, None]
    head = row * heads + kv_head * group + members
    if splits == 1:
        out_rows = out_ptr + head[:, None] * head_dim
        tl.store(out_rows + dims[None], result.to(out_ptr.dtype.element_ty), mask=in_group)
    else:
        place = head * splits + split
        tl.store(out_ptr + place[:, None] * head_dim + dims[None], result, mask=in_group)
        tl.store(lse_ptr + place, highest + tl.log(weights), mask=members < group)


@triton.jit
def _combine_splits(
    parts_ptr,
    lse_ptr,
    positions_ptr,
    out_ptr,
    capacity,
    heads: tl.constexpr,
    head_dim: tl.constexpr,
    split_size: tl.constexpr,
    splits: tl.constexpr,
    splits_block: tl.constexpr,
):
    """The mean of a head's splits, weighted by the sum of exponentials that each stands for."""
    row = tl.program_id(0).to(tl.int64)
    head = row * heads + tl.program_id(1)
    position = tl.minimum(tl.maximum(tl.load(positions_ptr + row), 0), capacity - 1)
    split = tl.arange(0, splits_block)
    used = split <= position // split_size
    dims = tl.arange(0, head_dim)
    lse = tl.load(lse_ptr + head * splits + split, mask=used, other=float("-inf"))
    weights = tl.exp(lse - tl.max(lse, axis=0))
    places = (head * splits + split)[:, None] * head_dim + dims
    parts = tl.load(parts_ptr + places, mask=used[:, None], other=0.0)
    mean = tl.sum(parts * weights[:, None], axis=0) / tl.sum(weights, axis=0)
    tl.store(out_ptr + head * head_dim + dims, mean.to(out_ptr.dtype.element_ty))


def decode_attention(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
    heads: int,
    kv_heads: int,
) -> torch.Tensor:
    batch, (capacity, _, head_dim) = len(qkv), keys.shape[1:]
    splits = triton.cdiv(capacity, SPLIT)
    out = torch.empty(batch, heads * head_dim, dtype=qkv.dtype, device=qkv.device)
    if not batch:
        return out
    parts = lse = out
    if splits > 1:
        parts = torch.empty(batch, heads, splits, head_dim, dtype=torch.float32, device=qkv.device)
        lse = torch.empty(batch, heads, splits, dtype=torch.float32, device=qkv.device)
    _decode_attention[(batch, kv_heads, splits)](
        qkv,
        cos,
        sin,
        keys,
        values,
        slots,
        positions,
        parts,
        lse,
        qkv.stride(0),
        cos.stride(0),
        sin.stride(0),
        *keys.stride()[:3],
        *values.stride()[:3],
        len(cos),
        capacity,
        head_dim**-0.5,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        group_block=max(16, triton.next_power_of_2(heads // kv_heads)),
        block=min(64, max(16, triton.next_power_of_2(capacity))),
        split_size=SPLIT,
        splits=splits,
        precision="ieee" if qkv.dtype == torch.float32 else "tf32",
        num_warps=4,
        num_stages=2,
    )
    if splits > 1:
        _combine_splits[(batch, heads)](
            parts,
            lse,
            positions,
            out,
            capacity,
            heads=heads,
            head_dim=head_dim,
            split_size=SPLIT,
            splits=splits,
            splits_block=triton.next_power_of_2(splits),
            num_warps=4,
        )
    return out
