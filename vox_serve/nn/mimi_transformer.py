"""Mimi's transformers as streams, with a ring of keys and values per slot and layer.

Values that depend only on positions (RoPE's angles, the mask, where to write in the rings) are
computed once for all layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import nn
from torch.nn import functional as F

from vox_serve.nn.kernels import HEAD_DIMS, RING_LATENTS, use_triton
from vox_serve.nn.linear import PackedLinear
from vox_serve.nn.seanet import Read


@attrs.frozen(eq=False)
class _RingInputs:
    """Inputs with which the plain version writes and reads the rings."""

    bias: (
        torch.Tensor
    )  # 0 if a latent attends to an entry of the ring, else -inf: [B, 1, T, capacity]
    places: (
        torch.Tensor
    )  # index of a step's keys and values in a ring's vectors: [B * 2 * heads * T]


@attrs.frozen(eq=False)
class _StepInputs:
    """Inputs that all layers share in one step of T latents."""

    slots: torch.Tensor  # [B]
    first: torch.Tensor  # position of the first latent: [B]
    window: int
    rotations: torch.Tensor  # RoPE: complex [B, T, 1, 1, head_dim / 2]
    ring: _RingInputs | None  # None: the kernel needs none


@attrs.frozen(eq=False)
class Rings:
    """Recent keys and values of some slots; `StreamingTransformer.rings` creates them."""

    layers: list[torch.Tensor]  # [slots, 2, heads, capacity, head_dim] each
    # Kept, because on a CPU, allocating it in every layer costs more than the copy.
    batch: torch.Tensor  # buffer for the rows of one layer that a step reads
    time: torch.Tensor  # 0 .. the most latents of a step
    index: torch.Tensor  # 0 .. capacity
    bias: (
        torch.Tensor
    )  # indexed by a key's age relative to the newest latent, and the query's number
    vectors: torch.Tensor  # start of a slot's vectors of each kind and head: [2 * heads, 1]

    @property
    def nbytes(self) -> int:
        return self.batch.nbytes + sum(ring.nbytes for ring in self.layers)

    def clear(self, slot: int) -> None:
        """Zero a slot's rings, because 0 x NaN is NaN even under a mask."""
        for ring in self.layers:
            ring[slot] = 0


