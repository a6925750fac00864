"""A Llama decoder stack that runs over any key/value cache.

Knows nothing of tokens, heads or sampling: hidden states in, hidden states out.  Query, key
and value weights are one matrix, gate and up weights another.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from types import MappingProxyType
from typing import Any

import attrs
import torch
from torch import nn
from torch.nn import functional as F

from vox_serve.errors import CheckpointError
from vox_serve.model import KVCache, KVLayout, KVView, Place
from vox_serve.nn.kernels import (
    HEAD_DIMS,
    add_rms_norm,
    decode_attention,
    rms_norm,
    silu_mul,
    use_triton,
)
from vox_serve.nn.linear import Linear
from vox_serve.nn.rope import RopeConfig, rotate, signed

SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "rms_norm_eps",
)
"""What a configuration must name."""


@attrs.frozen
class LlamaConfig:
    """Sizes of a stack, under the names that transformers configurations use."""

    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int
    rope: RopeConfig

    @classmethod
    def from_json(
        cls,
        config: Mapping[str, Any],
        defaults: Mapping[str, Any] = MappingProxyType({}),
        default_theta: float = 10_000.0,
    ) -> LlamaConfig:
        """Read a transformers-style configuration; keys that are left out take `defaults`.

        Raises:
            CheckpointError: a size is missing, or this stack does not implement a setting.
        """
        read = {**defaults, **{k: v for k, v in config.items() if v is not None}}
        for key, only in (("hidden_act", "silu"), ("attention_bias", False), ("mlp_bias", False)):
            if read.get(key, only) != only:
                raise CheckpointError(f"{key} {read[key]!r} is not supported; only {only!r} is")
        sizes = {key: read.get(key) for key in SIZES}
        odd = [key for key, size in sizes.items() if not isinstance(size, int | float) or size <= 0]
        if odd:
            raise CheckpointError(f"{odd[0]} is {sizes[odd[0]]!r}; it must be a positive number")
        heads = int(read["num_attention_heads"])
        return cls(
            num_hidden_layers=int(read["num_hidden_layers"]),
            hidden_size=int(read["hidden_size"]),
            intermediate_size=int(read["intermediate_size"]),
            num_attention_heads=heads,
            num_key_value_heads=int(read.get("num_key_value_heads") or heads),
            head_dim=int(read.get("head_dim") or int(read["hidden_size"]) // heads),
            rms_norm_eps=float(read["rms_norm_eps"]),
            max_position_embeddings=int(read["max_position_embeddings"]),
            rope=RopeConfig.from_json(config, default_theta),
        )

    @property
    def kv_layout(self) -> KVLayout:
        return KVLayout(self.num_hidden_layers, self.num_key_value_heads, self.head_dim)


@attrs.frozen(eq=False)
class Tables:
    """RoPE's cosines and sines `[P, D]`, and the sines as `rotate` takes them."""

    cos: torch.Tensor
    sin: torch.Tensor
    signed_sin: torch.Tensor


class RMSNorm(nn.Module):
    """Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, self.weight, self.eps)

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The norm of `x + residual`, and the sum."""
        return add_rms_norm(x, residual, self.weight, self.eps)


class Turn:
    """RoPE's tables `[P, D]`, and what they say of `positions` `[B, T]`: `[B, T, 1, D]`.

    The latter is looked up when it is first asked for: the attention kernel reads the tables.
    """

    def __init__(self, tables: Tables, positions: torch.Tensor) -> None:
        self.tables = tables
        self._positions = positions

    @cached_property
    def cos(self) -> torch.Tensor:
        return self.tables.cos[self._positions][:, :, None]

    @cached_property
    def signed_sin(self) -> torch.Tensor:
        return self.tables.signed_sin[self._positions][:, :, None]


class Attention(nn.Module):
    """Grouped-query attention over a `KVView`."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        width = (self.heads + 2 * self.kv_heads) * self.head_dim
        self.qkv = Linear(config.hidden_size, width)
        self.output = Linear(self.heads * self.head_dim, config.hidden_size)

    def forward(self, x: torch.Tensor, turn: Turn, kv: KVView) -> torch.Tensor:
        batch, time, _ = x.shape
        heads, kv_heads = self.heads, self.kv_heads
        qkv = self.qkv(x)
        if time == 1 and use_triton(x) and self.head_dim in HEAD_DIMS:
            keys, values, slots, positions = kv.place(self.layer)
            cos, sin = turn.tables.cos, turn.tables.sin
            step = decode_attention(
                qkv[:, 0], cos, sin, keys, values, slots, positions, heads, kv_heads
            )
            attended: torch.Tensor = self.output(step[:, None])
            return attended
        qkv = qkv.view(batch, time, heads + 2 * kv_heads, self.head_dim)
        rotated = rotate(qkv[:, :, : heads + kv_heads], turn.cos, turn.signed_sin)
        keys, values = kv.extend(self.layer, rotated[:, :, heads:], qkv[:, :, heads + kv_heads :])
        # The query heads of a group look at the same keys: they are stacked along time.
        group = heads // kv_heads
        queries = rotated[:, :, :heads].view(batch, time, kv_heads, group, self.head_dim)
        queries = queries.permute(0, 2, 3, 1, 4).reshape(batch, kv_heads, group * time, -1)
        mask = kv.mask
        if mask is not None and time > 1:
            mask = mask.repeat(1, 1, group, 1)
        out = F.scaled_dot_product_attention(
            queries, keys.transpose(1, 2), values.transpose(1, 2), attn_mask=mask
        )
        out = out.view(batch, kv_heads, group, time, self.head_dim).permute(0, 3, 1, 2, 4)
        projected: torch.Tensor = self.output(out.reshape(batch, time, -1))
        return projected


class FeedForward(nn.Module):
    """SwiGLU (Shazeer, "GLU Variants Improve Transformer", 2020)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_up = Linear(config.hidden_size, 2 * config.intermediate_size)
        self.down = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        down: torch.Tensor = self.down(silu_mul(self.gate_up(x)))
        return down


