"""`vox_serve.nn.triton_sampler.pick` for rows too wide for a block: a whole text vocabulary.

One program reads its row piece by piece, several times: once to scale it, about eight times for
each threshold in use, and once to draw.  The row stays in the cache, and nothing is sorted.

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

from vox_serve.nn.pdl import launch_options, start
from vox_serve.nn.triton_sampler import gumbel, noise_key, ordered, penalised

BLOCK = 2048


@triton.jit
def _above(row, size, kept, maximum, low, middle, high, counts: tl.constexpr, block: tl.constexpr):
    """The number of tokens above each of three bounds, or the sums of their shares."""
    above_low = tl.zeros((block,), tl.float32)
    above_middle = tl.zeros((block,), tl.float32)
    above_high = tl.zeros((block,), tl.float32)
    for first in range(0, size, block):
        tokens = first + tl.arange(0, block)
        scaled = tl.load(row + tokens, mask=tokens < size, other=float("-inf"))
        images = ordered(scaled)
        share = tl.where(images >= kept, tl.exp(scaled - maximum), 0.0)
        if counts:
            share = tl.full((block,), 1.0, tl.float32)
        above_low += tl.where(images > low, share, 0.0)
        above_middle += tl.where(images > middle, share, 0.0)
        above_high += tl.where(images > high, share, 0.0)
    return tl.sum(above_low, axis=0), tl.sum(above_middle, axis=0), tl.sum(above_high, axis=0)


@triton.jit
def _half_way(low, high):
    return (low & high) + ((low ^ high) >> 1)  # rounded down; cannot overflow


@triton.jit
def _smallest(
    row, size, kept, maximum, lowest, highest, mass, counts: tl.constexpr, block: tl.constexpr
):
    """The smallest bound above which there is less than `mass`; each step quarters the range."""
    while lowest < highest:
        middle = _half_way(lowest, highest)
        low, high = _half_way(lowest, middle), _half_way(middle + 1, highest)
        above_low, above_middle, above_high = _above(
            row, size, kept, maximum, low, middle, high, counts, block
        )
        if above_middle < mass:
            highest = tl.where(above_low < mass, low, middle)
            lowest = tl.where(above_low < mass, lowest, low + 1)
        else:
            lowest = tl.where(above_high < mass, middle + 1, high + 1)
            highest = tl.where(above_high < mass, high, highest)
    return lowest


@triton.jit
def _scale(
    logits_row,
    row,
    size,
    ring,
    divisor,
    penalty,
    penalise: tl.constexpr,
    window: tl.constexpr,
    block: tl.constexpr,
):
    """Write the scaled row; returns its maximum, and whether the row is spoiled."""
    infinity = float("inf")
    spoiled = tl.zeros((block,), tl.int32)
    likeliest = tl.full((block,), -infinity, tl.float32)
    for first in range(0, size, block):
        tokens = first + tl.arange(0, block)
        inside = tokens < size
        logits = tl.load(logits_row + tokens, mask=inside, other=-infinity).to(tl.float32)
        spoiled |= (~(logits < infinity)).to(tl.int32)
        if penalise:
            logits = penalised(logits, tokens, ring, penalty, window)
        scaled = tl.div_rn(logits, divisor)
        scaled = tl.where(scaled == 0, 0.0, scaled)
        tl.store(row + tokens, scaled, mask=inside)
        likeliest = tl.maximum(likeliest, scaled)
    tl.debug_barrier()  # other threads read what one thread has stored
    return tl.max(likeliest, axis=0), tl.max(spoiled, axis=0)


@triton.jit
def _draw(row, size, lowest, floor, key, draws, block: tl.constexpr):
    """The kept token with the highest score; the first of equals."""
    infinity = float("inf")
    best = tl.full((block,), -infinity, tl.float32)
    found = tl.full((block,), 2**31 - 1, tl.int32)
    for first in range(0, size, block):
        tokens = first + tl.arange(0, block)
        scores = tl.load(row + tokens, mask=tokens < size, other=-infinity)
        if draws:
            kept = (ordered(scores) >= lowest) & (scores >= floor)
            scores = tl.where(kept, scores + gumbel(key, tokens), -infinity)
        better = scores > best
        best = tl.where(better, scores, best)
        found = tl.where(better, tokens, found)
    winners = tl.where(best == tl.max(best, axis=0), found, 2**31 - 1)
    # A spoiled row may find no code; its result must still be a valid one.
    return tl.minimum(tl.min(winners, axis=0), size - 1)


@triton.jit(do_not_specialize=["codebook"])
def _pick_wide(
    logits_ptr,
    scaled_ptr,
    slots_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    penalty_ptr,
    recent_ptr,
    seed_ptr,
    frame_ptr,
    finite_ptr,
    picked_ptr,
    logits_stride,
    size,
    codebook,
    penalise: tl.constexpr,
    first_of_frame: tl.constexpr,
    window: tl.constexpr,
    block: tl.constexpr,
    overlaps: tl.constexpr,
):
    start(overlaps)
    number = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + number)
    infinity = float("inf")
    temperature = tl.load(temperature_ptr + slot)
    divisor = tl.where(temperature == 0, 1.0, temperature)
    penalty = tl.load(penalty_ptr + slot)
    row = scaled_ptr + number * size
    logits = logits_ptr + number * logits_stride
    ring = recent_ptr + slot * window
    maximum, spoiled = _scale(logits, row, size, ring, divisor, penalty, penalise, window, block)
    finite = (maximum > -infinity).to(tl.int32) * (1 - spoiled)
    known = finite
    if not first_of_frame:
        known *= tl.load(finite_ptr + number).to(tl.int32)
    tl.store(finite_ptr + number, known != 0)

    lowest = tl.full((), -(2**31), tl.int32)
    floor = -infinity
    if (temperature != 0) & (finite != 0):
        highest = ordered(maximum)
        top_k = tl.load(top_k_ptr + slot)
        if (top_k > 0) & (top_k < size):
            mass = top_k.to(tl.float32)
            lowest = _smallest(row, size, lowest, maximum, lowest, highest, mass, True, block)
        top_p = tl.load(top_p_ptr + slot)
        if top_p < 1:
            least = tl.full((), -(2**31), tl.int32)
            whole, _, _ = _above(row, size, lowest, maximum, least, least, least, False, block)
            mass = top_p * whole
            lowest = _smallest(row, size, lowest, maximum, lowest, highest, mass, False, block)
        floor = maximum + tl.log(tl.load(min_p_ptr + slot))

    key = noise_key(seed_ptr + slot, frame_ptr + slot, codebook)
    picked = _draw(row, size, lowest, floor, key, temperature != 0, block)
    tl.store(picked_ptr + number, picked.to(tl.int64))


def pick(
    logits: torch.Tensor,
    slots: torch.Tensor,
    codebook: int,
    first: bool,
    picked: torch.Tensor,
    finite: torch.Tensor,
    **state: torch.Tensor,
) -> None:
    """Write `picked` and `finite`; the arguments are those of `triton_sampler.pick`."""
    batch, size = logits.shape
    scaled = torch.empty(batch, size, dtype=torch.float32, device=logits.device)
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "recent")
    _pick_wide[(batch,)](
        logits,
        scaled,
        slots,
        *(state[name] for name in (*names, "seed", "frame")),
        finite,
        picked,
        logits.stride(0),
        size,
        codebook,
        penalise=codebook == 0,
        first_of_frame=first,
        window=state["recent"].shape[1],
        block=min(BLOCK, triton.next_power_of_2(size)),
        num_warps=16,
        **launch_options(logits, rounds_each_step=True),
    )
