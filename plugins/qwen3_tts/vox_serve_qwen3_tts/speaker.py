"""The speaker encoder: a clip to a vector that says who speaks.

ECAPA-TDNN (Desplanques, Thienpondt, Demuynck, "ECAPA-TDNN", 2020) over a mel spectrogram.
Float32 throughout.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from vox_serve import CheckpointError
from vox_serve.nn import WeightLoader, held_bytes, uninitialised

WINDOW, HOP, MELS, SAMPLE_RATE = 1024, 256, 128, 24000
"""Of the spectrogram, in samples; fixed in the package."""
_DEFAULTS: Mapping[str, Any] = {
    "mel_dim": MELS,
    "enc_dim": 1024,
    "enc_channels": (512, 512, 512, 512, 1536),
    "enc_kernel_sizes": (5, 3, 3, 3, 1),
    "enc_dilations": (1, 2, 3, 4, 1),
    "enc_attention_channels": 128,
    "enc_res2net_scale": 8,
    "enc_se_channels": 128,
    "sample_rate": SAMPLE_RATE,
}


def mel_filters(bands: int, bins: int, sample_rate: int) -> torch.Tensor:
    """Slaney's filters of equal area, from 0 to half the rate, float32 `[bands, bins]`.

    Source: Slaney, "Auditory Toolbox" (1998): linear below 1 kHz, logarithmic above.
    """
    top = torch.tensor(sample_rate / 2, dtype=torch.float64)
    step = torch.tensor(6.4, dtype=torch.float64).log() / 27  # of the logarithmic part
    highest = 15 + (top / 1000).log() / step
    mels = torch.linspace(0, float(highest), bands + 2, dtype=torch.float64)
    edges = torch.where(mels < 15, mels * 200 / 3, 1000 * (step * (mels - 15)).exp())
    places = torch.linspace(0, float(top), bins, dtype=torch.float64)
    rising = (places - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - places) / (edges[2:] - edges[1:-1])[:, None]
    triangles = torch.minimum(rising, falling).clamp(min=0)
    return (triangles * (2 / (edges[2:] - edges[:-2]))[:, None]).float()


class _Conv(nn.Module):
    """A convolution with reflected borders, and ReLU: `[1, C, T]` to the same length."""

    def __init__(self, inputs: int, outputs: int, kernel: int, dilation: int) -> None:
        super().__init__()
        self.conv = _same(inputs, outputs, kernel, dilation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.conv(x))


class _Res2Net(nn.Module):
    def __init__(self, channels: int, kernel: int, dilation: int, scale: int) -> None:
        super().__init__()
        width = channels // scale
        self.scale = scale
        self.blocks = nn.ModuleList(_Conv(width, width, kernel, dilation) for _ in range(scale - 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, *parts = x.chunk(self.scale, dim=1)
        outputs = [first]
        for block, part in zip(self.blocks, parts, strict=True):
            # The first part is passed on, not added to the second.
            outputs.append(block(part if len(outputs) == 1 else part + outputs[-1]))
        return torch.cat(outputs, dim=1)


class _Excitation(nn.Module):
    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = _same(channels, inner), _same(inner, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gates = F.relu(self.conv1(x.mean(dim=2, keepdim=True)))
        gated: torch.Tensor = x * self.conv2(gates).sigmoid()
        return gated


class _Block(nn.Module):
    def __init__(self, channels: int, kernel: int, dilation: int, c: Mapping[str, Any]) -> None:
        super().__init__()
        self.tdnn1 = _Conv(channels, channels, 1, 1)
        self.res2net_block = _Res2Net(channels, kernel, dilation, c["enc_res2net_scale"])
        self.tdnn2 = _Conv(channels, channels, 1, 1)
        self.se_block = _Excitation(channels, c["enc_se_channels"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.se_block(self.tdnn2(self.res2net_block(self.tdnn1(x))))
        return y + x


class _Pooling(nn.Module):
    """Mean and deviation over time, weighted by attention: `[1, C, T]` to `[1, 2 C, 1]`."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.tdnn = _Conv(3 * channels, inner, 1, 1)
        self.conv = _same(inner, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        even = torch.full_like(x[:, :1], 1 / x.shape[2])
        wide = [statistic.expand_as(x) for statistic in _statistics(x, even)]
        weights = self.conv(self.tdnn(torch.cat([x, *wide], dim=1)).tanh()).softmax(dim=2)
        return torch.cat(_statistics(x, weights), dim=1)


def _statistics(x: torch.Tensor, weights: torch.Tensor) -> list[torch.Tensor]:
    mean = (weights * x).sum(2, keepdim=True)
    variance = (weights * (x - mean).square()).sum(2, keepdim=True)
    return [mean, variance.clamp(min=1e-12).sqrt()]


class SpeakerEncoder(nn.Module):
    """Build, `load`, then call with a clip `[T]`: float32 `[enc_dim]`."""

    filters: torch.Tensor
    window: torch.Tensor

    def __init__(self, config: Mapping[str, Any], device: torch.device) -> None:
        """Raises CheckpointError if the sizes are not supported."""
        super().__init__()
        c = {**_DEFAULTS, **{k: v for k, v in config.items() if v is not None}}
        widths, kernels = c["enc_channels"], c["enc_kernel_sizes"]
        spans = c["enc_dilations"]
        if not all(isinstance(sizes, list | tuple) for sizes in (widths, kernels, spans)):
            raise CheckpointError("speaker_encoder_config: sizes by layer must be lists")
        inner, split = widths[:-1], c["enc_res2net_scale"]
        if (
            (c["mel_dim"], c["sample_rate"]) != (MELS, SAMPLE_RATE)
            or not 3 <= len(widths) == len(kernels) == len(spans)
            or len(set(inner)) != 1
            or widths[-1] != sum(inner[1:])
            or inner[0] % split
        ):
            raise CheckpointError("speaker_encoder_config: these sizes are not supported")
        with uninitialised():
            blocks: list[nn.Module] = [_Conv(MELS, inner[0], kernels[0], spans[0])]
            for kernel, dilation in zip(kernels[1:-1], spans[1:-1], strict=True):
                blocks.append(_Block(inner[0], kernel, dilation, c))
            self.blocks = nn.ModuleList(blocks)
            self.mfa = _Conv(widths[-1], widths[-1], kernels[-1], spans[-1])
            self.asp = _Pooling(widths[-1], c["enc_attention_channels"])
            self.fc = nn.Conv1d(2 * widths[-1], c["enc_dim"], 1)
        self.size = int(c["enc_dim"])
        self.to_empty(device=device).requires_grad_(False)
        filters = mel_filters(MELS, WINDOW // 2 + 1, SAMPLE_RATE)
        self.register_buffer("filters", filters.to(device), persistent=False)
        window = torch.hann_window(WINDOW, device=device)
        self.register_buffer("window", window, persistent=False)

    def load(self, loader: WeightLoader, prefix: str) -> None:
        """Fill the weights.  Raises CheckpointError."""
        for name, parameter in self.named_parameters():
            loader.fill(parameter, [prefix + name])

    @property
    def weight_bytes(self) -> int:
        return held_bytes(self)

    @torch.no_grad()
    def forward(self, pcm: torch.Tensor) -> torch.Tensor:
        x = self.mels(pcm)[None]
        outputs = []
        for block in self.blocks:
            x = block(x)
            outputs.append(x)
        x = self.asp(self.mfa(torch.cat(outputs[1:], dim=1)))
        vector: torch.Tensor = self.fc(x)[0, :, 0]
        return vector

    def mels(self, pcm: torch.Tensor) -> torch.Tensor:
        """The logarithmic mel spectrogram of a clip `[T]`, `[128, frames]`."""
        pad = (WINDOW - HOP) // 2
        # Short clips are padded with silence, because the borders are reflected, here and above.
        pcm = F.pad(pcm, (0, max(0, 16 * HOP - len(pcm))))
        padded = F.pad(pcm[None, None], (pad, pad), mode="reflect")[0, 0]
        spectrum = torch.stft(
            padded, WINDOW, HOP, window=self.window, center=False, return_complex=True
        )
        size = (torch.view_as_real(spectrum).square().sum(-1) + 1e-9).sqrt()
        return (self.filters @ size).clamp(min=1e-5).log()


def _same(inputs: int, outputs: int, kernel: int = 1, dilation: int = 1) -> nn.Conv1d:
    return nn.Conv1d(
        inputs, outputs, kernel, dilation=dilation, padding="same", padding_mode="reflect"
    )
