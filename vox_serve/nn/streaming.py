"""Causal convolutions over a stream: each step continues where the previous one ended.

All tensors are `[B, T, channels]`, so that every convolution is one matrix product:

- A causal one multiplies windows of its input, which start in the previous step.
- A transposed one, whose kernel is twice its stride S, is a causal one over two inputs with S times
  the channels: S outputs side by side.

A layer keeps no state.  The caller passes what it needs from the previous step as a `Past`.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from vox_serve.nn.linear import PackedLinear

NARROW = 16
"""On a CPU, a product with fewer columns takes longer than one with twice as many."""


class Past:
    """Inputs that the layers keep from the previous step, in the order in which the layers run.

    Args:
        before: `[B, width]`, from `after` of the previous step; None at the start of the streams.
            A row of zeros is a start too, except for layers that repeat their first input.
    """

    def __init__(self, before: torch.Tensor | None) -> None:
        self._before = before
        self._start = 0
        self._after: list[torch.Tensor] = []

    def precede(self, x: torch.Tensor, length: int, repeat: bool = False) -> torch.Tensor:
        """Prepend the previous step's last `length` time steps to x `[B, T, C]`; keep x's last.

        At the start of the streams, prepend zeros, or x's first time step if `repeat`.
        """
        batch, _, channels = x.shape
        if self._before is not None:
            before = self._before.narrow(1, self._start, length * channels)
            before = before.view(batch, length, channels)
        elif repeat:
            before = x[:, :1].expand(-1, length, -1)
        else:
            before = x.new_zeros(batch, length, channels)
        self._start += length * channels
        x = torch.cat((before, x), dim=1)
        self._after.append(x[:, x.shape[1] - length :].flatten(1))
        return x

    def take(self, width: int) -> torch.Tensor:
        """The state `[B, width]` of the next layers, for a function that runs all of them.

        That function passes the new state to `keep`.
        """
        assert self._before is not None
        start, self._start = self._start, self._start + width
        return self._before.narrow(1, start, width)

    def keep(self, after: torch.Tensor) -> None:
        """The counterpart of `take`."""
        self._after.append(after)

    def after(self) -> torch.Tensor:
        """The `before` of the next step, `[B, width]`."""
        return torch.cat(self._after, dim=1)


class _Windows(nn.Module):
    """A matrix that multiplies windows of its input.

    Args:
        weight: `[kernel, in, out]`, where `out` may be several outputs of `channels` each.
        stride: distance between windows, in inputs.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        channels: int,
        stride: int,
        dilation: int,
        rows: int,
        repeat: bool = False,
    ) -> None:
        super().__init__()
        kernel, self.inputs, self.outputs = weight.shape
        self.channels, self.stride, self.dilation = channels, stride, dilation
        self._repeat = repeat
        self._span = (kernel - 1) * dilation + 1
        self._length = self._span - stride
        self.width = self._length * self.inputs
        """How much the layer adds to the width of a `Past`."""
        # [out, kernel * in]
        self.matrix = PackedLinear(weight.flatten(0, 1).t(), bias, rows)

    def forward(self, x: torch.Tensor, past: Past) -> torch.Tensor:
        batch = len(x)
        if self._length:
            x = past.precede(x, self._length, self._repeat)
        windows = x.unfold(1, self._span, self.stride)[..., :: self.dilation]
        windows = windows.transpose(2, 3).reshape(-1, self.matrix.in_features)
        windows = windows.contiguous()  # overlapping windows are slow to multiply
        y: torch.Tensor = self.matrix(windows)
        return y.view(batch, -1, self.channels)


class CausalConv(_Windows):
    """`[B, T, in]` to `[B, T / stride, out]`: each output sees inputs up to its own, no later.

    T is a multiple of the stride, and must be even if there are fewer than NARROW outputs.

    Args:
        weight: `[out, in, kernel]`, as `torch.nn.Conv1d` has it.
        bias: `[out]`.
        rows: the usual B * T / stride; see `PackedLinear`.
        repeat: a stream starts as if its first input, instead of silence, came before.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        stride: int = 1,
        dilation: int = 1,
        rows: int = 1,
        repeat: bool = False,
    ) -> None:
        channels = len(weight)
        weight = weight.permute(2, 1, 0)
        if 1 < channels < NARROW and stride == dilation == 1:
            # Compute two outputs from one longer window, padded with zeros.
            stride = 2
            pads = ((0, 0, 0, 0, 0, 1), (0, 0, 0, 0, 1, 0))
            weight = torch.cat([F.pad(weight, pad) for pad in pads], dim=2)
            bias = None if bias is None else bias.repeat(2)
        super().__init__(weight, bias, channels, stride, dilation, rows, repeat)


class TransposedConv(_Windows):
    """`[B, T, in]` to `[B, T * stride, out]`: each input adds to its own outputs and the next's.

    Args:
        weight: `[in, out, 2 * stride]`, as `torch.nn.ConvTranspose1d` has it.
        bias: `[out]`.
        rows: the usual B * T; see `PackedLinear`.
    """

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None = None, rows: int = 1
    ) -> None:
        channels = weight.shape[1]
        now, before = weight.permute(2, 0, 1).chunk(2)  # [stride, in, out]
        bias = None if bias is None else bias.repeat(len(now))
        weight = torch.stack((before, now)).transpose(1, 2).flatten(2)
        super().__init__(weight, bias, channels, stride=1, dilation=1, rows=rows)
