"""Mimi's decoder as a stream: a frame of codes to sound, with its state in a row per slot.

This module takes the loaded weights out of moshi's modules, which compute the same thing in
several times as many operations: at a batch of a few rows those, not the arithmetic, are the
cost.  It knows nothing of checkpoints.

Tensors are `[B, T, channels]` throughout, so that every convolution is one matrix product:

- A causal one multiplies windows of its input, which begin in the step before.
- A transposed one, whose kernel is twice its stride S, is a causal one over two inputs with
  S times the channels: those are S outputs side by side.

Everything is float32: fewer bits are heard as a tone in the pauses.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from moshi.modules.conv import StreamingConv1d
from moshi.modules.seanet import SEANetResnetBlock
from torch import nn
from torch.nn import functional as F

from vox_serve.nn import PackedLinear
from vox_serve_csm.mimi_transformer import ROWS, StreamingTransformer

LOG2_E = math.log2(math.e)
NARROW = 16
"""Fewer columns than this cost a CPU's matrix product more than twice as many of them."""


class _Past:
    """What the layers of one step keep from the step before, in the order in which they run."""

    def __init__(self, before: torch.Tensor) -> None:
        self._before = before  # [B, width]
        self._start = 0
        self._after: list[torch.Tensor] = []

    def precede(self, x: torch.Tensor, length: int) -> torch.Tensor:
        """Put the step before's last `length` time steps ahead of `[B, T, C]`; keep x's."""
        batch, _, channels = x.shape
        before = self._before.narrow(1, self._start, length * channels)
        self._start += length * channels
        x = torch.cat((before.view(batch, length, channels), x), dim=1)
        self._after.append(x[:, x.shape[1] - length :].flatten(1))
        return x

    def after(self) -> torch.Tensor:
        """What the next step begins with: `[B, width]`."""
        return torch.cat(self._after, dim=1)


class _Upsample(nn.Module):
    """The transposed convolution between frames and latents: each channel by itself, no bias."""

    now: torch.Tensor  # [stride, C]
    before: torch.Tensor

    def __init__(self, conv: Any) -> None:
        super().__init__()
        weight = conv.convtr.convtr.weight  # [C, 1, 2 * stride]
        now, before = weight[:, 0].t().contiguous().chunk(2)
        self.register_buffer("now", now)
        self.register_buffer("before", before)
        self.width = len(weight)

    def forward(self, x: torch.Tensor, past: _Past) -> torch.Tensor:
        """`[B, 1, C]` to `[B, stride, C]`."""
        both = past.precede(x, 1)
        return torch.addcmul(x * self.now, both[:, :1], self.before)


class _Conv(nn.Module):
    """A causal convolution, or a transposed one."""

    def __init__(self, conv: Any) -> None:
        super().__init__()
        self.stride, self.dilation = 1, 1
        inner: Any
        if isinstance(conv, StreamingConv1d):
            inner = conv.conv.conv
            weight, bias = inner.weight.permute(2, 1, 0), inner.bias  # [kernel, in, out]
            self.dilation = inner.dilation[0]
            self.length = (len(weight) - 1) * self.dilation
            if 1 < inner.out_channels < NARROW and self.dilation == 1:
                # Two outputs by one longer window, with zeros.  Every T is even here.
                self.stride = 2
                pads = ((0, 0, 0, 0, 0, 1), (0, 0, 0, 0, 1, 0))
                weight = torch.cat([F.pad(weight, pad) for pad in pads], dim=2)
                bias = bias.repeat(2)
        else:
            inner = conv.convtr.convtr
            now, before = inner.weight.permute(2, 0, 1).chunk(2)  # [stride, in, out]
            weight = torch.stack((before, now)).transpose(1, 2).flatten(2)
            bias = inner.bias.repeat(len(now))
            self.length = 1
        self.channels = inner.out_channels
        # [out * stride, kernel * in]
        self.matrix = PackedLinear(weight.flatten(0, 1).t(), bias, ROWS)
        self.width = self.length * inner.in_channels

    def forward(self, x: torch.Tensor, past: _Past) -> torch.Tensor:
        """`[B, T, in]` to `[B, T * stride, out]`."""
        batch = len(x)
        if self.length:
            x = past.precede(x, self.length)
        windows = x.unfold(1, self.length + self.stride, self.stride)[..., :: self.dilation]
        windows = windows.transpose(2, 3).reshape(-1, self.matrix.in_features)
        windows = windows.contiguous()  # overlapping, they are slow to multiply
        y: torch.Tensor = self.matrix(windows)
        return y.view(batch, -1, self.channels)


