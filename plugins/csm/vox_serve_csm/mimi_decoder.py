"""Mimi's decoder as a stream: turns a frame of codes into sound, with a state row per slot.

The quantizer turns a frame of codes into one latent, the upsampling into two; the transformer lets
them attend to the last `sliding_window` latents, and SEANet turns them into sound.  The only thing
known about checkpoints is the names of their tensors.

Everything is float32: lower precision is audible as a tone in pauses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from vox_serve.nn import Past
from vox_serve_csm.mimi_quantizer import code_table
from vox_serve_csm.mimi_transformer import StreamingTransformer
from vox_serve_csm.seanet import Read, decoder_stages

ROWS = 8
"""The usual rows of a product: four utterances with two latents each."""


class _Upsample(nn.Module):
    """The transposed convolution from frames to latents: depthwise, without a bias."""

    now: torch.Tensor  # [stride, C]
    before: torch.Tensor

    def __init__(self, weight: torch.Tensor) -> None:
        """weight: `[C, 1, 2 * stride]`."""
        super().__init__()
        now, before = weight[:, 0].t().contiguous().chunk(2)
        self.register_buffer("now", now)
        self.register_buffer("before", before)
        self.width = len(weight)

    def forward(self, x: torch.Tensor, past: Past) -> torch.Tensor:
        """`[B, 1, C]` to `[B, stride, C]`."""
        both = past.precede(x, 1)
        return torch.addcmul(x * self.now, both[:, :1], self.before)


class MimiDecoder(nn.Module):
    """Quantizer, upsampling, transformer and SEANet decoder; `allocate`, then `forward`."""

    table: torch.Tensor  # [num_codebooks * codebook_size, C]
    starts: torch.Tensor  # start of each codebook in it

    def __init__(
        self, c: Mapping[str, Any], num_codebooks: int, frame_latents: int, read: Read
    ) -> None:
        """Read the weights of K codebooks; a frame is `frame_latents` latents."""
        super().__init__()
        size = c["hidden_size"]
        table = code_table(c, num_codebooks, read)
        self.register_buffer("table", table)
        starts = torch.arange(num_codebooks, device=table.device) * c["codebook_size"]
        self.register_buffer("starts", starts)
        self.frame_latents = frame_latents
        self.upsample = _Upsample(read("upsample.conv.weight", size, 1, 2 * frame_latents))
        self.transformer = StreamingTransformer(c, read, "decoder_transformer.", ROWS)
        self.stages = decoder_stages(c, read, ROWS)

    def allocate(self, num_slots: int) -> int:
        """Allocate the state of slots 0 .. num_slots - 1; returns its bytes."""
        stages: list[Any] = [self.upsample, *self.stages]
        width = sum(stage.width for stage in stages)
        # The last row stays zero, which is the state at the start of an utterance.
        self._rows = self.table.new_zeros(num_slots + 1, width)
        self._positions = self.starts.new_zeros(num_slots)
        self._rings = self.transformer.rings(num_slots, self.frame_latents)
        return self._rows.nbytes + self._positions.nbytes + self._rings.nbytes

    def clear(self, slot: int) -> None:
        """Restore a slot's initial state."""
        self._rows[slot] = 0
        self._positions[slot] = 0
        self._rings.clear(slot)

    def forward(
        self, codes: torch.Tensor, slots: torch.Tensor, reset: torch.Tensor
    ) -> torch.Tensor:
        """`[B, K]` to `[B, samples]`."""
        initial = len(self._rows) - 1
        past = Past(self._rows.index_select(0, slots.masked_fill(reset, initial)))
        first = self._positions.index_select(0, slots).masked_fill(reset, 0)
        x = F.embedding(codes + self.starts, self.table).sum(1, keepdim=True)
        x = self.upsample(x, past)
        x = self.transformer(x, self._rings, slots, first)
        for stage in self.stages:
            x = stage(x, past)
        # Last, so that a step that raises changes nothing.
        self._rows.index_copy_(0, slots, past.after())
        self._positions.index_copy_(0, slots, first + self.frame_latents)
        pcm: torch.Tensor = x.squeeze(2)
        return pcm
