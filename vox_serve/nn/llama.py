"""A Llama decoder stack that runs over any key/value cache.

Hidden states in, hidden states out: it contains no tokens, output heads or sampling.  Query, key
and value weights form one matrix, gate and up weights another.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache, cached_property
from types import MappingProxyType
from typing import Any

import attrs
import torch
from torch import nn
from torch.nn import functional as F

from vox_serve.errors import CheckpointError
from vox_serve.model import KVCache, KVLayout, KVView, Place
from vox_serve.nn.decode_step import DecodeStep, decode_step
from vox_serve.nn.kernels import HEAD_DIMS, decode_attention, head_norms, use_triton
from vox_serve.nn.linear import Linear, held
from vox_serve.nn.residual import RMSNorm, Rows, left_by, normed_sum, read
from vox_serve.nn.rope import RopeConfig, rotate, signed

SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "rms_norm_eps",
)
"""Required keys of a configuration."""
FRAME_ROWS, FRAME_PARTS = 4, 2
"""Up to this many rows and key/value heads, a frame's attention is repeated by each program of the
next product.  More rows would take longer than a kernel of their own, because each reads the
weights again; and the next layer sums one part for each key/value head."""


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
    head_norms: bool = False
    """RMS norms of each query and key head, before their rotation, as Qwen3 has them."""

    @classmethod
    def from_json(
        cls,
        config: Mapping[str, Any],
        defaults: Mapping[str, Any] = MappingProxyType({}),
        default_theta: float = 10_000.0,
    ) -> LlamaConfig:
        """Read a transformers-style configuration; missing keys are taken from `defaults`.

        Raises:
            CheckpointError: a size is missing, or a setting is not supported.
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
    """RoPE's cosines and sines `[P, D]`, and the signed sines that `rotate` takes."""

    cos: torch.Tensor
    sin: torch.Tensor
    signed_sin: torch.Tensor


class Rotation:
    """RoPE's tables `[P, D]`, and their rows for `positions` `[B, T]`: `[B, T, 1, D]`.

    The rows are looked up at first use, because the attention kernels read the tables directly.
    """

    def __init__(self, tables: Tables, positions: torch.Tensor) -> None:
        self.tables = tables
        self._asked = positions

    @cached_property
    def _positions(self) -> torch.Tensor:
        # Padding may point past the end; its results are ignored.
        return self._asked.clamp(max=len(self.tables.cos) - 1)

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
        self.head_norms = HeadNorms(config) if config.head_norms else None

    def left(self, qkv: torch.Tensor, rotation: Rotation, kv: KVView) -> torch.Tensor:
        """What is added to the residual; see `vox_serve.nn.residual`.

        For the few positions of a frame, and few rows, it is one kernel instead of two.
        """
        weights = held(self.output)
        short = isinstance(kv, FrameCache) and qkv.shape[1] == 1 and len(qkv) <= FRAME_ROWS
        plain = weights is not None and self.head_norms is None and self.kv_heads <= FRAME_PARTS
        if short and plain and use_triton(qkv) and self.head_dim in HEAD_DIMS:
            from vox_serve.nn.triton_frame import frame_parts

            assert isinstance(kv, FrameCache)
            assert weights is not None
            parts = frame_parts(
                qkv[:, 0],
                rotation.tables.cos,
                rotation.tables.sin,
                *kv.place(self.layer)[:2],
                position=kv.position,
                weights=weights,
                heads=self.heads,
                kv_heads=self.kv_heads,
            )
            return parts[:, :, None]
        return left_by(self.output, self(qkv, rotation, kv))

    def forward(self, qkv: torch.Tensor, rotation: Rotation, kv: KVView) -> torch.Tensor:
        """Queries, keys and values `[B, T, ...]` to the input of `output`, `[B, T, ...]`."""
        batch, time, _ = qkv.shape
        heads, kv_heads = self.heads, self.kv_heads
        if self.head_norms is not None:
            qkv = self.head_norms(qkv)
        if use_triton(qkv) and self.head_dim in HEAD_DIMS:
            tables = rotation.tables.cos, rotation.tables.sin
            if time == 1:
                place = kv.place(self.layer)
                return decode_attention(qkv[:, 0], *tables, *place, heads, kv_heads)[:, None]
            if time == 2 and isinstance(kv, FrameCache) and kv.begins:
                from vox_serve.nn.triton_frame import pair_attention

                keys, values = kv.place(self.layer)[:2]
                return pair_attention(qkv, *tables, keys, values, heads, kv_heads)
        qkv = qkv.view(batch, time, heads + 2 * kv_heads, self.head_dim)
        rotated = rotate(qkv[:, :, : heads + kv_heads], rotation.cos, rotation.signed_sin)
        keys, values = kv.extend(self.layer, rotated[:, :, heads:], qkv[:, :, heads + kv_heads :])
        # The query heads of a group share keys, so they are stacked along time.
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
        return out.reshape(batch, time, -1)


