"""SEANet, the convolutions of Mimi: convert sound to latents, and latents to sound.

Described in https://arxiv.org/abs/2009.02095.  Tensors are `[B, T, channels]`; every stage is
called as `stage(x, past)` and has a `width`, see `vox_serve.nn.Past`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from vox_serve.nn.streaming import CausalConv, Past, TransposedConv

Read = Callable[..., torch.Tensor]
"""`read(name, *shape)`: a checkpoint's tensor as float32 on the compute device."""

LOG2_E = math.log2(math.e)


class Elu(nn.Module):
    """`x` if x > 0, else `exp(x) - 1`."""

    width = 0

    def forward(self, x: torch.Tensor, past: Past) -> torch.Tensor:
        return _elu(x)


class Residual(nn.Module):
    """Two convolutions with a residual connection: `[B, T, C]` to the same."""

    def __init__(self, first: CausalConv, second: CausalConv, shortcut: CausalConv | None) -> None:
        super().__init__()
        self.first, self.second, self.shortcut = first, second, shortcut
        self.width = first.width + second.width

    def forward(self, x: torch.Tensor, past: Past) -> torch.Tensor:
        y: torch.Tensor = self.second(_elu(self.first(_elu(x), past)), past)
        return y + (x if self.shortcut is None else self.shortcut(x, past))


def encoder_stages(c: Mapping[str, Any], read: Read, rows: int) -> nn.ModuleList:
    """`[B, samples, 1]` to latents `[B, T, hidden_size]`, with transformers' tensor names."""
    stages = _Stages("encoder.layers.", c, read, rows)
    width = c["num_filters"]
    stages.conv(1, width, c["kernel_size"])
    for ratio in reversed(c["upsampling_ratios"]):
        stages.residuals(width)
        stages.elu()
        stages.conv(width, 2 * width, 2 * ratio, stride=ratio)
        width *= 2
    stages.elu()
    stages.conv(width, c["hidden_size"], c["last_kernel_size"])
    return stages.made


def decoder_stages(c: Mapping[str, Any], read: Read, rows: int) -> nn.ModuleList:
    """Latents `[B, T, hidden_size]` to `[B, samples, 1]`, with transformers' tensor names."""
    stages = _Stages("decoder.layers.", c, read, rows)
    width = c["num_filters"] * 2 ** len(c["upsampling_ratios"])
    stages.conv(c["hidden_size"], width, c["kernel_size"])
    for ratio in c["upsampling_ratios"]:
        stages.elu()
        stages.transposed(width, width // 2, ratio)
        width //= 2
        stages.residuals(width)
    stages.elu()
    stages.conv(width, 1, c["last_kernel_size"])
    return stages.made


class _Stages:
    """Builds stages one after another; a checkpoint numbers them."""

    def __init__(self, prefix: str, c: Mapping[str, Any], read: Read, rows: int) -> None:
        self.made = nn.ModuleList()
        self._prefix, self._c, self._read, self._rows = prefix, c, read, rows

    @property
    def _name(self) -> str:
        return f"{self._prefix}{len(self.made)}."

    def elu(self) -> None:
        self.made.append(Elu())

    def conv(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        self.made.append(self._conv(self._name, inputs, outputs, kernel, stride))

    def transposed(self, inputs: int, outputs: int, stride: int) -> None:
        weight = self._read(f"{self._name}conv.weight", inputs, outputs, 2 * stride)
        bias = self._read(f"{self._name}conv.bias", outputs)
        self.made.append(TransposedConv(weight, bias, self._rows))

    def residuals(self, width: int) -> None:
        c, inner = self._c, width // self._c["compress"]
        for number in range(c["num_residual_layers"]):
            dilation = c["dilation_growth_rate"] ** number
            name, kernel = self._name, c["residual_kernel_size"]
            first = self._conv(f"{name}block.1.", width, inner, kernel, dilation=dilation)
            second = self._conv(f"{name}block.3.", inner, width, 1)
            shortcut = None
            if c["use_conv_shortcut"]:
                shortcut = self._conv(f"{name}shortcut.", width, width, 1)
            self.made.append(Residual(first, second, shortcut))

    def _conv(
        self, name: str, inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1
    ) -> CausalConv:
        weight = self._read(f"{name}conv.weight", outputs, inputs, kernel)
        bias = self._read(f"{name}conv.bias", outputs)
        return CausalConv(weight, bias, stride, dilation, self._rows)


def _elu(x: torch.Tensor) -> torch.Tensor:
    if x.device.type != "cpu":
        return F.elu(x)
    # On a CPU, torch's version takes twice as long, mostly for exp; this one uses exp2.
    y = x.clamp_max(0.0).mul_(LOG2_E).exp2_().sub_(1.0)
    return torch.maximum(x, y, out=y)
