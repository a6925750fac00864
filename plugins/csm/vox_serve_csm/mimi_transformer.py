"""Mimi's transformers as streams, with a ring of keys and values per slot and layer.

What depends on the positions alone (RoPE's angles, who sees whom, where in the rings to write) is
computed once for all layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import nn
from torch.nn import functional as F

from vox_serve.nn import PackedLinear
from vox_serve_csm.seanet import Read


@attrs.frozen(eq=False)
class _Moment:
    """What all layers share in one step of T latents."""

    slots: torch.Tensor  # [B]
    turns: torch.Tensor  # RoPE: complex [B, T, 1, 1, head_dim / 2]
    bias: torch.Tensor  # 0 where a latent sees a place of the ring, else -inf: [B, 1, T, capacity]
    places: torch.Tensor  # of a step's keys and values in a ring's vectors: [B * 2 * heads * T]


@attrs.frozen(eq=False)
class Rings:
    """The keys and values that some slots have seen; `StreamingTransformer.rings` makes them."""

    layers: list[torch.Tensor]  # [slots, 2, heads, capacity, head_dim] each
    # Kept, because fresh pages for it in every layer cost a CPU more than the copy does.
    batch: torch.Tensor  # a layer's rows that a step reads
    time: torch.Tensor  # 0 .. the most latents of a step
    index: torch.Tensor  # 0 .. capacity
    bias: torch.Tensor  # by the age of a key against the newest latent, and the query's number
    vectors: torch.Tensor  # where a slot's vectors of each kind and head begin: [2 * heads, 1]

    @property
    def nbytes(self) -> int:
        return self.batch.nbytes + sum(ring.nbytes for ring in self.layers)

    def clear(self, slot: int) -> None:
        """Empty a slot's rings: under a mask, 0 x NaN is still NaN."""
        for ring in self.layers:
            ring[slot] = 0


class _Layer(nn.Module):
    def __init__(self, c: Mapping[str, Any], read: Read, name: str, rows: int) -> None:
        super().__init__()
        size, inner, heads = c["hidden_size"], c["intermediate_size"], c["num_attention_heads"]
        q, k, v, out = (read(f"{name}self_attn.{x}_proj.weight", size, size) for x in "qkvo")
        up = read(f"{name}mlp.fc1.weight", inner, size)
        down = read(f"{name}mlp.fc2.weight", size, inner)
        # The outputs of both halves are scaled.
        out = out * read(f"{name}self_attn_layer_scale.scale", size)[:, None]
        down = down * read(f"{name}mlp_layer_scale.scale", size)[:, None]
        self.qkv = PackedLinear(
            torch.cat((_interleave(q, heads), _interleave(k, heads), v)), rows=rows
        )
        self.out, self.up, self.down = (PackedLinear(w, rows=rows) for w in (out, up, down))
        self.norm1 = _norm(c, read, f"{name}input_layernorm.")
        self.norm2 = _norm(c, read, f"{name}post_attention_layernorm.")

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


class StreamingTransformer(nn.Module):
    """Make `rings`, then call with the next latents of some of their slots.

    Args:
        c: sizes, see `mimi.py`.
        read: gives the weights.
        prefix: of their names.
        rows: latents of a step in all, as it mostly is; see `PackedLinear`.
    """

    frequencies: torch.Tensor  # RoPE: [head_dim / 2]

    def __init__(self, c: Mapping[str, Any], read: Read, prefix: str, rows: int) -> None:
        super().__init__()
        self.num_heads, self.window = c["num_attention_heads"], c["sliding_window"]
        self.head_dim = c["hidden_size"] // self.num_heads
        self.layers = nn.ModuleList(
            _Layer(c, read, f"{prefix}layers.{number}.", rows)
            for number in range(c["num_hidden_layers"])
        )
        device = next(self.parameters()).device
        steps = torch.arange(0, self.head_dim, 2).float() / self.head_dim
        frequencies = c["rope"]["rope_theta"] ** -steps
        self.register_buffer("frequencies", frequencies.to(device))

    def rings(self, num_slots: int, num_latents: int) -> Rings:
        """Make rings for steps of at most `num_latents`.

        A step writes all its latents before its first one looks back: the ring must hold as
        many more than the window, or that one would miss the oldest that it sees.
        """
        device, capacity = self.frequencies.device, self.window + num_latents - 1
        time = torch.arange(num_latents, device=device)
        back = torch.arange(capacity + 1, device=device)[:, None] - time.flip(0)
        hidden = (back < 0) | (back >= self.window)
        hidden[capacity] = True
        bias = torch.zeros(hidden.shape, device=device).masked_fill_(hidden, -torch.inf)
        shape = (num_slots, 2, self.num_heads, capacity, self.head_dim)
        return Rings(
            [self.frequencies.new_zeros(shape) for _ in self.layers],
            self.frequencies.new_empty(shape),
            time,
            torch.arange(capacity, device=device),
            bias,
            torch.arange(2 * self.num_heads, device=device)[:, None] * capacity,
        )

    def forward(
        self, x: torch.Tensor, rings: Rings, slots: torch.Tensor, first: torch.Tensor
    ) -> torch.Tensor:
        """The latents `[B, T, C]` whose positions begin at `first`, int64 `[B]`.

        Writing to the rings can be done again, and what it writes over no latent sees any more:
        so nothing is changed until the caller's `first` is.
        """
        batch = rings.batch[: len(slots)]
        moment = self._moment(rings, slots, first, x.shape[1])
        shape, x = x.shape, x.flatten(0, 1)
        for layer, ring in zip(self.layers, rings.layers, strict=True):
            x = layer(x, moment, ring, batch)
        return x.view(shape)

    def _moment(
        self, rings: Rings, slots: torch.Tensor, first: torch.Tensor, num_latents: int
    ) -> _Moment:
        capacity = rings.index.shape[0]
        positions = first[:, None] + rings.time[:num_latents]  # [B, T]
        angles = positions[..., None] * self.frequencies
        turns = torch.complex(angles.cos(), angles.sin())[:, :, None, None]
        newest = positions[:, -1:]
        age = (newest - rings.index) % capacity  # of what a ring holds, [B, capacity]
        age = age.masked_fill_(age > newest, capacity)  # what no latent was written to yet
        bias = F.embedding(age, rings.bias[:, -num_latents:]).transpose(1, 2).contiguous()
        places = slots[:, None] * rings.vectors.numel() * capacity
        places = places[..., None] + rings.vectors + (positions % capacity)[:, None]
        return _Moment(slots, turns, bias[:, None], places.flatten())


def _norm(c: Mapping[str, Any], read: Read, name: str) -> nn.LayerNorm:
    norm = nn.LayerNorm(c["hidden_size"], c["norm_eps"], device="meta")
    for part in ("weight", "bias"):
        tensor = read(f"{name}{part}", c["hidden_size"])
        setattr(norm, part, nn.Parameter(tensor, requires_grad=False))
    return norm


def _interleave(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Reorder the rows of a q or k matrix from RoPE halves (r.. i..) to pairs (r i r i ..)."""
    pairs = weight.reshape(num_heads, 2, -1, weight.shape[1]).transpose(1, 2)
    return pairs.reshape(weight.shape)
