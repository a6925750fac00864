"""`vox_serve.engine.sampler`'s pick as one Triton kernel, a program per row.

Imported only where it is used, because Triton exists only for Linux.
"""
# A kernel's arguments are device pointers and numbers, for which Python has no types.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-decorators=False
# ruff: noqa: ANN001, ANN201, ANN202

from __future__ import annotations

import torch
import triton
import triton.language as tl

from vox_serve.nn.kernels import MAX_CODES
from vox_serve.nn.pdl import launch_options, start

_GAMMA: tl.constexpr = tl.constexpr(0x9E3779B97F4A7C15)
_MIX_1: tl.constexpr = tl.constexpr(0xBF58476D1CE4E5B9)
_MIX_2: tl.constexpr = tl.constexpr(0x94D049BB133111EB)


@triton.jit
def _mix(x):
    """SplitMix64's output function, on uint64."""
    x = (x ^ (x >> 30)) * _MIX_1
    x = (x ^ (x >> 27)) * _MIX_2
    return x ^ (x >> 31)


@triton.jit
def gumbel(key, tokens):
    """`sampler.gumbel_noise` for these tokens."""
    bits = (_mix(key + (tokens + 1).to(tl.uint64) * _GAMMA) >> 41).to(tl.int32)
    uniform = (bits.to(tl.float32) + 0.5) * (2.0**-23)
    return -tl.log(-tl.log(uniform))


@triton.jit
def ordered(x):
    """An int32 per float32 with the same order as the floats; x has no negative zero."""
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def noise_key(seed_at, frame_at, codebook):
    """The key of a row's noise."""
    key = _mix(tl.load(seed_at).to(tl.uint64) + _GAMMA)
    key = _mix(key + tl.load(frame_at).to(tl.uint64))
    return _mix(key + codebook.to(tl.uint64))


@triton.jit
def penalised(logits, tokens, ring, penalty, window: tl.constexpr):
    """The logits, lowered where the token is in the ring."""
    seen = tokens < 0
    for place in tl.static_range(window):
        seen = seen | (tokens + 1 == tl.load(ring + place).to(tl.int32))
    lowered = tl.where(logits > 0, tl.div_rn(logits, penalty), logits * penalty)
    return tl.where(seen, lowered, logits)


@triton.jit
def _kth_largest(images, lowest, highest, k):
    """The largest bound that at least k images reach, that is, the k-th largest image."""
    while lowest < highest:
        middle = (lowest | highest) - ((lowest ^ highest) >> 1)  # rounded up; cannot overflow
        count = tl.sum((images >= middle).to(tl.int32), axis=0)
        lowest = tl.where(count >= k, middle, lowest)
        highest = tl.where(count > k, highest, tl.where(count == k, middle, middle - 1))
    return lowest


@triton.jit
def _nucleus(images, shares, lowest, highest, mass):
    """The smallest bound above which the shares sum to less than `mass`."""
    while lowest < highest:
        middle = (lowest & highest) + ((lowest ^ highest) >> 1)  # rounded down; cannot overflow
        above = tl.sum(tl.where(images > middle, shares, 0.0), axis=0)
        highest = tl.where(above < mass, middle, highest)
        lowest = tl.where(above < mass, lowest, middle + 1)
    return lowest


