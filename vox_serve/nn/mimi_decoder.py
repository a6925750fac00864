"""Mimi's decoder as a stream: a frame to sound, with its state in a row per slot.

The plugin's `entry` turns a frame, codes or a latent, into a vector.  Upsampling turns that into S
vectors, a transformer lets each attend to the last `sliding_window` ones, and SEANet turns them
into sound.  Of a checkpoint, this module knows only the tensors' names.

Everything is float32: lower precision is audible as a tone in pauses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from vox_serve.nn.mimi_transformer import StreamingTransformer
from vox_serve.nn.mimi_transformer_step import transformer_step
from vox_serve.nn.seanet import Read, decoder_stages
from vox_serve.nn.seanet_step import seanet_step
from vox_serve.nn.streaming import Past


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
    """Entry, upsampling, transformer and SEANet decoder; `allocate`, then `forward`.

    Args:
        c: sizes, by the names of transformers' `MimiConfig`.
        entry: a frame `[B, K]` to `[B, hidden_size]`.
        frame_latents: S, the number of vectors that SEANet takes per frame.
        read: returns a weight by name.
    """

    def __init__(
        self, c: Mapping[str, Any], entry: nn.Module, frame_latents: int, read: Read
    ) -> None:
        super().__init__()
        size = c["hidden_size"]
        self.entry = entry
        self.frame_latents = frame_latents
        self.upsample = _Upsample(read("upsample.conv.weight", size, 1, 2 * frame_latents))
        rows = 4 * frame_latents  # the usual rows of a product: four utterances
        self.transformer = StreamingTransformer(c, read, "decoder_transformer.", rows)
        self._transformer_step = transformer_step(self.transformer)
        self.stages = decoder_stages(c, read, rows)
        self._stages_step = seanet_step(self.stages, frame_latents)

    def allocate(self, num_slots: int) -> int:
        """Allocate the state of slots 0 .. num_slots - 1; returns its bytes."""
        stages: list[Any] = [self.upsample, *self.stages]
        width = sum(stage.width for stage in stages)
        # One more row stays zero: the initial state of an utterance.
        self._rows = self.upsample.now.new_zeros(num_slots + 1, width)
        self._positions = torch.zeros(num_slots, dtype=torch.int64, device=self._rows.device)
        self._rings = self.transformer.rings(num_slots, self.frame_latents)
        return self._rows.nbytes + self._positions.nbytes + self._rings.nbytes

    def clear(self, slot: int) -> None:
        """Restore a slot's initial state."""
        self._rows[slot] = 0
        self._positions[slot] = 0
        self._rings.clear(slot)

    def forward(
        self, frame: torch.Tensor, slots: torch.Tensor, reset: torch.Tensor
    ) -> torch.Tensor:
        """`[B, K]` to `[B, samples]`."""
        initial = len(self._rows) - 1
        past = Past(self._rows.index_select(0, slots.masked_fill(reset, initial)))
        first = self._positions.index_select(0, slots).masked_fill(reset, 0)
        x = self.upsample(self.entry(frame)[:, None], past)
        x = (self._transformer_step or self.transformer)(x, self._rings, slots, first)
        if self._stages_step is not None:
            x = self._stages_step(x, past)
        else:
            for stage in self.stages:
                x = stage(x, past)
        # Last, so that a step that raises changes nothing.
        self._rows.index_copy_(0, slots, past.after())
        self._positions.index_copy_(0, slots, first + self.frame_latents)
        pcm: torch.Tensor = x.squeeze(2)
        return pcm
