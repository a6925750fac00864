"""Mimi's encoder as a stream: sound to frames, piece by piece in bounded memory.

The decoder's steps in reverse: SEANet, transformer, downsampling; the plugin's `to_frames` turns
the vectors into frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import nn

from vox_serve.nn.mimi_transformer import Rings, StreamingTransformer
from vox_serve.nn.seanet import Read, encoder_stages
from vox_serve.nn.streaming import CausalConv, Past

PIECE_FRAMES = 16
"""Frames that are encoded together."""


@attrs.define(eq=False)
class Clip:
    """State that the next piece of a clip needs; `MimiEncoder.begin` creates it."""

    rings: Rings
    slots: torch.Tensor  # the only row of the rings: int64 [1]
    first: torch.Tensor  # position of the next latent: int64 [1]
    past: torch.Tensor | None = None


class MimiEncoder(nn.Module):
    """`begin` a clip, then call with one piece after another.  The state is in the `Clip`."""

    def __init__(
        self, c: Mapping[str, Any], to_frames: nn.Module, width: int, frame_latents: int, read: Read
    ) -> None:
        """Args: as for `MimiDecoder`; `to_frames` turns `[F, width]` into `[K, F]`."""
        super().__init__()
        size, self._latents = c["hidden_size"], PIECE_FRAMES * frame_latents
        self.stages = encoder_stages(c, read, rows=self._latents)
        self.transformer = StreamingTransformer(c, read, "encoder_transformer.", self._latents)
        weight = read("downsample.conv.weight", width, size, 2 * frame_latents)
        self.downsample = CausalConv(weight, stride=frame_latents, rows=PIECE_FRAMES, repeat=True)
        self.to_frames = to_frames

    def begin(self) -> Clip:
        """A new clip, in pieces of PIECE_FRAMES frames or fewer."""
        rings = self.transformer.rings(1, self._latents)
        zero = rings.time.new_zeros(1)
        return Clip(rings, zero, zero)

    def forward(self, pcm: torch.Tensor, clip: Clip) -> torch.Tensor:
        """The next samples, `[T]` of whole frames, to frames `[K, F]`."""
        past = Past(clip.past)
        x = pcm[None, :, None]
        for stage in self.stages:
            x = stage(x, past)
        first, clip.first = clip.first, clip.first + x.shape[1]
        x = self.transformer(x, clip.rings, clip.slots, first)
        x = self.downsample(x, past)
        clip.past = past.after()
        frames: torch.Tensor = self.to_frames(x[0])
        return frames
