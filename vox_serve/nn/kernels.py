"""The small operations of a decode step: each in plain torch, and as one Triton kernel.

The plain version runs on CPUs and is the reference in tests; `use_triton` chooses.  Nothing here
reads the device from the host, and all shapes and launch grids depend only on the arguments'
shapes, so all of it can be captured in a CUDA graph.
"""

from __future__ import annotations

import importlib.util
from functools import cache

import torch
from torch.nn import functional as F

from vox_serve.nn.rope import rotate, signed

MAX_NORM_SIZE = 16384
"""A wider row does not fit one block; the plain version handles it."""
FEW_ROWS = 16
"""Up to this many rows, a product takes as long as reading its weights."""
FP8 = torch.float8_e4m3fn
DEVICES = ("cuda",)
"""Device types on which kernels run; tests add others."""
HEAD_DIMS = (32, 64, 128)
"""Head sizes that the attention kernel supports; the plain version supports any."""
RING_LATENTS = 2
"""A codec's attention kernel holds a step's latents in registers, at most this many of a row."""
MAX_CODES = 8192
"""The widest row of logits that fits one block of the sampling kernel; another kernel handles
wider ones."""


@cache
def _triton_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def use_triton(x: torch.Tensor) -> bool:
    """Whether operations on `x` run as Triton kernels: on CUDA, where Triton is installed.

    Not if a gradient is needed, because the kernels have none.
    """
    return x.device.type in DEVICES and not x.requires_grad and _triton_installed()


def few_rows(x: torch.Tensor, ids: torch.Tensor | None = None) -> bool:
    """Whether a product of `x` `[..., H]`, or of its rows `ids`, uses the kernel for few rows."""
    rows = x.numel() // x.shape[-1] if ids is None else len(ids)
    return rows <= FEW_ROWS and use_triton(x)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Norm of `x` `[..., H]` by `weight` `[H]`; computed in float32, rounded once.

    Source: Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019).
    """
    if use_triton(x) and x.shape[-1] <= MAX_NORM_SIZE:
        from vox_serve.nn import triton_kernels

        return triton_kernels.rms_norm(x, weight, eps)
    return plain_rms_norm(x, weight, eps)


def plain_rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    if x.is_cuda or x.dtype is not torch.float32 or x.requires_grad:
        return F.rms_norm(x, weight.shape, weight, eps)
    # torch's version takes seven operations on a CPU; this takes five, two of them on one number
    # per row.
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    square = torch.addcmul(_scalar(eps), length, length, value=1 / x.shape[-1])
    normed: torch.Tensor = x * square.rsqrt_() * weight
    return normed


@cache
def _scalar(value: float) -> torch.Tensor:
    return torch.full((1,), value)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`rms_norm(x + residual)` and `x + residual`, both `[..., H]`.

    The sum is rounded to its dtype before the norm reads it.  On a GPU x may also be float32
    parts `[S, ..., H]` of a sum.
    """
    if use_triton(x) and x.shape[-1] <= MAX_NORM_SIZE:
        from vox_serve.nn import triton_kernels

        return triton_kernels.add_rms_norm(x, residual, weight, eps)
    return plain_add_rms_norm(x, residual, weight, eps)


def plain_add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    residual = x + residual
    return plain_rms_norm(residual, weight, eps), residual


def head_norms(
    qkv: torch.Tensor, weight: torch.Tensor, eps: float, heads: int, kv_heads: int
) -> torch.Tensor:
    """RMS norms of query and key heads; the kernel writes them over `qkv`.

    Args:
        qkv: `[..., (heads + 2 * kv_heads) * D]`.
        weight: `[2 * D]`, of query and key heads.
    """
    if use_triton(qkv):
        from vox_serve.nn import triton_kernels

        return triton_kernels.head_norms(qkv, weight, eps, heads, kv_heads)
    return plain_head_norms(qkv, weight, eps, heads, kv_heads)


