"""The CSM network: a Llama backbone over frames, a depth decoder over a frame's codebooks.

Implements `vox_serve.Model`.  Behaviour follows Sesame's published generator; where
transformers differs from it, this plugin's README describes the behaviour here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

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
from vox_serve.nn import Embedding, Linear, Llama, depth_frame, held_bytes, projected_codes
from vox_serve.nn.mimi import Mimi
from vox_serve_csm.config import CsmConfig
from vox_serve_csm.prompt import PromptBuilder


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
        options: the options of loading.
        config: sizes.
        network: loaded weights, on their device.
        codec: loaded Mimi.
        builder: makes prompts.
        voices: speakers with their reference clips.
        default_sampling: applies to parameters that a request does not set.
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
        vocab = config.audio_vocab
        rows = (self.num_codebooks - 1) * vocab
        inputs = projected_codes(network.audio_embedding, network.projector, rows)
        self._tables = torch.split(inputs, vocab)
        self.weight_bytes = held_bytes(network) + inputs.nbytes + codec.weight_bytes
        self._builder = builder
        self._offsets = torch.arange(self.num_codebooks, device=self.device) * vocab

    def prompt(
        self, text: str, voice: Voice, *, context: Sequence[Segment], **others: Any
    ) -> Prompt:
        return self._builder.build(text, voice.speaker, [*voice.segments, *context])

    def prefill(self, inputs: Inputs, lengths: Tensor, slots: Tensor, kv: KVCache) -> Tensor:
        return self.network.backbone.prefill(self._embed(inputs["tokens"]), lengths, slots, kv)

    def emit(self, hidden: Tensor, sampler: Sampler) -> tuple[Tensor, Tensor]:
        net = self.network
        code = sampler(net.head(hidden), 0)
        first = net.projector(hidden)
        frame = depth_frame(net.depth, net.depth_heads, self._tables, first, code, sampler)
        return frame, (frame == self.config.end_code).all(dim=1)

    def advance(self, codes: Tensor, slots: Tensor, kv: KVCache) -> Tensor:
        embedded = self.network.audio_embedding(codes + self._offsets)
        x = embedded.sum(dim=1)  # summed in float32, and rounded once
        return self.network.backbone.advance(x, slots, kv)

    def _embed(self, tokens: Tensor) -> Tensor:
        """Sum of the filled columns of `[B, T, K + 1]`, rounded once."""
        filled = (tokens >= 0)[..., None]
        ids = tokens.clamp(min=0)
        audio = self.network.audio_embedding(ids[..., :-1] + self._offsets)
        text = self.network.text_embedding(ids[..., -1])
        total = (audio * filled[..., :-1, :]).sum(dim=-2, dtype=torch.float32)
        embedded: Tensor = (total + text.float() * filled[..., -1, :]).to(self.dtype)
        return embedded
