"""Mimi's decoder transformer as a stream, with a ring of keys and values per slot and layer.

The weights are taken out of moshi's modules, which compute the same thing in several times as
many operations.  What hangs on the positions alone (RoPE's angles, who sees whom, where in the
rings to write) is computed once for all layers.
"""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch import nn
from torch.nn import functional as F

from vox_serve.nn import PackedLinear

ROWS = 8
"""Of most products: four utterances, two latents of each."""


@attrs.frozen(eq=False)
class _Moment:
    """What all layers share in one step of T latents."""

    slots: torch.Tensor  # [B]
    turns: torch.Tensor  # RoPE: complex [B, T, 1, 1, head_dim / 2]
    bias: torch.Tensor  # 0 where a latent sees a place of the ring, else -inf: [B, 1, T, capacity]
    places: torch.Tensor  # of a step's keys and values in a ring's vectors: [B * 2 * heads * T]


class _Layer(nn.Module):
    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.norm1, self.norm2 = layer.norm1, layer.norm2
        self.qkv = PackedLinear(layer.self_attn.in_projs[0].weight, rows=ROWS)
        self.up = PackedLinear(layer.linear1.weight, rows=ROWS)
        self.out = _scaled(layer.self_attn.out_projs[0], layer.layer_scale_1)
        self.down = _scaled(layer.linear2, layer.layer_scale_2)

    def forward(
        self, x: torch.Tensor, moment: _Moment, ring: torch.Tensor, batch: torch.Tensor
    ) -> torch.Tensor:
        """`[B * T, C]` to the same; writes to `ring`, its own, and copies rows to `batch`."""
        size, (rows, _, heads, _, head_dim) = x.shape[1], batch.shape
        qkv = self.qkv(self.norm1(x)).view(rows, -1, 3, heads, head_dim)
        pairs = qkv[:, :, :2].view(rows, -1, 2, heads, head_dim // 2, 2)
        torch.view_as_complex(pairs).mul_(moment.turns)
        q, kv = qkv[:, :, 0].transpose(1, 2), qkv[:, :, 1:].permute(0, 2, 3, 1, 4)
        ring.view(-1, head_dim).index_copy_(0, moment.places, kv.reshape(-1, head_dim))
        k, v = torch.index_select(ring, 0, moment.slots, out=batch).unbind(1)
        seen = F.scaled_dot_product_attention(q, k, v, moment.bias)
        x = self.out(seen.transpose(1, 2).reshape(-1, size), x)
        down: torch.Tensor = self.down(F.gelu(self.up(self.norm2(x))), x)
        return down


def _scaled(linear: Any, scale: Any) -> PackedLinear:
    """A linear layer whose outputs are multiplied by `scale`."""
    return PackedLinear(linear.weight * scale.scale[:, None], rows=ROWS)


class StreamingTransformer(nn.Module):
    """`allocate`, then `forward` for the next latents of some slots."""

    frequencies: torch.Tensor  # RoPE: [head_dim / 2]

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        attention = transformer.layers[0].self_attn
        self.layers = nn.ModuleList(_Layer(layer) for layer in transformer.layers)
        self.num_heads, self.window = attention.num_heads, attention.context
        self.head_dim = attention.embed_dim // attention.num_heads
        steps = torch.arange(0, self.head_dim, 2).float() / self.head_dim
        self.register_buffer("frequencies", attention.rope.max_period**-steps)

    def allocate(self, num_slots: int, num_latents: int) -> int:
        """Make rings for steps of `num_latents`; returns their bytes.

        A step writes all its latents before its first one looks back: the ring must hold as
        many more than the window, or that one would miss the oldest that it sees.
        """
        device, capacity = self.frequencies.device, self.window + num_latents - 1
        self._time = torch.arange(num_latents, device=device)
        self._index = torch.arange(capacity, device=device)
        # By the age of a key, against the newest latent, and the number of the query.
        back = torch.arange(capacity + 1, device=device)[:, None] - self._time.flip(0)
        hidden = (back < 0) | (back >= self.window)
        hidden[capacity] = True
        self._bias = torch.zeros(hidden.shape, device=device).masked_fill_(hidden, -torch.inf)
        vectors = 2 * self.num_heads  # of each latent
        self._vectors = torch.arange(vectors, device=device)[:, None] * capacity
        shape = (num_slots, 2, self.num_heads, capacity, self.head_dim)
        self._rings = [self.frequencies.new_zeros(shape) for _ in self.layers]
        # Kept, because fresh pages for it in every layer cost a CPU more than the copy does.
        self._batch = self.frequencies.new_empty(shape)
        return self._batch.nbytes + sum(ring.nbytes for ring in self._rings)

    def clear(self, slot: int) -> None:
        """Empty a slot's rings: under a mask, 0 x NaN is still NaN."""
        for ring in self._rings:
            ring[slot] = 0

    def forward(self, x: torch.Tensor, slots: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        """The latents `[B, T, C]` whose positions begin at `first`, int64 `[B]`.

        Writing to the rings can be done again, and what it writes over no latent sees any more:
        so nothing is changed until the caller's `first` is.
        """
        batch = self._batch[: len(slots)]
        moment = self._moment(slots, first)
        shape, x = x.shape, x.flatten(0, 1)
        for layer, ring in zip(self.layers, self._rings, strict=True):
            x = layer(x, moment, ring, batch)
        return x.view(shape)

    def _moment(self, slots: torch.Tensor, first: torch.Tensor) -> _Moment:
        capacity = self._index.shape[0]
        positions = first[:, None] + self._time  # [B, T]
        angles = positions[..., None] * self.frequencies
        turns = torch.complex(angles.cos(), angles.sin())[:, :, None, None]
        newest = positions[:, -1:]
        age = (newest - self._index) % capacity  # of what a ring holds, [B, capacity]
        age = age.masked_fill_(age > newest, capacity)  # what no latent was written to yet
        bias = F.embedding(age, self._bias).transpose(1, 2).contiguous()
        places = slots[:, None] * self._vectors.numel() * capacity
        places = places[..., None] + self._vectors + (positions % capacity)[:, None]
        return _Moment(slots, turns, bias[:, None], places.flatten())
