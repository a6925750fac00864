"""The Triton kernel of attention for one position per row.

Imported only where it is used, because Triton exists only for Linux.  See
`vox_serve.nn.kernels.decode_attention` for what is computed.
"""
# A kernel's arguments are device pointers and numbers, for which Python has no types.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-decorators=False
# ruff: noqa: ANN001, ANN201, ANN202

from __future__ import annotations

import torch
import triton
import triton.language as tl

from vox_serve.nn.pdl import launch_options, start

SPLIT = 256
"""Positions per split of the attention: fixed, so that a row's sums never depend on other rows."""


@triton.jit
def rotated(x_ptr, cos, sin, dims, mask, head_dim: tl.constexpr):
    """Rotate as `rope.rotate` does, with the same rounding to the dtype; returns float32."""
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
    """Online softmax over cached positions begin .. end - 1; the range may be empty.

    Returns the highest score, the sum of exponentials relative to it, and the values weighted by
    them, not yet divided by that sum.
    """
    highest = tl.full((group_block,), float("-inf"), tl.float32)
    weights = tl.zeros((group_block,), tl.float32)
    total = tl.zeros((group_block, head_dim), tl.float32)
    for place in range(begin, end, block):
        reach = place + tl.arange(0, block)
        line, seen = reach[:, None], (reach < end)[:, None]
        key = tl.load(key_rows + line * key_stride + dims, mask=seen, other=0.0)
        value = tl.load(value_rows + line * value_stride + dims, mask=seen, other=0.0)
        # As float32: tf32 represents 16-bit floats exactly, and rounds the weights less.
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
def seen(
    packed,
    cos,
    sin,
    key_rows,
    value_rows,
    key_stride,
    value_stride,
    kv_head,
    begin,
    end,
    position,
    keeps,
    scale,
    dims,
    members,
    heads: tl.constexpr,
    kv_heads: tl.constexpr,
    head_dim: tl.constexpr,
    group_block: tl.constexpr,
    block: tl.constexpr,
    precision: tl.constexpr,
):
    """`_attend` over the positions of one row, one key/value head, that lie in begin .. end - 1.

    The row's own position is read from `packed`, and is cached if `keeps`.
    """
    group: tl.constexpr = heads // kv_heads
    in_group = (members < group)[:, None]
    query_rows = packed + (kv_head * group + members)[:, None] * head_dim
    queries = rotated(query_rows, cos[None], sin[None], dims[None], in_group, head_dim)
    highest, weights, total = _attend(
        queries,
        key_rows,
        value_rows,
        key_stride,
        value_stride,
        begin,
        tl.minimum(end, position),
        scale,
        dims,
        group_block,
        head_dim,
        block,
        precision,
    )
    if position < end:
        dtype = key_rows.dtype.element_ty
        all_dims = dims < head_dim
        key_row = packed + (heads + kv_head) * head_dim
        value_row = packed + (heads + kv_heads + kv_head) * head_dim
        own_key = rotated(key_row, cos, sin, dims, all_dims, head_dim).to(dtype)
        own_value = tl.load(value_row + dims).to(dtype)
        if keeps:
            tl.store(key_rows + position * key_stride + dims, own_key)
            tl.store(value_rows + position * value_stride + dims, own_value)
        score = tl.sum(queries * own_key.to(tl.float32)[None], axis=1) * scale
        raised = tl.maximum(highest, score)
        share = tl.exp(score - raised)
        kept = tl.exp(highest - raised)
        weights = weights * kept + share
        total = total * kept[:, None] + share[:, None] * own_value.to(tl.float32)[None]
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
    overlaps: tl.constexpr,
):
    """One row, one key/value head, one split of its positions."""
    start(overlaps)
    row = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    slot = tl.load(slots_ptr + row)
    asked = tl.maximum(tl.load(positions_ptr + row), 0)
    position = tl.minimum(asked, capacity - 1).to(tl.int32)
    begin = split * split_size
    if begin > position:
        return

    dims = tl.arange(0, head_dim)
    members = tl.arange(0, group_block)  # padded, because a product needs 16 rows
    turn = tl.minimum(asked, table_size - 1)
    highest, weights, total = seen(
        qkv_ptr + row * qkv_stride,
        tl.load(cos_ptr + turn * cos_stride + dims).to(tl.float32),
        tl.load(sin_ptr + turn * sin_stride + dims).to(tl.float32),
        keys_ptr + slot * key_slot_stride + kv_head * key_head_stride,
        values_ptr + slot * value_slot_stride + kv_head * value_head_stride,
        key_position_stride,
        value_position_stride,
        kv_head,
        begin,
        begin + split_size,
        position,
        True,
        scale,
        dims,
        members,
        heads,
        kv_heads,
        head_dim,
        group_block,
        block,
        precision,
    )
    group: tl.constexpr = heads // kv_heads
    in_group = (members < group)[:, None]
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
    overlaps: tl.constexpr,
):
    """The mean of a head's splits, weighted by each one's sum of exponentials."""
    start(overlaps)
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
        **launch_options(qkv),
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
            **launch_options(qkv),
        )
    return out
