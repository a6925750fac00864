"""The CSM network: a Llama backbone over frames, a depth decoder over a frame's codebooks.

Implements `vox_serve.Model`.  Behaviour follows Sesame's published generator; where
transformers differs from it, this plugin's README describes the behaviour here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vox_serve import (
    Inputs,
    KVCache,
    LoadOptions,
    Model,
    Prompt,
    Sampler,
    SamplingParams,
    Segment,
    Voice,
)
from vox_serve.nn import Embedding, FrameCache, Linear, Llama, Rows, held_bytes
from vox_serve_csm.config import CsmConfig
from vox_serve_csm.mimi import Mimi
from vox_serve_csm.prompt import PromptBuilder

PROJECTED_TOGETHER = 8192
"""Codes whose embeddings are in memory at the same time while the model loads."""


class CsmNetwork(nn.Module):
    """The weights, with parameters uninitialised; `checkpoint.py` fills them."""

    def __init__(self, config: CsmConfig) -> None:
        super().__init__()
        width, depth_width = config.backbone.hidden_size, config.depth.hidden_size
        books, vocab = config.num_codebooks, config.audio_vocab
        self.text_embedding = Embedding(config.text_vocab, width)
        self.audio_embedding = Embedding(books * vocab, width)
        self.backbone = Llama(config.backbone)
        self.head = Linear(width, vocab)
        self.projector = Linear(width, depth_width)
        self.depth = Llama(config.depth)
        self.depth_heads = nn.ModuleList(Linear(depth_width, vocab) for _ in range(books - 1))


class CsmModel(Model):
    """CSM, loaded.

    Args:
        options: what it was loaded with.
        config: sizes.
        network: loaded weights, on their device.
        codec: loaded Mimi.
        builder: makes prompts.
        voices: speakers with their reference clips.
        default_sampling: applies where a request sets nothing.
    """

    takes_context = True

    def __init__(
        self,
        options: LoadOptions,
        config: CsmConfig,
        network: CsmNetwork,
        codec: Mimi,
        builder: PromptBuilder,
        voices: Sequence[Voice],
        default_sampling: SamplingParams,
    ) -> None:
        super().__init__(options, codec)
        self.config = config
        self.network = network
        self.voices = voices
        self.default_sampling = default_sampling
        self.num_codebooks = config.num_codebooks
        self.hidden_size = config.backbone.hidden_size
        self.max_positions = config.backbone.max_position_embeddings
        self.kv_layout = config.backbone.kv_layout
        self._depth_inputs = self._project_codes()
        self.weight_bytes = held_bytes(network) + self._depth_inputs.nbytes + codec.weight_bytes
        self._builder = builder
        self._offsets = torch.arange(self.num_codebooks, device=self.device) * config.audio_vocab
        self._depth_positions = torch.arange(self.num_codebooks, device=self.device)[None]

    def prompt(self, text: str, voice: Voice, context: Sequence[Segment]) -> Prompt:
        return self._builder.build(text, voice.speaker, [*voice.segments, *context])

    def prefill(self, inputs: Inputs, lengths: Tensor, slots: Tensor, kv: KVCache) -> Tensor:
        return self.network.backbone.prefill(self._embed(inputs["tokens"]), lengths, slots, kv)

    def emit(self, hidden: Tensor, sampler: Sampler) -> tuple[Tensor, Tensor]:
        net, vocab = self.network, self.config.audio_vocab
        code = sampler(net.head(hidden), 0)
        codes = [code]
        cache = FrameCache(
            self.config.depth.kv_layout, len(hidden), self.num_codebooks, self.device, self.dtype
        )
        # Positions 0 and 1 hold the hidden state and code 0; position i holds code i - 1.
        x: Tensor | Rows
        x = torch.stack([net.projector(hidden), F.embedding(code, self._depth_inputs)], dim=1)
        span = range(0, 2)
        for book in range(1, self.num_codebooks):
            if book > 1:
                x = Rows(self._depth_inputs[(book - 1) * vocab : book * vocab], code)
                span = range(book, book + 1)
            positions = self._depth_positions[:, span.start : span.stop]
            head = net.depth_heads[book - 1]
            code = sampler(net.depth(x, positions, cache.append(span), head), book)
            codes.append(code)
        frame = torch.stack(codes, dim=1)
        return frame, (frame == self.config.end_code).all(dim=1)

    def advance(self, codes: Tensor, slots: Tensor, kv: KVCache) -> Tensor:
        embedded = self.network.audio_embedding(codes + self._offsets)
        x = embedded.sum(dim=1)  # summed in float32, and rounded once
        return self.network.backbone.advance(x, slots, kv)

    @torch.no_grad()
    def _project_codes(self) -> Tensor:
        """The depth decoder's input for each code but the last codebook's, precomputed.

        `[(K - 1) * vocabulary, depth width]`.  So a frame uses the projector only for its hidden
        state.
        """
        rows = (self.num_codebooks - 1) * self.config.audio_vocab
        width = self.config.depth.hidden_size
        table = torch.empty(rows, width, dtype=self.dtype, device=self.device)
        for part in torch.split(torch.arange(rows, device=self.device), PROJECTED_TOGETHER):
            table[part] = self.network.projector(self.network.audio_embedding(part))
        return table

    def _embed(self, tokens: Tensor) -> Tensor:
        """Sum of the filled columns of `[B, T, K + 1]`, rounded once."""
        filled = (tokens >= 0)[..., None]
        ids = tokens.clamp(min=0)
        audio = self.network.audio_embedding(ids[..., :-1] + self._offsets)
        text = self.network.text_embedding(ids[..., -1])
        total = (audio * filled[..., :-1, :]).sum(dim=-2, dtype=torch.float32)
        embedded: Tensor = (total + text.float() * filled[..., -1, :]).to(self.dtype)
        return embedded
