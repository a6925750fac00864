"""The Dia network: an encoder of bytes, and a decoder of columns of nine delayed codes.

Behaviour follows transformers' `DiaForConditionalGeneration`.

Guidance compares two passes over the same codes, one with the text and one without.  Both belong
to one slot: every tensor holds them side by side, and in self-attention their heads are heads of
one row, so nothing else knows of the second.  Without a text, all that the decoder can attend to is
a single vector, so its pass needs no memory: `CrossAttention.textless`.
"""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch import nn
from torch.nn import functional as F

from vox_serve import (
    Inputs,
    InvalidRequest,
    KVCache,
    KVLayout,
    KVView,
    LoadOptions,
    Model,
    Prompt,
    PromptTooLong,
    Sampler,
    Voice,
)
from vox_serve.nn import Embedding, Linear, Llama, LlamaConfig, held_bytes
from vox_serve.nn.kernels import decode_attention
from vox_serve.nn.llama import Attention, FeedForward, Rotation, Tables
from vox_serve.nn.residual import RMSNorm, left_by, normed_sum, read
from vox_serve.nn.rope import signed
from vox_serve_dia.config import DiaConfig
from vox_serve_dia.dac import FRAMES, Dac
from vox_serve_dia.plugin import DiaParameters

SPEAKERS = ("[S1]", "[S2]")
TEXT_BLOCK = 16
"""Texts are padded to a multiple of this many bytes, which limits the number of shapes."""
FREE = -1
"""Stands for a code that is not given."""