class _Residual(nn.Module):
    """SEANet's residual block: a way around two convolutions."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        _, first, _, second = block.block
        self.first, self.second = _Conv(first), _Conv(second)
        straight = isinstance(block.shortcut, nn.Identity)
        self.shortcut = None if straight else _Conv(block.shortcut)
        self.width = self.first.width

    def forward(self, x: torch.Tensor, past: _Past) -> torch.Tensor:
        """`[B, T, C]` to the same."""
        y: torch.Tensor = self.second(_elu(self.first(_elu(x), past)), past)
        return y + (x if self.shortcut is None else self.shortcut(x, past))


class _Elu(nn.Module):
    width = 0

    def forward(self, x: torch.Tensor, past: _Past) -> torch.Tensor:
        return _elu(x)


def _elu(x: torch.Tensor) -> torch.Tensor:
    if x.is_cuda:
        return F.elu(x)
    # On a CPU torch's own takes twice as long, nearly all of it for exp; exp2 is another function.
    y = x.clamp_max(0.0).mul_(LOG2_E).exp2_().sub_(1.0)
    return torch.maximum(x, y, out=y)


def _stage(module: nn.Module) -> nn.Module:
    if isinstance(module, SEANetResnetBlock):
        return _Residual(module)
    if isinstance(module, nn.ELU):
        return _Elu()
    return _Conv(module)


class MimiDecoder(nn.Module):
    """Quantizer, upsampling, transformer and SEANet decoder; `allocate`, then `forward`."""

    table: torch.Tensor  # [num_codebooks * codebook_size, C]
    starts: torch.Tensor  # of each codebook in it

    def __init__(self, network: Any, num_codebooks: int, frame_latents: int) -> None:
        """Take the weights out of moshi's loaded modules."""
        super().__init__()
        tables = _tables(network["quantizer"], num_codebooks)
        self.register_buffer("table", torch.cat(tables))
        self.register_buffer("starts", torch.arange(num_codebooks) * len(tables[0]))
        self.frame_latents = frame_latents
        self.upsample = _Upsample(network["upsample"].convtr)
        self.transformer = StreamingTransformer(network["decoder_transformer"].transformer)
        self.stages = nn.ModuleList(_stage(module) for module in network["decoder"].model)
        self.to(self.table.device)

    def allocate(self, num_slots: int) -> int:
        """Make the state of slots 0 .. num_slots - 1; returns its bytes."""
        stages: list[Any] = [self.upsample, *self.stages]
        width = sum(stage.width for stage in stages)
        # A last row stays zero, which is how an utterance begins.
        self._rows = self.table.new_zeros(num_slots + 1, width)
        self._positions = self.starts.new_zeros(num_slots)
        rings = self.transformer.allocate(num_slots, self.frame_latents)
        return self._rows.nbytes + self._positions.nbytes + rings

    def clear(self, slot: int) -> None:
        """Make a slot's state as it was at first."""
        self._rows[slot] = 0
        self._positions[slot] = 0
        self.transformer.clear(slot)

    def forward(
        self, codes: torch.Tensor, slots: torch.Tensor, reset: torch.Tensor
    ) -> torch.Tensor:
        """`[B, K]` to `[B, samples]`."""
        initial = len(self._rows) - 1
        past = _Past(self._rows.index_select(0, slots.masked_fill(reset, initial)))
        first = self._positions.index_select(0, slots).masked_fill(reset, 0)
        x = F.embedding(codes + self.starts, self.table).sum(1, keepdim=True)
        x = self.upsample(x, past)
        x = self.transformer(x, slots, first)
        for stage in self.stages:
            x = stage(x, past)
        # Last of all: a step that raised is to be as if it had not been.
        self._rows.index_copy_(0, slots, past.after())
        self._positions.index_copy_(0, slots, first + self.frame_latents)
        pcm: torch.Tensor = x.squeeze(2)
        return pcm


def _tables(quantizer: Any, num_codebooks: int) -> list[torch.Tensor]:
    """What each code of each codebook adds to the latent: `[codebook_size, C]` each."""
    tables = []
    for rvq in (quantizer.rvq_first, quantizer.rvq_rest):
        for layer in rvq.vq.layers:
            table = layer._codebook.embedding
            if not isinstance(rvq.output_proj, nn.Identity):
                table = table @ rvq.output_proj.weight[..., 0].t()
            tables.append(table)
    return tables[:num_codebooks]
