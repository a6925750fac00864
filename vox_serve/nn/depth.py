"""A depth decoder: picks the codes of one frame, codebook after codebook, with a small stack.

Position 0 of the stack takes the backbone's output for the frame, and position i takes the code of
codebook i - 1; the stack's output at position i gives the code of codebook i.  (The RQ-Transformer
of Lee et al., "Autoregressive image generation using residual quantization", 2022; used for speech
by Moshi, CSM and Qwen3-TTS.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import nn
from torch.nn import functional as F

from vox_serve.nn.llama import FrameCache, Llama
from vox_serve.nn.residual import Rows
from vox_serve.sampling import Sampler

PROJECTED_TOGETHER = 8192
"""Codes whose embeddings are in memory at the same time while a model loads."""


def depth_frame(
    stack: Llama,
    heads: Sequence[nn.Module] | nn.ModuleList,
    tables: Sequence[torch.Tensor],
    first: torch.Tensor,
    code: torch.Tensor,
    sampler: Sampler,
) -> torch.Tensor:
    """The codes of one frame, int64 `[B, K]`.

    Args:
        stack: prepared.
        heads: K - 1, of codebooks 1 .. K - 1.
        tables: the stack's inputs for the codes of codebooks 0 .. K - 2, `[V, W]` each.
        first: its input at position 0, `[B, W]`.
        code: the code of codebook 0, `[B]`.
        sampler: picks the others.
    """
    dtype, count = first.dtype, len(heads) + 1
    cache = FrameCache(stack.config.kv_layout, len(code), count, code.device, dtype)
    positions = _positions(count, code.device)
    codes = [code]
    x: torch.Tensor | Rows = torch.stack([first, F.embedding(code, tables[0])], dim=1)
    span = range(0, 2)
    for book, head in enumerate(heads, start=1):
        if book > 1:
            x, span = Rows(tables[book - 1], code), range(book, book + 1)
        hidden = stack(x, positions[:, span.start : span.stop], cache.append(span), head)
        code = sampler(hidden, book)
        codes.append(code)
    return torch.stack(codes, dim=1)


@cache
def _positions(count: int, device: torch.device) -> torch.Tensor:
    return torch.arange(count, device=device)[None]


@torch.no_grad()
def projected_codes(
    embedding: nn.Module, project: Callable[[torch.Tensor], torch.Tensor], count: int
) -> torch.Tensor:
    """The inputs of a depth decoder for codes 0 .. count - 1, `[count, W]`, computed once.

    So a frame uses the projection only for its hidden state.
    """
    parts = torch.arange(count, device=next(embedding.parameters()).device)
    return torch.cat([project(embedding(part)) for part in torch.split(parts, PROJECTED_TOGETHER)])
