"""The Triton kernels of attention within a frame of a depth decoder.

One is for its first two positions.  The other, for a later position, also computes the product that
follows, so that few rows need one kernel instead of two.

Imported only where it is used, because Triton exists only for Linux.
"""
# A kernel's arguments are device pointers and numbers, for which Python has no types.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-decorators=False
# ruff: noqa: ANN001, ANN202

from __future__ import annotations

import torch
import triton
import triton.language as tl

from vox_serve.nn.linear import Held
from vox_serve.nn.pdl import CACHE_LINE, launch_options, start, start_after_fetching
from vox_serve.nn.triton_attention import rotated, seen

WIDTH_BLOCK = 16
"""Outputs of a program that also computes the next product."""


@triton.jit
def _pair_attention(
    qkv_ptr,
    cos_ptr,
    sin_ptr,
    keys_ptr,
    values_ptr,
    out_ptr,
    qkv_stride,
    table_stride,
    slot_stride,
    position_stride,
    head_stride,
    scale,
    heads: tl.constexpr,
    kv_heads: tl.constexpr,
    head_dim: tl.constexpr,
    group_block: tl.constexpr,
    overlaps: tl.constexpr,
):
    """Positions 0 and 1 of one row, one key/value head; they attend only to each other."""
    start(overlaps)
    row = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    group: tl.constexpr = heads // kv_heads
    dtype = keys_ptr.dtype.element_ty
    dims = tl.arange(0, head_dim)
    members = tl.arange(0, group_block)
    in_group, all_dims = (members < group)[:, None], dims < head_dim
    cos_1 = tl.load(cos_ptr + table_stride + dims).to(tl.float32)
    sin_1 = tl.load(sin_ptr + table_stride + dims).to(tl.float32)
    first, second = qkv_ptr + row * 2 * qkv_stride, qkv_ptr + (row * 2 + 1) * qkv_stride
    key, value = (heads + kv_head) * head_dim, (heads + kv_heads + kv_head) * head_dim
    key_0 = tl.load(first + key + dims)  # position 0 is not rotated
    key_1 = rotated(second + key, cos_1, sin_1, dims, all_dims, head_dim).to(dtype)
    value_0, value_1 = tl.load(first + value + dims), tl.load(second + value + dims)
    cached = row * slot_stride + kv_head * head_stride + dims
    tl.store(keys_ptr + cached, key_0)
    tl.store(keys_ptr + cached + position_stride, key_1)
    tl.store(values_ptr + cached, value_0)
    tl.store(values_ptr + cached + position_stride, value_1)

    query_rows = second + (kv_head * group + members)[:, None] * head_dim
    queries = rotated(query_rows, cos_1[None], sin_1[None], dims[None], in_group, head_dim)
    score_0 = tl.sum(queries * key_0.to(tl.float32)[None], axis=1) * scale
    score_1 = tl.sum(queries * key_1.to(tl.float32)[None], axis=1) * scale
    share = 1.0 / (1.0 + tl.exp(score_0 - score_1))[:, None]  # of position 1
    before, own = value_0.to(tl.float32)[None], value_1.to(tl.float32)[None]
    both = before * (1.0 - share) + own * share
    head = (row * 2 * heads + kv_head * group + members)[:, None] * head_dim + dims[None]
    result = out_ptr.dtype.element_ty
    alone = tl.broadcast_to(value_0[None], (group_block, head_dim))
    tl.store(out_ptr + head, alone.to(result), mask=in_group)
    tl.store(out_ptr + head + heads * head_dim, both.to(result), mask=in_group)


