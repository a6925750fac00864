"""Rotary position embedding, half-split layout, with Llama 3 frequency scaling.

Source: Su et al., "RoFormer" (2021); the scaling is that of Llama 3.1's published code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import attrs
import torch

from vox_serve.errors import CheckpointError


@attrs.frozen
class RopeConfig:
    """Frequencies of the rotation.

    Args:
        theta: base of the geometric series of frequencies.
        factor, low_freq_factor, high_freq_factor, original_positions: Llama 3 scaling;
            factor 1 means none.
    """

    theta: float
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_positions: int = 8192

    @classmethod
    def from_json(cls, config: Mapping[str, Any], default_theta: float) -> RopeConfig:
        """Read either spelling: `rope_theta` with `rope_scaling`, or `rope_parameters`.

        Raises:
            CheckpointError: this kind of scaling is not supported.
        """
        scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
        theta = scaling.get("rope_theta") or config.get("rope_theta") or default_theta
        kind = scaling.get("rope_type") or scaling.get("type") or "default"
        if kind == "default":
            return cls(float(theta))
        if kind != "llama3":
            raise CheckpointError(f"RoPE scaling {kind!r} is not supported; default and llama3 are")
        keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        lost = [key for key in keys if not isinstance(scaling.get(key), int | float)]
        if lost:
            raise CheckpointError(f"RoPE scaling 'llama3' needs a number for {', '.join(lost)}")
        factor, low, high, positions = (scaling[key] for key in keys)
        return cls(float(theta), float(factor), float(low), float(high), int(positions))

    def frequencies(self, head_dim: int) -> torch.Tensor:
        """Radians per position, float32 `[head_dim / 2]`."""
        exponent = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
        frequencies = 1.0 / (self.theta**exponent)
        if self.factor == 1.0:
            return frequencies
        # Low frequencies are divided by `factor`, high ones kept, and those in between blended.
        turns = self.original_positions * frequencies / (2 * math.pi)
        blend = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        blend = blend.clamp(0.0, 1.0)
        return frequencies * (blend + (1.0 - blend) / self.factor)

    def table(self, head_dim: int, positions: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines, float32 `[positions, head_dim]`."""
        angles = torch.outer(torch.arange(positions).float(), self.frequencies(head_dim))
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos(), angles.sin()


def signed(sin: torch.Tensor) -> torch.Tensor:
    """Sines `[..., D]` as `rotate` takes them: the first half negated."""
    first, second = sin.chunk(2, dim=-1)
    return torch.cat([-first, second], dim=-1)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate `x` `[B, T, H, D]` by `cos` and `signed` sines that broadcast as `[B, T, 1, D]`."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)
