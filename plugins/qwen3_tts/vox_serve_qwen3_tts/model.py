"""The Qwen3-TTS network: a talker over frames, a depth decoder over a frame's codebooks.

Implements `vox_serve.LiveText`: each frame takes one token of text, and the text may be
incomplete when speech begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from vox_serve import (
    Inputs,
    KVCache,
    LoadOptions,
    Model,
    Parameters,
    Prompt,
    Sampler,
    Segment,
    Voice,
)
from vox_serve.nn import (
    Biased,
    Embedding,
    Linear,
    Llama,
    depth_frame,
    held_bytes,
    projected_codes,
)
from vox_serve_qwen3_tts.codec import CodeDecoder
from vox_serve_qwen3_tts.config import QwenConfig
from vox_serve_qwen3_tts.plugin import QwenParameters
from vox_serve_qwen3_tts.prompt import PromptBuilder

FIRST_END = 2
"""The first frame that may be the end, as in the package."""


class TextEmbedding(nn.Module):
    """Text ids `[...]` to vectors of the talker's width."""

    def __init__(self, config: QwenConfig) -> None:
        super().__init__()
        width = config.text_width
        self.table = Embedding(config.text_vocab, width)
        self.up = Biased(width, width)
        self.down = Biased(width, config.talker.hidden_size)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        vectors: torch.Tensor = self.down(F.silu(self.up(self.table(ids))))
        return vectors


class QwenNetwork(nn.Module):
    """The weights, with parameters uninitialised; `checkpoint.py` fills them."""

    def __init__(self, config: QwenConfig) -> None:
        super().__init__()
        width, depth_width = config.talker.hidden_size, config.depth.hidden_size
        books = config.num_codebooks
        self.text = TextEmbedding(config)
        self.codes = Embedding(config.talker_vocab + (books - 1) * config.codes, width)
        self.backbone = Llama(config.talker)
        self.head = Linear(width, config.codes + 1)  # all codes, and the end
        same = width == depth_width
        self.projector = nn.Identity() if same else Biased(width, depth_width)
        self.depth = Llama(config.depth)
        self.depth_heads = nn.ModuleList(
            Linear(depth_width, config.codes) for _ in range(books - 1)
        )


class QwenModel(Model):
    """A loaded Qwen3-TTS model; also implements `vox_serve.LiveText`.

    Args:
        options: what it was loaded with.
        config: sizes.
        network: loaded weights, on their device.
        codec: loaded.
        builder: makes prompts.
        default_sampling: applies where a request sets nothing.
    """

    takes_live_text = True

    def __init__(
        self,
        options: LoadOptions,
        config: QwenConfig,
        network: QwenNetwork,
        codec: CodeDecoder,
        builder: PromptBuilder,
        default_sampling: QwenParameters,
    ) -> None:
        super().__init__(options, codec)
        self.config = config
        self.network = network
        self.default_sampling = default_sampling
        self.hidden_size = config.talker.hidden_size
        self.max_positions = config.talker.max_position_embeddings
        self.kv_layout = config.talker.kv_layout
        names = [*config.speakers] or ["any" if config.kind == "base" else "described"]
        self.voices = tuple(Voice(name, number) for number, name in enumerate(names))
        books, codes, vocab = config.num_codebooks, config.codes, config.talker_vocab
        starts = torch.arange(books, device=self.device) * codes + (vocab - codes)
        self._offsets = starts.index_fill_(0, torch.zeros_like(starts[:1]), 0)
        inputs = projected_codes(network.codes, network.projector, vocab + (books - 2) * codes)
        first = torch.cat([inputs[:codes], inputs[config.code.end :][:1]])
        self._tables = (first, *torch.split(inputs[vocab:], codes))
        self._is_end = torch.arange(codes + 1, device=self.device) == codes
        self._builder = builder
        self.weight_bytes = held_bytes(network) + inputs.nbytes + codec.weight_bytes

    def allocate(self, num_slots: int) -> int:
        shape = (num_slots, self.max_positions)
        pad = self.config.text.pad
        self._later = torch.full(shape, pad, dtype=torch.int64, device=self.device)
        self._begin = torch.zeros(num_slots, dtype=torch.int64, device=self.device)
        return self._later.nbytes + self._begin.nbytes

    def clear(self, slot: int) -> None:
        self._later[slot] = self.config.text.pad
        self._begin[slot] = 0

    def put_text(self, slot: int, start: int, ids: torch.Tensor) -> None:
        self._later[slot, start:].fill_(self.config.text.pad)
        self._later[slot, start : start + len(ids)] = ids.to(self.device)

    def prompt(self, text: str, voice: Voice, *, parameters: Parameters, **others: Any) -> Prompt:
        return self._builder.build(text, *self._how(voice, parameters))

    def tokens(self, text: str, end: bool) -> tuple[list[int], str]:
        return self._builder.tokens(text, end)

    def live_prompt(
        self,
        tokens: Sequence[int],
        end: bool,
        voice: Voice,
        *,
        parameters: Parameters,
        **others: Any,
    ) -> Prompt:
        return self._builder.build_beside(tokens, end, *self._how(voice, parameters))

    def _how(
        self, voice: Voice, parameters: Parameters
    ) -> tuple[str | None, Sequence[Segment], str, str]:
        """Speaker, clip, language and instructions."""
        assert isinstance(parameters, QwenParameters)
        speaker = None if voice.segments or voice.name not in self.config.speakers else voice.name
        instructions = getattr(parameters, "instructions", "")
        return speaker, voice.segments, parameters.language, instructions

    def prefill(
        self,
        inputs: Inputs,
        lengths: torch.Tensor,
        slots: torch.Tensor,
        kv: KVCache,
    ) -> torch.Tensor:
        x = self._embed(inputs["tokens"])
        if "vector" in inputs:
            x = x + inputs["vector"].to(self.dtype)
        self._begin[slots] = kv.lengths[slots] + lengths
        return self.network.backbone.prefill(x, lengths, slots, kv)

    def emit(self, hidden: torch.Tensor, sampler: Sampler) -> tuple[torch.Tensor, torch.Tensor]:
        net = self.network
        early = (sampler.frame < FIRST_END)[:, None] & self._is_end
        code = sampler(net.head(hidden).masked_fill(early, -torch.inf), 0)
        first = net.projector(hidden)
        frame = depth_frame(net.depth, net.depth_heads, self._tables, first, code, sampler)
        return frame, code == self.config.codes

    def advance(self, codes: torch.Tensor, slots: torch.Tensor, kv: KVCache) -> torch.Tensor:
        x = self.network.codes(codes + self._offsets).sum(dim=1)
        step = (kv.lengths[slots] - self._begin[slots]).clamp(0, self.max_positions - 1)
        x = x + self.network.text(self._later[slots, step])
        return self.network.backbone.advance(x, slots, kv)

    def _embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Sum of the filled columns of `[B, T, K + 1]`, rounded once."""
        filled = (tokens >= 0)[..., None]
        ids = tokens.clamp(min=0)
        text = self.network.text(ids[..., 0]).float() * filled[..., 0, :]
        codes = self.network.codes(ids[..., 1:] + self._offsets) * filled[..., 1:, :]
        embedded: torch.Tensor = (text + codes.sum(dim=-2, dtype=torch.float32)).to(self.dtype)
        return embedded