@triton.jit(do_not_specialize=["codebook"])
def _pick(
    logits_ptr,
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
    first: tl.constexpr,
    window: tl.constexpr,
    block: tl.constexpr,
    overlaps: tl.constexpr,
):
    start(overlaps)
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + row)
    tokens = tl.arange(0, block)
    inside = tokens < size
    infinity = float("inf")
    logits = tl.load(logits_ptr + row * logits_stride + tokens, mask=inside, other=-infinity)
    logits = logits.to(tl.float32)

    # NaN and +inf spoil a row; -inf by itself is a code that the model excludes.
    spoiled = tl.max((~(logits < infinity)).to(tl.int32), axis=0)
    usable = tl.max((logits > -infinity).to(tl.int32), axis=0)
    finite = usable * (1 - spoiled)
    if not first:
        finite *= tl.load(finite_ptr + row).to(tl.int32)
    tl.store(finite_ptr + row, finite != 0)

    if penalise:
        penalty = tl.load(penalty_ptr + slot)
        if penalty != 1.0:
            logits = penalised(logits, tokens, recent_ptr + slot * window, penalty, window)

    temperature = tl.load(temperature_ptr + slot)
    scores = logits
    if temperature != 0:
        scaled = tl.div_rn(logits, temperature)
        scaled = tl.where(scaled == 0, 0.0, scaled)
        images = tl.where(inside, ordered(scaled), -(2**31))
        maximum = tl.max(scaled, axis=0)
        highest = tl.max(images, axis=0)
        lowest = tl.min(tl.where(inside, images, 2**31 - 1), axis=0)
        top_k = tl.load(top_k_ptr + slot)
        if (top_k > 0) & (top_k < size):
            lowest = _kth_largest(images, lowest, highest, top_k.to(tl.int32))
        top_p = tl.load(top_p_ptr + slot)
        if top_p < 1:
            shares = tl.where(images >= lowest, tl.exp(scaled - maximum), 0.0)
            mass = top_p * tl.sum(shares, axis=0)
            lowest = _nucleus(images, shares, lowest, highest, mass)
        floor = maximum + tl.log(tl.load(min_p_ptr + slot))
        kept = inside & (images >= lowest) & (scaled >= floor)
        key = noise_key(seed_ptr + slot, frame_ptr + slot, codebook)
        scores = tl.where(kept, scaled + gumbel(key, tokens), -infinity)

    # A spoiled row may find no code; its result must still be a valid one.
    picked = tl.minimum(tl.argmax(scores, axis=0), size - 1)
    tl.store(picked_ptr + row, picked.to(tl.int64))


def pick(
    logits: torch.Tensor,
    slots: torch.Tensor,
    codebook: int,
    *,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    repetition_penalty: torch.Tensor,
    recent: torch.Tensor,
    seed: torch.Tensor,
    frame: torch.Tensor,
    finite: torch.Tensor,
    first: bool = False,
) -> torch.Tensor:
    """Pick a code per row as `sampler.RowSampler` does; one launch, no host read.

    The parameters are those of `sampler.SlotSampler`, a row per slot, and are read by slot.
    Noise, top-k and min-p agree with it up to the device's logarithm.  For top-p, the shares are
    summed in another order and rounded differently: if the sum is within float32's rounding of
    `top_p`, the nucleus may be one code larger or smaller.

    Without sorting: the thresholds are found by bisection over int32 images of the float32 logits,
    which have the same order, so a bisection of at most 32 steps is exact.

    Args:
        logits: `[B, V]`, any float dtype.
        slots: int64 `[B]`.
        codebook: the number of the codebook; keys the noise, and 0 is penalised.
        temperature, top_p, min_p, repetition_penalty: float32 `[S]`.
        top_k, seed, frame: int64 `[S]`.
        recent: int64 `[S, W]`; code + 1, and 0 is empty.
        finite: bool `[B]`; turned False where a row holds NaN, +inf or nothing but -inf.  The
            code of such a row is undefined.
        first: this is the frame's first codebook, so `finite` is not set yet.

    Returns:
        int64 `[B]`.
    """
    batch, size = logits.shape
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    picked = torch.empty(batch, dtype=torch.int64, device=logits.device)
    block = triton.next_power_of_2(size)
    if batch and size > MAX_CODES:
        from vox_serve.nn import triton_wide_sampler

        state = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
        state |= {"repetition_penalty": repetition_penalty, "recent": recent}
        state |= {"seed": seed, "frame": frame}
        triton_wide_sampler.pick(logits, slots, codebook, first, picked, finite, **state)
    elif batch:
        _pick[(batch,)](
            logits,
            slots,
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty,
            recent,
            seed,
            frame,
            finite,
            picked,
            logits.stride(0),
            size,
            codebook,
            penalise=codebook == 0,
            first=first,
            window=recent.shape[1],
            block=block,
            num_warps=min(max(block // 512, 1), 8),
            **launch_options(logits, rounds_each_step=True),
        )
    return picked