class StreamingLayer(nn.Module):
    """Attention over a ring, and a feed-forward network: Mimi's, or a subclass's."""

    norm1: nn.Module
    norm2: nn.Module

    def __init__(self, c: Mapping[str, Any], read: Read, name: str, rows: int) -> None:
        super().__init__()
        size, heads = c["hidden_size"], c["num_attention_heads"]
        inner = heads * _head_dim(c)
        q, k, v = (read(f"{name}self_attn.{x}_proj.weight", inner, size) for x in "qkv")
        qkv = torch.cat((_interleave(q, heads), _interleave(k, heads), v))
        # The outputs of attention and feed-forward are scaled.
        scale = read(f"{name}self_attn_layer_scale.scale", size)[:, None]
        out = read(f"{name}self_attn.o_proj.weight", size, inner) * scale
        self.qkv, self.out = PackedLinear(qkv, rows=rows), PackedLinear(out, rows=rows)
        self.read_rest(c, read, name, rows)

    def read_rest(self, c: Mapping[str, Any], read: Read, name: str, rows: int) -> None:
        """Read the norms and the feed-forward network."""
        size, inner = c["hidden_size"], c["intermediate_size"]
        scale = read(f"{name}mlp_layer_scale.scale", size)[:, None]
        self.up = PackedLinear(read(f"{name}mlp.fc1.weight", inner, size), rows=rows)
        self.down = PackedLinear(read(f"{name}mlp.fc2.weight", size, inner) * scale, rows=rows)
        self.gelu = "tanh" if c.get("hidden_act") == "gelu_pytorch_tanh" else "none"
        self.norm1 = _norm(c, read, f"{name}input_layernorm.")
        self.norm2 = _norm(c, read, f"{name}post_attention_layernorm.")

    def feed_forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[N, C]` to the same, x added."""
        inner = F.gelu(self.up(self.norm2(x)), approximate=self.gelu)
        down: torch.Tensor = self.down(inner, x)
        return down

    def forward(
        self, x: torch.Tensor, step: _StepInputs, ring: torch.Tensor, batch: torch.Tensor
    ) -> torch.Tensor:
        """`[B * T, C]` to the same; writes to the layer's `ring`, and copies rows to `batch`."""
        qkv = self.qkv(self.norm1(x))
        if step.ring is None:
            from vox_serve.nn.triton_ring import ring_attention

            seen = ring_attention(qkv, step.rotations, ring, step.slots, step.first, step.window)
        else:
            seen = _attend(qkv, step.rotations, ring, step.slots, step.ring, batch)
        return self.feed_forward(self.out(seen, x))


def _attend(
    qkv: torch.Tensor,
    rotations: torch.Tensor,
    ring: torch.Tensor,
    slots: torch.Tensor,
    inputs: _RingInputs,
    batch: torch.Tensor,
) -> torch.Tensor:
    """Like `vox_serve.nn.triton_ring.ring_attention`; copies rows of the ring to `batch`."""
    rows, _, heads, _, head_dim = batch.shape
    qkv = qkv.view(rows, -1, 3, heads, head_dim)
    pairs = qkv[:, :, :2].view(rows, -1, 2, heads, head_dim // 2, 2)
    torch.view_as_complex(pairs).mul_(rotations)
    q, kv = qkv[:, :, 0].transpose(1, 2), qkv[:, :, 1:].permute(0, 2, 3, 1, 4)
    ring.view(-1, head_dim).index_copy_(0, inputs.places, kv.reshape(-1, head_dim))
    k, v = torch.index_select(ring, 0, slots, out=batch).unbind(1)
    seen = F.scaled_dot_product_attention(q, k, v, inputs.bias)
    return seen.transpose(1, 2).reshape(-1, heads * head_dim)


class StreamingTransformer(nn.Module):
    """Make `rings`, then call with the next latents of some of their slots.

    Args:
        c: sizes, see `mimi.py`.
        read: returns a weight by name.
        prefix: of the names.
        rows: the usual number of latents in a step, over all slots; see `PackedLinear`.
        layer: the kind of its layers.
    """

    frequencies: torch.Tensor  # RoPE: [head_dim / 2]

    def __init__(
        self,
        c: Mapping[str, Any],
        read: Read,
        prefix: str,
        rows: int,
        layer: type[StreamingLayer] = StreamingLayer,
    ) -> None:
        super().__init__()
        self.num_heads, self.window = c["num_attention_heads"], c["sliding_window"]
        self.head_dim = _head_dim(c)
        self.layers = nn.ModuleList(
            layer(c, read, f"{prefix}layers.{number}.", rows)
            for number in range(c["num_hidden_layers"])
        )
        device = next(self.parameters()).device
        steps = torch.arange(0, self.head_dim, 2).float() / self.head_dim
        frequencies = c["rope"]["rope_theta"] ** -steps
        self.register_buffer("frequencies", frequencies.to(device))

    def rings(self, num_slots: int, num_latents: int) -> Rings:
        """Allocate rings for steps of at most `num_latents`.

        A step writes all its latents before it reads, so a ring must hold that many more than
        the window; otherwise the first latent would miss the oldest ones in its window.
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
        """Process latents `[B, T, C]` whose positions start at `first`, int64 `[B]`.

        Writes to the rings can be repeated, and they overwrite only what is out of the window, so
        the state changes only when the caller advances `first`.
        """
        batch = rings.batch[: len(slots)]
        step = self._step_inputs(rings, slots, first, x.shape[1])
        shape, x = x.shape, x.flatten(0, 1)
        for layer, ring in zip(self.layers, rings.layers, strict=True):
            x = layer(x, step, ring, batch)
        return x.view(shape)

    def _step_inputs(
        self, rings: Rings, slots: torch.Tensor, first: torch.Tensor, num_latents: int
    ) -> _StepInputs:
        capacity = rings.index.shape[0]
        positions = first[:, None] + rings.time[:num_latents]  # [B, T]
        angles = positions[..., None] * self.frequencies
        rotations = torch.complex(angles.cos(), angles.sin())[:, :, None, None]
        if use_triton(angles) and num_latents <= RING_LATENTS and self.head_dim in HEAD_DIMS:
            return _StepInputs(slots, first, self.window, rotations, None)
        newest = positions[:, -1:]
        age = (newest - rings.index) % capacity  # positions in a ring, [B, capacity]
        age = age.masked_fill_(age > newest, capacity)  # not yet written
        bias = F.embedding(age, rings.bias[:, -num_latents:]).transpose(1, 2).contiguous()
        places = slots[:, None] * rings.vectors.numel() * capacity
        places = places[..., None] + rings.vectors + (positions % capacity)[:, None]
        ring = _RingInputs(bias[:, None], places.flatten())
        return _StepInputs(slots, first, self.window, rotations, ring)


def _head_dim(c: Mapping[str, Any]) -> int:
    return int(c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"])


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
