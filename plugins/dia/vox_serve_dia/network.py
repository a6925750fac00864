"""The Dia network: an encoder of bytes, and a decoder of columns of nine delayed codes.

Behaviour follows transformers' `DiaForConditionalGeneration`.

Guidance compares two passes over the same codes, one with the text and one without.  Both belong
to one slot: every tensor holds them side by side, and in self-attention their heads are heads of
one row, so nothing else knows of the second.  Without a text, all that the decoder can attend to is
a single vector, so its pass needs no memory: `CrossAttention.textless`.
"""

from __future__ import annotations

import attrs
import torch
from torch import nn
from torch.nn import functional as F

from vox_serve import KVView
from vox_serve.nn import Embedding, Linear, Llama, LlamaConfig
from vox_serve.nn.kernels import decode_attention
from vox_serve.nn.llama import Attention, FeedForward, Rotation, Tables
from vox_serve.nn.residual import RMSNorm, left_by, normed_sum, read
from vox_serve.nn.rope import signed
from vox_serve_dia.config import DiaConfig


@attrs.frozen(eq=False)
class TextView:
    """A `KVView` of texts that are read in one pass; nothing is stored."""

    mask: torch.Tensor | None

    def extend(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return keys, values

    def place(self, layer: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        raise NotImplementedError("texts have several positions")


@attrs.frozen(eq=False)
class Memory:
    """The texts of one batch: all keys and values `[layers, S, P, H, D]`, the slots
    `[B]` and the last position of each text `[B]`."""

    keys: torch.Tensor
    values: torch.Tensor
    slots: torch.Tensor
    last: torch.Tensor


class PairedAttention(Attention):
    """Self-attention of both passes, as groups of heads of one row."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__(config, layer)
        kv = self.kv_heads * self.head_dim
        self._parts = [self.heads * self.head_dim, kv, kv]
        self.heads, self.kv_heads = 2 * self.heads, 2 * self.kv_heads

    def forward(self, qkv: torch.Tensor, rotation: Rotation, kv: KVView) -> torch.Tensor:
        """`[B, T, 2, ...]` to the input of `output`, `[B, T, 2, ...]`."""
        parts = [part.flatten(2) for part in torch.split(qkv, self._parts, dim=-1)]
        seen = super().forward(torch.cat(parts, dim=-1), rotation, kv)
        return seen.view(*qkv.shape[:3], -1)


class CrossAttention(nn.Module):
    """Attention to the text, of the pass that has one."""

    textless: torch.Tensor
    """The result for the pass without a text, `[heads * D]`."""
    still: tuple[torch.Tensor, torch.Tensor]
    """Cosines and sines `[P, D]` of a rotation by 0."""

    def __init__(self, config: DiaConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.heads, self.kv_heads = config.cross_heads, config.cross_kv_heads
        self.head_dim = config.cross_head_dim
        width = self.heads * self.head_dim
        self.query = Linear(config.decoder.hidden_size, width)
        self.memory = Linear(config.encoder.hidden_size, 2 * self.kv_heads * self.head_dim)
        self.output = Linear(width, config.decoder.hidden_size)

    def remember(self, encoded: torch.Tensor, slots: torch.Tensor, memory: Memory) -> None:
        """Write the keys and values of texts `[B, N, E]` to their slots."""
        batch, length, _ = encoded.shape
        both = self.memory(encoded).view(batch, length, 2, self.kv_heads, self.head_dim)
        for kept, new in zip((memory.keys, memory.values), both.unbind(2), strict=True):
            kept[self.layer][slots, :length] = new

    def forward(self, queries: torch.Tensor, memory: Memory) -> torch.Tensor:
        """`[B, T, 2, ...]` to the input of `output`, `[B, T, 2, ...]`."""
        batch, time = queries.shape[:2]
        keys, values = memory.keys[self.layer], memory.values[self.layer]
        asked = queries[:, :, 0]
        if time == 1:
            # The kernel writes a position before it reads; here it writes what is already there.
            place = memory.slots, memory.last
            qkv = torch.cat([asked[:, 0], keys[place].flatten(1), values[place].flatten(1)], dim=1)
            seen = decode_attention(
                qkv, *self.still, keys, values, *place, self.heads, self.kv_heads
            )[:, None]
        else:
            asked = asked.view(batch, time, self.heads, self.head_dim).transpose(1, 2)
            reach = torch.arange(keys.shape[1], device=keys.device)
            found = F.scaled_dot_product_attention(
                asked,
                keys[memory.slots].transpose(1, 2),
                values[memory.slots].transpose(1, 2),
                attn_mask=(reach <= memory.last[:, None])[:, None, None],
                enable_gqa=self.heads != self.kv_heads,
            )
            seen = found.transpose(1, 2).flatten(2)
        return torch.stack([seen, self.textless.expand_as(seen)], dim=2)


class _Layer(nn.Module):
    def __init__(self, config: DiaConfig, number: int) -> None:
        super().__init__()
        sizes = config.decoder
        self.attention_norm, self.cross_norm, self.feed_forward_norm = (
            RMSNorm(sizes.hidden_size, sizes.rms_norm_eps) for _ in range(3)
        )
        self.attention = PairedAttention(sizes, number)
        self.cross = CrossAttention(config, number)
        self.feed_forward = FeedForward(sizes)

    def forward(
        self,
        x: torch.Tensor,
        added: torch.Tensor | None,
        rotation: Rotation,
        kv: KVView,
        memory: Memory,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The residual, and the sum still to be added to it; see `vox_serve.nn.residual`."""
        attention, cross, feed_forward = self.attention, self.cross, self.feed_forward
        qkv, x = read(self.attention_norm, attention.qkv, x, added)
        added = left_by(attention.output, attention(qkv, rotation, kv))
        queries, x = read(self.cross_norm, cross.query, x, added)
        added = left_by(cross.output, cross(queries, memory))
        inner, x = read(self.feed_forward_norm, feed_forward.gate_up, x, added, gates=True)
        return x, left_by(feed_forward.down, inner)


class DiaNetwork(nn.Module):
    """The network with uninitialised parameters; `checkpoint.py` fills them."""

    tables: Tables

    def __init__(self, config: DiaConfig) -> None:
        super().__init__()
        self.config = config
        books, width = len(config.delays), config.decoder.hidden_size
        self.text_embedding = Embedding(config.text_vocab, config.encoder.hidden_size)
        self.encoder = Llama(config.encoder)
        self.audio_embedding = Embedding(books * config.vocab, width)
        self.layers = nn.ModuleList(
            _Layer(config, number) for number in range(config.decoder.num_hidden_layers)
        )
        self.norm = RMSNorm(width, config.decoder.rms_norm_eps)
        self.head = Linear(width, books * config.vocab)

    @torch.no_grad()
    def prepare(self, device: torch.device, dtype: torch.dtype) -> None:
        """Compute what follows from the weights; call it once they are loaded."""
        config, sizes = self.config, self.config.decoder
        self.encoder.prepare(device, dtype)
        tables = sizes.rope.table(sizes.head_dim, sizes.max_position_embeddings)
        cos, sin = (table.to(device=device, dtype=dtype) for table in tables)
        self.tables = Tables(cos, sin, signed(sin))
        shape = (config.encoder.max_position_embeddings, config.cross_head_dim)
        ones = torch.ones(shape, device=device, dtype=dtype)
        # The reference's empty text consists of zeros, all encoded to the same vector.
        nothing = torch.zeros(1, 2, dtype=torch.int64, device=device)
        encoded = self.encode(nothing, nothing == 0)[0, :1]
        for cross in self.crosses:
            value = cross.memory(encoded).chunk(2, dim=1)[1].view(cross.kv_heads, 1, cross.head_dim)
            cross.textless = value.repeat(1, cross.heads // cross.kv_heads, 1).flatten()
            cross.still = ones, torch.zeros_like(ones)

    @property
    def crosses(self) -> list[CrossAttention]:
        """The attention to the text of each layer."""
        return [layer.cross for layer in self.layers if isinstance(layer, _Layer)]

    def encode(self, text: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Bytes `[B, N]` to `[B, N, E]`; N is at least 2."""
        positions = torch.arange(text.shape[1], device=text.device)[None]
        mask = valid[:, None, None].expand(-1, -1, text.shape[1], -1)
        encoded: torch.Tensor = self.encoder(
            self.text_embedding(text.int()), positions, TextView(mask)
        )
        return encoded

    def decode(
        self, x: torch.Tensor, positions: torch.Tensor, kv: KVView, memory: Memory
    ) -> torch.Tensor:
        """Embedded columns `[B, T, H]` at `positions` `[B, T]` to both passes, `[B, T, 2 * H]`."""
        rotation = Rotation(self.tables, positions)
        x = torch.stack([x, x], dim=2)
        added: torch.Tensor | None = None
        for layer in self.layers:
            x, added = layer(x, added, rotation, kv, memory)
        assert added is not None  # there is at least one layer
        return normed_sum(self.norm, x, added)[0].flatten(2)