def plain_head_norms(
    qkv: torch.Tensor, weight: torch.Tensor, eps: float, heads: int, kv_heads: int
) -> torch.Tensor:
    dim = len(weight) // 2
    sizes = [heads * dim, kv_heads * dim, kv_heads * dim]
    queries, keys, values = torch.split(qkv, sizes, dim=-1)
    normed = [
        plain_rms_norm(x.reshape(*x.shape[:-1], -1, dim), part, eps).flatten(-2)
        for x, part in zip((queries, keys), weight.chunk(2), strict=True)
    ]
    return torch.cat([*normed, values], dim=-1)


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """SiLU of the first half of `gate_up` `[..., 2F]` times the second half, `[..., F]`.

    Both versions round SiLU to the dtype before the product, as two operations do.
    Source: Shazeer, "GLU Variants Improve Transformer" (2020).
    """
    if use_triton(gate_up):
        from vox_serve.nn import triton_kernels

        return triton_kernels.silu_mul(gate_up)
    return plain_silu_mul(gate_up)


def plain_silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    if gate_up.requires_grad:
        return F.silu(gate) * up
    return F.silu(gate).mul_(up)


def fp8_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`x` `[N, H]` as float8_e4m3fn, and the scales to multiply it by, float32 `[N, 1]`.

    Each row has its own scale, which maps its largest number to fp8's largest.
    Source: Micikevicius et al., "FP8 formats for deep learning" (2022).
    """
    if use_triton(x) and x.shape[-1] <= MAX_NORM_SIZE:
        from vox_serve.nn import triton_kernels

        return triton_kernels.fp8_rows(x)
    return plain_fp8_rows(x)


def plain_fp8_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    # Not clamp, because a row of NaN must stay NaN.
    largest = x.abs().amax(1, keepdim=True).float()
    scale = torch.where(largest < 1e-12, 1e-12, largest) / torch.finfo(FP8).max
    return (x / scale).to(FP8), scale


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
    extent: int | None = None,
) -> torch.Tensor:
    """One position per row: rotate, write the cache, attend over all positions so far.

    A row's result depends only on the row and its slot.  Rows that share a slot, and rows past the
    end (moved to position P - 1), are padding: their results are undefined.

    Args:
        qkv: `[B, (heads + 2 * kv_heads) * D]`, not yet rotated.
        cos, sin: the RoPE tables `[positions, D]`, half-split, in the model's dtype.
        keys, values: one layer of the cache, `[S, P, kv_heads, D]`, contiguous in D; keys are
            rotated.  Written at (slot, position), read at lower positions.
        slots, positions: int64 `[B]`.
        extent: the plain version reads positions 0 .. extent - 1, which must cover every row;
            P by default.  The kernel stops at each row's own length.

    Returns:
        `[B, heads * D]`.

    The kernel is flash-decoding (Dao, Haziza, Massa, Sizov, 2023): online softmax over splits
    of a fixed number of positions, then the splits are combined.
    """
    if use_triton(qkv) and keys.shape[-1] in HEAD_DIMS:
        from vox_serve.nn import triton_attention

        return triton_attention.decode_attention(
            qkv, cos, sin, keys, values, slots, positions, heads, kv_heads
        )
    return plain_decode_attention(
        qkv, cos, sin, keys, values, slots, positions, heads, kv_heads, extent
    )


def plain_decode_attention(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
    heads: int,
    kv_heads: int,
    extent: int | None = None,
) -> torch.Tensor:
    batch, (capacity, _, head_dim) = len(qkv), keys.shape[1:]
    extent = capacity if extent is None else extent
    turn = positions.clamp(max=len(cos) - 1)
    packed = qkv.view(batch, 1, heads + 2 * kv_heads, head_dim)
    rotated = rotate(
        packed[:, :, : heads + kv_heads],
        cos[turn][:, None, None],
        signed(sin[turn])[:, None, None],
    )
    index = (slots, positions.clamp(max=capacity - 1))
    keys[index] = rotated[:, 0, heads:]
    values[index] = packed[:, 0, heads + kv_heads :]
    reach = torch.arange(extent, device=positions.device)
    # The query heads of a group share keys, so they are stacked along time.
    out = F.scaled_dot_product_attention(
        rotated[:, 0, :heads].view(batch, kv_heads, heads // kv_heads, head_dim),
        keys[:, :extent].index_select(0, slots).transpose(1, 2),
        values[:, :extent].index_select(0, slots).transpose(1, 2),
        attn_mask=(reach <= positions[:, None])[:, None, None],
    )
    return out.reshape(batch, heads * head_dim)