@attrs.frozen(eq=False)
class TextView:
    """A `KVView` of texts that are read as a whole; nothing is kept."""

    mask: torch.Tensor | None

    def extend(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return keys, values

    def place(self, layer: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        raise NotImplementedError("texts have several positions")


@attrs.frozen(eq=False)
class Memory:
    """What one batch knows of its texts: all keys and values `[layers, S, P, H, D]`, the slots
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
    """What the other pass sees: `[heads * D]`."""
    still: tuple[torch.Tensor, torch.Tensor]
    """Cosines and sines `[P, D]` that rotate nothing."""

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
            # The kernel writes a position before it reads: here what is there already.
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
        # To the reference, no text is one that consists of zeros, all of which are encoded alike.
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


class DiaModel(Model):
    """Dia, loaded; its state per slot is the text, and how codes are delayed.

    Args:
        options: what it was loaded with.
        config: sizes.
        network: loaded weights, on their device.
        codec: loaded.
        default_sampling: applies where a request sets nothing.
    """

    voices = tuple(Voice(tag[1:-1], n) for n, tag in enumerate(SPEAKERS))

    def __init__(
        self,
        options: LoadOptions,
        config: DiaConfig,
        network: DiaNetwork,
        codec: Dac,
        default_sampling: DiaParameters,
    ) -> None:
        super().__init__(options, codec)
        self.config = config
        self.network = network
        self.default_sampling = default_sampling
        sizes = config.decoder
        self.hidden_size = 2 * sizes.hidden_size
        self.max_positions = sizes.max_position_embeddings
        self.kv_layout = KVLayout(
            sizes.num_hidden_layers, 2 * sizes.num_key_value_heads, sizes.head_dim
        )
        self.weight_bytes = held_bytes(network) + codec.weight_bytes
        self._behind = codec.behind
        self._delays = torch.tensor(config.delays, device=self.device)
        books = torch.arange(len(config.delays), device=self.device)
        self._offsets = books * config.vocab
        ids = torch.arange(config.vocab, device=self.device)
        self._is_end = ids == config.end
        # Only the first codebook may end; the other reserved ids are never picked.
        self._never = (ids > config.end) | ((ids == config.end) & (books > 0)[:, None])

    def allocate(self, num_slots: int) -> int:
        """Rows: keys and values of the text, its last position, the codes that are given for the
        first frames, and the frame that marked the end (FREE: none)."""
        config, books = self.config, len(self.config.delays)
        shape = (
            config.decoder.num_hidden_layers,
            num_slots,
            config.encoder.max_position_embeddings,
        )
        heads = (config.cross_kv_heads, config.cross_head_dim)
        self._keys = torch.zeros(*shape, *heads, dtype=self.dtype, device=self.device)
        self._values = torch.zeros_like(self._keys)
        self._last = torch.zeros(num_slots, dtype=torch.int64, device=self.device)
        given = (num_slots, config.most_late + 1, books)  # of the last row nothing is ever given
        self._given = torch.full(given, FREE, device=self.device)
        self._marked = torch.full((num_slots,), FREE, device=self.device)
        rows = (self._keys, self._values, self._last, self._given, self._marked)
        return sum(each.nbytes for each in rows)

    def clear(self, slot: int) -> None:
        self._keys[:, slot] = 0
        self._values[:, slot] = 0
        self._last[slot] = 0
        self._given[slot] = FREE
        self._marked[slot] = FREE

    def prompt(self, text: str, voice: Voice, **others: Any) -> Prompt:
        """The text, the voice's clip and the codes of it that are still to come.

        `columns` int64 `[T, K]`: delayed codes, which begin with the reserved ones.  The same in
        each position: `text` uint8 `[T, N]`, N bytes and zeros, and `given` int16
        `[T, most_late * K]`.
        """
        config = self.config
        spoken = _tagged(text, voice.speaker)
        clip = [segment for segment in voice.segments if segment.codes is not None]
        read = " ".join([*(_tagged(s.text, s.speaker) for s in clip), spoken])
        for number, tag in enumerate(SPEAKERS, 1):
            read = read.replace(tag, chr(number))
        if "\0" in read:
            raise InvalidRequest("text has a NUL character, which this model cannot read", "text")
        data = read.encode()
        most = config.encoder.max_position_embeddings
        if len(data) > most:
            field = "text" if len(spoken.encode()) > most // 2 else "voice"
            raise PromptTooLong(
                f"{field} is too long: the voice's transcript and the text have {len(data)} bytes; "
                f"the limit is {most}",
                field,
            )
        begin = torch.full((len(config.delays), 1), config.begin)
        codes = torch.cat([begin, *(s.codes.cpu() for s in clip if s.codes is not None)], dim=1)
        length = codes.shape[1]
        if length >= self.max_positions:
            raise PromptTooLong(
                f"voice is too long: its clip has {length - 1} frames of the {self.max_positions} "
                "that the model has",
                "voice",
            )
        late = config.most_late
        delayed = torch.full((length + late, len(config.delays)), FREE)
        for book, delay in enumerate(config.delays):
            delayed[:delay, book] = config.begin
            delayed[delay : delay + length, book] = codes[book]
        padded = torch.zeros(-(-len(data) // TEXT_BLOCK) * TEXT_BLOCK, dtype=torch.uint8)
        padded[: len(data)] = torch.tensor(list(data), dtype=torch.uint8)
        return Prompt(
            {
                "columns": delayed[:length],
                "text": padded.expand(length, -1),
                "given": delayed[length:].to(torch.int16).flatten().expand(length, -1),
            },
            unheard=self._behind,
        )

    def prefill(
        self,
        inputs: Inputs,
        lengths: torch.Tensor,
        slots: torch.Tensor,
        kv: KVCache,
    ) -> torch.Tensor:
        text = inputs["text"][:, 0]  # again for each piece of the prompt
        valid = text > 0
        self._last[slots] = valid.sum(1) - 1
        self._marked.index_fill_(0, slots, FREE)
        given = inputs["given"][:, 0].view(len(slots), -1, len(self._delays))
        self._given[slots, :-1] = given.to(torch.int64)
        memory = self._memory(slots)
        encoded = self.network.encode(text, valid)
        for cross in self.network.crosses:
            cross.remember(encoded, slots, memory)
        columns = inputs["columns"]
        steps = torch.arange(columns.shape[1], device=columns.device)
        positions = kv.lengths[slots][:, None] + steps
        hidden = self.network.decode(
            self._embed(columns), positions, kv.view(slots, positions), memory
        )
        return hidden[torch.arange(len(slots), device=slots.device), lengths - 1]

    def emit(self, hidden: torch.Tensor, sampler: Sampler) -> tuple[torch.Tensor, torch.Tensor]:
        """A column of delayed codes.  After the end, further ones let the codec finish."""
        config, slots, frame = self.config, sampler.slots, sampler.frame
        logits = self._guided(hidden, sampler)
        # The end is never drawn: it is picked where it is the likeliest, and nowhere else.
        ends = logits[:, 0].argmax(1) == config.end
        first = torch.where(self._is_end == ends[:, None], logits[:, 0], -torch.inf)
        picked = [sampler(first, 0)]
        picked += [sampler(logits[:, book], book) for book in range(1, len(self._delays))]
        column = torch.stack(picked, dim=1)
        given = self._given[slots, frame.clamp(max=config.most_late)]
        column = torch.where(given == FREE, column, given)
        marked = self._marked[slots]
        marked = torch.where((marked == FREE) & (column[:, 0] == config.end), frame, marked)
        self._marked[slots] = marked
        # Each codebook ends as late as it is delayed.
        since = torch.where(marked == FREE, -1, frame - marked)[:, None] - self._delays
        column = torch.where(since == 0, config.end, column)
        column = torch.where(since > 0, config.pad, column)
        heard = frame - self._behind  # frames whose sound has come
        return column, (marked != FREE) & (heard >= marked) & (frame % FRAMES == 0)

    def advance(self, codes: torch.Tensor, slots: torch.Tensor, kv: KVCache) -> torch.Tensor:
        positions = kv.lengths[slots][:, None]
        view, memory = kv.view(slots, positions), self._memory(slots)
        return self.network.decode(self._embed(codes[:, None]), positions, view, memory)[:, 0]

    def _memory(self, slots: torch.Tensor) -> Memory:
        return Memory(self._keys, self._values, slots, self._last[slots])

    def _embed(self, columns: torch.Tensor) -> torch.Tensor:
        """`[B, T, K]` to the sum of the embeddings, `[B, T, H]`."""
        embedded: torch.Tensor = self.network.audio_embedding(columns + self._offsets)
        return embedded.sum(dim=2)

    def _guided(self, hidden: torch.Tensor, sampler: Sampler) -> torch.Tensor:
        """Logits `[B, K, V]` of the pass with the text, -inf where guidance excludes a code.

        Guidance orders the codes, and the likeliest `top_k` in its order may be picked.
        """
        shape = (len(hidden), 2, len(self._delays), self.config.vocab)
        both = self.network.head(hidden.view(len(hidden), 2, -1)).float().view(shape)
        with_text, without = both.unbind(1)
        scale = sampler.parameter("guidance_scale")
        scale = torch.where(scale == 1, 0.0, scale)[:, None, None]
        guided = torch.addcmul(with_text, with_text - without, scale)
        top_k = sampler.parameter("top_k")
        last = torch.where(top_k == 0, shape[-1], top_k).clamp(max=shape[-1]) - 1
        last = last[:, None, None].expand(-1, shape[2], -1)
        lowest = guided.sort(dim=-1, descending=True).values.gather(-1, last)
        return torch.where((guided < lowest) | self._never, -torch.inf, with_text)


def _tagged(text: str, speaker: int) -> str:
    """The text with the tag of its speaker, unless it begins with one."""
    text = text.strip()
    return text if text.startswith(SPEAKERS) else f"{SPEAKERS[speaker]} {text}"