@triton.jit(do_not_specialize=["rows", "position"])
def _frame_attention(
    qkv_ptr,
    cos_ptr,
    sin_ptr,
    keys_ptr,
    values_ptr,
    weight_ptr,
    scale_ptr,
    out_ptr,
    rows,
    position,
    qkv_stride,
    key_slot_stride,
    key_position_stride,
    key_head_stride,
    value_slot_stride,
    value_position_stride,
    value_head_stride,
    width,
    scale,
    heads: tl.constexpr,
    kv_heads: tl.constexpr,
    head_dim: tl.constexpr,
    group_block: tl.constexpr,
    block: tl.constexpr,
    scales: tl.constexpr,
    width_block: tl.constexpr,
    ahead: tl.constexpr,
    precision: tl.constexpr,
    overlaps: tl.constexpr,
):
    """Attention of one row, one key/value head, and its part of `width_block` outputs.

    Each program repeats the attention, which is short in a frame; the first one keeps the key.
    """
    group: tl.constexpr = heads // kv_heads
    lines = tl.program_id(0) * width_block + tl.arange(0, width_block)
    kv_head = tl.program_id(1)
    row = tl.program_id(2)
    line = tl.minimum(lines, width - 1).to(tl.int64)[:, None]
    weight_rows = weight_ptr + line * heads * head_dim + kv_head * group * head_dim
    start_after_fetching(weight_rows, ahead, overlaps)

    dims = tl.arange(0, head_dim)
    members = tl.arange(0, group_block)
    cos, sin = tl.load(cos_ptr + dims).to(tl.float32), tl.load(sin_ptr + dims).to(tl.float32)
    _, weights, total = seen(
        qkv_ptr + row * qkv_stride,
        cos,
        sin,
        keys_ptr + row * key_slot_stride + kv_head * key_head_stride,
        values_ptr + row * value_slot_stride + kv_head * value_head_stride,
        key_position_stride,
        value_position_stride,
        kv_head,
        0,
        position + 1,
        position,
        tl.program_id(0) == 0,
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
    attended = tl.trans((total / weights[:, None]).to(qkv_ptr.dtype.element_ty))
    product = tl.zeros((width_block,), tl.float32)
    for member in tl.static_range(group):
        weight = tl.load(weight_rows + member * head_dim + dims[None]).to(attended.dtype)
        all_members = tl.dot(weight, attended, input_precision=precision)
        product += tl.sum(tl.where(members[None] == member, all_members, 0.0), axis=1)
    if scales:
        product *= tl.load(scale_ptr + tl.minimum(lines, width - 1))
    at = out_ptr + (kv_head * rows + row) * width + lines
    tl.store(at, product, mask=lines < width)


def pair_attention(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    heads: int,
    kv_heads: int,
) -> torch.Tensor:
    """Attention of positions 0 and 1 of each row, at the start of a frame.

    Args:
        qkv: `[B, 2, (heads + 2 * kv_heads) * D]`, not yet rotated.
        cos, sin: the RoPE tables `[positions, D]`.
        keys, values: `[B, P, kv_heads, D]`; positions 0 and 1 are written.

    Returns:
        `[B, 2, heads * D]`.
    """
    batch, head_dim = len(qkv), keys.shape[-1]
    out = torch.empty(batch, 2, heads * head_dim, dtype=qkv.dtype, device=qkv.device)
    _pair_attention[(batch, kv_heads)](
        qkv,
        cos,
        sin,
        keys,
        values,
        out,
        qkv.stride(1),
        cos.stride(0),
        *keys.stride()[:3],
        head_dim**-0.5,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        group_block=triton.next_power_of_2(heads // kv_heads),
        num_warps=2,
        **launch_options(qkv),
    )
    return out


def frame_parts(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    position: int,
    weights: Held,
    heads: int,
    kv_heads: int,
) -> torch.Tensor:
    """`triton_linear.parts` of the attention of one position per row, as one kernel.

    Args:
        qkv: `[B, (heads + 2 * kv_heads) * D]`, not yet rotated.
        cos, sin: the RoPE tables `[positions, D]`.
        keys, values: `[B, P, kv_heads, D]`; `position` is written, lower ones are read.
        weights: of the product, `[N, heads * D]`.

    Returns:
        float32 `[kv_heads, B, N]`, to be summed.
    """
    batch, (capacity, _, head_dim) = len(qkv), keys.shape[1:]
    out = torch.empty(kv_heads, batch, weights.width, dtype=torch.float32, device=qkv.device)
    turn = min(position, len(cos) - 1)
    ahead = heads // kv_heads * head_dim * weights.weight.element_size() // CACHE_LINE.value
    _frame_attention[(triton.cdiv(weights.width, WIDTH_BLOCK), kv_heads, batch)](
        qkv,
        cos[turn : turn + 1],
        sin[turn : turn + 1],
        keys,
        values,
        weights.weight,
        qkv if weights.scale is None else weights.scale,
        out,
        batch,
        position,
        qkv.stride(0),
        *keys.stride()[:3],
        *values.stride()[:3],
        weights.width,
        head_dim**-0.5,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        group_block=max(16, triton.next_power_of_2(heads // kv_heads)),
        block=min(64, max(16, triton.next_power_of_2(capacity))),
        scales=weights.scale is not None,
        width_block=WIDTH_BLOCK,
        ahead=1 << max(ahead.bit_length() - 1, 0),
        precision="ieee" if qkv.dtype == torch.float32 else "tf32",
        num_warps=4,
        num_stages=2,
        **launch_options(qkv),
    )
    return out