class HeadNorms(nn.Module):
    """Queries, keys and values `[..., (heads + 2 * kv_heads) * D]` with normed query and key heads.

    The weights of the query norm and those of the key norm, `[2 * D]`.
    """

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.eps = config.rms_norm_eps
        self.weight = nn.Parameter(torch.empty(2 * config.head_dim))

    def forward(self, qkv: torch.Tensor) -> torch.Tensor:
        return head_norms(qkv, self.weight, self.eps, self.heads, self.kv_heads)


class FeedForward(nn.Module):
    """SwiGLU (Shazeer, "GLU Variants Improve Transformer", 2020)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_up = Linear(config.hidden_size, 2 * config.intermediate_size)
        self.down = Linear(config.intermediate_size, config.hidden_size)


class Layer(nn.Module):
    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = Attention(config, layer)
        self.feed_forward_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.feed_forward = FeedForward(config)

    def forward(
        self, x: torch.Tensor | Rows, added: torch.Tensor | None, rotation: Rotation, kv: KVView
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The residual, and the sum still to be added to it; see `vox_serve.nn.residual`."""
        attention, feed_forward = self.attention, self.feed_forward
        qkv, x = read(self.attention_norm, attention.qkv, x, added)
        added = attention.left(qkv, rotation, kv)
        inner, x = read(self.feed_forward_norm, feed_forward.gate_up, x, added, gates=True)
        return x, left_by(feed_forward.down, inner)


class Llama(nn.Module):
    """Hidden states `[B, T, H]` at `positions` `[B, T]` (or `[1, T]`) to normed `[B, T, H]`.

    With a head, to its output for the last position, `[B, N]`.
    """

    tables: Tables

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self._decode_step: DecodeStep | None = None

    def prepare(
        self, device: torch.device, dtype: torch.dtype, heads: Iterable[nn.Module] = ()
    ) -> None:
        """Compute what follows from the weights and sizes; call it once the weights are loaded.

        Args:
            heads: all those that will be given to `forward`.
        """
        tables = self.config.rope.table(self.config.head_dim, self.config.max_position_embeddings)
        cos, sin = (table.to(device=device, dtype=dtype) for table in tables)
        self.tables = Tables(cos, sin, signed(sin))
        self._decode_step = decode_step(self, heads)

    def forward(
        self,
        x: torch.Tensor | Rows,
        positions: torch.Tensor,
        kv: KVView,
        head: nn.Module | None = None,
    ) -> torch.Tensor:
        step = self._decode_step
        if step is not None and step.takes(x, head, isinstance(kv, FrameCache)):
            hidden: torch.Tensor = step(x.tensor if isinstance(x, Rows) else x, kv, head)
            return hidden
        rotation = Rotation(self.tables, positions)
        added: torch.Tensor | None = None
        for layer in self.layers:
            x, added = layer(x, added, rotation, kv)
        assert isinstance(x, torch.Tensor)  # there is at least one layer
        assert added is not None
        if head is None:
            return normed_sum(self.norm, x, added)[0]
        return read(self.norm, head, x[:, -1], added[..., -1, :])[0]

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
    """A `KVView` for a depth decoder, for one frame; all rows are at the same position.

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
        self._positions = range(0)
        self._rows, self._places = _places(batch, positions, device)

    def append(self, positions: range) -> FrameCache:
        """Prepare for a pass over these positions, which follow the previous ones."""
        self._positions = positions
        self.__dict__.pop("mask", None)
        return self

    @property
    def begins(self) -> bool:
        """Whether this is the first pass."""
        return self.position == 0

    @property
    def position(self) -> int:
        """The first position of this pass."""
        return self._positions.start

    @cached_property
    def mask(self) -> torch.Tensor | None:
        if len(self._positions) == 1:
            return None
        reach = torch.arange(self._positions.stop, device=self._keys.device)
        return (reach <= reach[self._positions.start :, None])[None, None]

    def place(self, layer: int) -> Place:
        return (
            self._keys[layer],
            self._values[layer],
            self._rows,
            self._places[self._positions.start],
        )

    def extend(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        start, end = self._positions.start, self._positions.stop
        self._keys[layer, :, start:end] = keys
        self._values[layer, :, start:end] = values
        return self._keys[layer, :, :end], self._values[layer, :, :end]


@cache
def _places(batch: int, positions: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Row numbers `[B]`, and each position repeated, `[P, B]`."""
    places = torch.arange(positions, device=device)[:, None].repeat(1, batch)
    return torch.arange(batch, device=device), places
