"""Dia as a model: prompts, guidance, and codebooks that are delayed.

Behaviour follows transformers' `DiaForConditionalGeneration`; `network.py` has the network.
"""

from __future__ import annotations

from typing import Any

import torch

from vox_serve import (
    Inputs,
    InvalidRequest,
    KVCache,
    KVLayout,
    LoadOptions,
    Model,
    Prompt,
    PromptTooLong,
    Sampler,
    Voice,
)
from vox_serve.nn import held_bytes
from vox_serve_dia.config import DiaConfig
from vox_serve_dia.dac import FRAMES, Dac
from vox_serve_dia.network import DiaNetwork, Memory
from vox_serve_dia.plugin import DiaParameters

SPEAKERS = ("[S1]", "[S2]")
TEXT_BLOCK = 16
"""Texts are padded to a multiple of this many bytes, which limits the number of shapes."""
FREE = -1
"""Stands for a code that is not given."""


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
