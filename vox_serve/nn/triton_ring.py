"""The Triton kernel of a codec's attention over rings of keys and values, which it reads in place.

Imported only where it is used, because Triton exists only for Linux.  See
`vox_serve.nn.mimi_transformer` for the plain version.
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
def _halves(rows, mask, head_dim: tl.constexpr):
    """The even and the odd numbers of `[T, D]`, each `[T, D / 2]`."""
    pairs = 2 * tl.arange(0, head_dim // 2)[None]
    return (
        tl.load(rows + pairs, mask=mask, other=0.0),
        tl.load(rows + pairs + 1, mask=mask, other=0.0),
    )


@triton.jit
def _ring_attention(
    qkv_ptr,
    rotations_ptr,
    ring_ptr,
    slots_ptr,
    first_ptr,
    out_ptr,
    scale,
    window,
    capacity,
    heads: tl.constexpr,
    head_dim: tl.constexpr,
    time: tl.constexpr,
    time_block: tl.constexpr,
    block: tl.constexpr,
    overlaps: tl.constexpr,
):
    """Attention for the latents of one step, one row and one head."""
    start(overlaps)
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    size: tl.constexpr = heads * head_dim
    steps = tl.arange(0, time_block)
    dims = tl.arange(0, head_dim)
    here = (steps < time)[:, None]
    vectors = (row * time + steps)[:, None]
    qkv = qkv_ptr + vectors * 3 * size + head * head_dim
    cos, sin = _halves(rotations_ptr + vectors * head_dim, here, head_dim)
    even, odd = _halves(qkv, here, head_dim)
    queries = tl.interleave(even * cos - odd * sin, even * sin + odd * cos)
    even, odd = _halves(qkv + size, here, head_dim)
    keys = tl.interleave(even * cos - odd * sin, even * sin + odd * cos)
    values = tl.load(qkv + 2 * size + dims[None], mask=here, other=0.0)

    first = tl.load(first_ptr + row)
    key_ring = ring_ptr + (tl.load(slots_ptr + row) * 2 * heads + head) * capacity * head_dim
    value_ring = key_ring + heads * capacity * head_dim
    written = ((first + steps) % capacity)[:, None] * head_dim + dims[None]
    tl.store(key_ring + written, keys, mask=here)
    tl.store(value_ring + written, values, mask=here)

    # These latents attend to each other from registers, so the kernel reads no new entries.
    own = tl.sum(queries[:, None, :] * keys[None, :, :], axis=2) * scale
    earlier = (steps[None, :] <= steps[:, None]) & (steps < time)[None, :]
    own = tl.where(earlier, own, float("-inf"))
    highest = tl.max(own, axis=1)
    own_shares = tl.exp(own - highest[:, None])
    weights = tl.sum(own_shares, axis=1)
    total = tl.sum(own_shares[:, :, None] * values[None, :, :], axis=1)
    newest = first - 1
    for begin in range(0, capacity, block):
        places = begin + tl.arange(0, block)
        position = newest - (newest - places + capacity) % capacity
        # Values that no latent sees may be another utterance's or not finite, so they are not read.
        near = (places < capacity) & (position >= 0) & (position > first - window)
        rows = places[:, None] * head_dim + dims[None]
        old_keys = tl.load(key_ring + rows, mask=near[:, None], other=0.0)
        old_values = tl.load(value_ring + rows, mask=near[:, None], other=0.0)
        scores = tl.sum(queries[:, None, :] * old_keys[None, :, :], axis=2) * scale
        seen = near[None, :] & (position[None, :] > (first + steps)[:, None] - window)
        scores = tl.where(seen, scores, float("-inf"))
        before, highest = highest, tl.maximum(highest, tl.max(scores, axis=1))
        rescaled = tl.exp(before - highest)
        shares = tl.exp(scores - highest[:, None])
        weights = weights * rescaled + tl.sum(shares, axis=1)
        added = tl.sum(shares[:, :, None] * old_values[None, :, :], axis=1)
        total = total * rescaled[:, None] + added
    out = out_ptr + vectors * size + head * head_dim + dims[None]
    tl.store(out, total / weights[:, None], mask=here)


def ring_attention(
    qkv: torch.Tensor,
    rotations: torch.Tensor,
    ring: torch.Tensor,
    slots: torch.Tensor,
    first: torch.Tensor,
    window: int,
) -> torch.Tensor:
    """Rotate, write to the ring, and attend to the last `window` positions.

    Rows that share a slot are padding: their results are undefined.

    Args:
        qkv: float32 `[B * T, 3 * heads * D]`, contiguous, not yet rotated; T is at most
            `vox_serve.nn.kernels.RING_LATENTS`.
        rotations: complex64 `[B, T, 1, 1, D / 2]`.
        ring: `[slots, 2, heads, capacity, D]`.
        slots, first: int64 `[B]`; the position of a row's first latent.

    Returns:
        `[B * T, heads * D]`.
    """
    heads, capacity, head_dim = ring.shape[2:]
    batch, time = rotations.shape[:2]
    out = qkv.new_empty(batch * time, heads * head_dim)
    _ring_attention[(batch, heads)](
        qkv,
        torch.view_as_real(rotations),
        ring,
        slots,
        first,
        out,
        head_dim**-0.5,
        window,
        capacity,
        heads=heads,
        head_dim=head_dim,
        time=time,
        time_block=triton.next_power_of_2(time),
        block=32,
        num_warps=4,
        **launch_options(qkv),
    )
    return out