class Layer(nn.Module):
    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = Attention(config, layer)
        self.feed_forward_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.feed_forward = FeedForward(config)

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor | None, turn: Turn, kv: KVView
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What is added next, and the sum so far: each sum is made by the norm that reads it."""
        if residual is None:  # there is nothing to add to yet
            x, residual = self.attention_norm(x), x
        else:
            x, residual = self.attention_norm.add(x, residual)
        x, residual = self.feed_forward_norm.add(self.attention(x, turn, kv), residual)
        return self.feed_forward(x), residual


class Llama(nn.Module):
    """Hidden states `[B, T, H]` at `positions` `[B, T]` (or `[1, T]`) to normed `[B, T, H]`."""

    tables: Tables

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def prepare(self, device: torch.device, dtype: torch.dtype) -> None:
        """Compute the RoPE tables; call it once the weights are loaded."""
        tables = self.config.rope.table(self.config.head_dim, self.config.max_position_embeddings)
        cos, sin = (table.to(device=device, dtype=dtype) for table in tables)
        self.tables = Tables(cos, sin, signed(sin))

    def forward(self, x: torch.Tensor, positions: torch.Tensor, kv: KVView) -> torch.Tensor:
        # Padding may point past the end; what is computed there is thrown away.
        positions = positions.clamp(max=self.config.max_position_embeddings - 1)
        turn = Turn(self.tables, positions)
        residual: torch.Tensor | None = None
        for layer in self.layers:
            x, residual = layer(x, residual, turn, kv)
        assert residual is not None  # a stack has layers
        normed: torch.Tensor = self.norm.add(x, residual)[0]
        return normed

    def prefill(
        self, x: torch.Tensor, lengths: torch.Tensor, slots: torch.Tensor, kv: KVCache
    ) -> torch.Tensor:
        """`Model.prefill` of embedded prompts `[B, T, H]`: the last hidden states, `[B, H]`."""
        steps = torch.arange(x.shape[1], device=x.device)
        positions = kv.lengths[slots][:, None] + steps
        hidden: torch.Tensor = self(x, positions, kv.view(slots, positions))
        return hidden[torch.arange(len(slots), device=x.device), lengths - 1]

    def advance(self, x: torch.Tensor, slots: torch.Tensor, kv: KVCache) -> torch.Tensor:
        """`Model.advance` of embedded frames `[B, H]`: the next hidden states, `[B, H]`."""
        positions = kv.lengths[slots][:, None]
        hidden: torch.Tensor = self(x[:, None], positions, kv.view(slots, positions))
        return hidden[:, 0]


class FrameCache:
    """A `KVView` for a depth decoder: it lives for one frame, all rows at the same position.

    Args:
        layout: of the depth decoder.
        positions: the most positions of one frame.
    """

    def __init__(
        self,
        layout: KVLayout,
        batch: int,
        positions: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        shape = (layout.num_layers, batch, positions, layout.num_kv_heads, layout.head_dim)
        self._keys = torch.empty(shape, device=device, dtype=dtype)
        self._values = torch.empty(shape, device=device, dtype=dtype)
        self._start = 0
        self.mask: torch.Tensor | None = None
        self._rows = torch.arange(batch, device=device)
        self._places = torch.arange(positions, device=device)[:, None].repeat(1, batch)

    def append(self, positions: range) -> FrameCache:
        """Make ready for a pass over these positions, which follow the ones before."""
        self._start = positions.start
        if len(positions) == 1:
            self.mask = None
        else:
            device = self._keys.device
            query = torch.arange(positions.start, positions.stop, device=device)
            self.mask = torch.arange(positions.stop, device=device) <= query[:, None]
            self.mask = self.mask[None, None]
        return self

    def place(self, layer: int) -> Place:
        return self._keys[layer], self._values[layer], self._rows, self._places[self._start]

    def extend(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        end = self._start + keys.shape[1]
        self._keys[layer, :, self._start : end] = keys
        self._values[layer, :, self._start : end] = values
        return self._keys[layer, :, :end], self._values[layer, :, :end]
