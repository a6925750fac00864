"""The discriminators (judges) of the waveform decoder.

One looks at STFTs of three resolutions (after Encodec, 2210.13438), one at the waveform folded
at five prime periods (after HiFi-GAN, 2010.05646): both detect a hiss that repeats.
Both are small, so that they can be trained on two cores.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

WINDOWS = (512, 1024, 2048)
PERIODS = (2, 3, 5, 7, 11)
_norm = nn.utils.parametrizations.weight_norm
Opinion = tuple[torch.Tensor, list[torch.Tensor]]
"""A map of scores, and the intermediate features."""


class Judges(nn.Module):
    """All judges; `channels` is the width of a judge's first layer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.judges = nn.ModuleList(
            [*(_Spectrum(w, channels) for w in WINDOWS), *(_Folded(p, channels) for p in PERIODS)]
        )

    def forward(self, sound: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """For sound `[B, N]`: each judge's scores, and all features."""
        opinions: list[Opinion] = [judge(sound) for judge in self.judges]
        return [scores for scores, _ in opinions], [f for _, some in opinions for f in some]


def _judge(layers: nn.ModuleList, x: torch.Tensor) -> Opinion:
    features: list[torch.Tensor] = []
    for layer in layers[:-1]:
        x = F.leaky_relu(layer(x), 0.2)
        features.append(x)
    return layers[-1](x), features


class _Spectrum(nn.Module):
    def __init__(self, window: int, channels: int) -> None:
        super().__init__()
        self.window = window
        layers = [_norm(nn.Conv2d(2, channels, (9, 3), (2, 1), padding=(4, 1)))]
        layers += [
            _norm(nn.Conv2d(channels, channels, (9, 3), (2, 1), (4, d), dilation=(1, d)))
            for d in (1, 2, 4)
        ]
        self.layers = nn.ModuleList([*layers, _norm(nn.Conv2d(channels, 1, 3, padding=1))])

    def forward(self, sound: torch.Tensor) -> Opinion:
        taper = torch.hann_window(self.window, device=sound.device)
        x = torch.stft(sound, self.window, self.window // 4, window=taper, return_complex=True)
        x = torch.view_as_real(x).permute(0, 3, 1, 2) / taper.square().sum().sqrt()
        return _judge(self.layers, x)


class _Folded(nn.Module):
    def __init__(self, period: int, channels: int) -> None:
        super().__init__()
        self.period = period
        widths = [1, channels, 4 * channels, 8 * channels, 8 * channels]
        layers = [_norm(nn.Conv2d(a, b, (5, 1), (3, 1), (2, 0))) for a, b in pairwise(widths)]
        self.layers = nn.ModuleList([*layers, _norm(nn.Conv2d(widths[-1], 1, (3, 1), 1, (1, 0)))])

    def forward(self, sound: torch.Tensor) -> Opinion:
        rows = sound.shape[1] // self.period
        folded = sound[:, : rows * self.period].reshape(len(sound), 1, rows, self.period)
        return _judge(self.layers, folded)
