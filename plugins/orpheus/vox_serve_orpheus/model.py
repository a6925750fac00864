"""The Orpheus network: a Llama with one token per frame, seven of which are a frame of SNAC.

Implements `vox_serve.Model` with a single codebook.  A code is the token's id minus the
first code's id.  Values outside 0 .. 7 x 4096 - 1 are text and markers, which may be sampled, as in
the reference, and are fed back unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
    Voice,
)
from vox_serve.nn import Embedding, Linear, Llama, LlamaConfig, held_bytes
from vox_serve_orpheus.prompt import OrpheusTokenizer
from vox_serve_orpheus.snac import SlotSnac

# In the order of Orpheus's README; the index is the speaker id.
VOICES = ("tara", "leah", "jess", "leo", "dan", "mia", "zac", "zoe")
# Independent implementations of the published server agree on these; no top-k.
SAMPLING = SamplingParams(temperature=0.6, top_k=0, top_p=0.8, repetition_penalty=1.3)


class OrpheusNetwork(nn.Module):
    """The weights, with parameters uninitialised; `checkpoint.py` fills them.

    Args:
        shared: the head and the embedding are one table.
    """

    def __init__(self, config: LlamaConfig, vocab: int, shared: bool) -> None:
        super().__init__()
        self.embedding = Embedding(vocab, config.hidden_size)
        self.backbone = Llama(config)
        self.head = None if shared else Linear(config.hidden_size, vocab)

    def logits(self, hidden: Tensor) -> Tensor:
        if self.head is None:
            return F.linear(hidden, self.embedding.weight)
        logits: Tensor = self.head(hidden)
        return logits


class OrpheusModel(Model):
    """Orpheus, loaded.

    Args:
        options: the options of loading.
        network: loaded weights, on their device.
        codec: loaded SNAC.
        tokenizer: text to ids.
        first_code: id of code 0.
        end_ids: ids that end the utterance.
    """

    voices = tuple(Voice(name, speaker) for speaker, name in enumerate(VOICES))
    default_sampling = SAMPLING

    def __init__(
        self,
        options: LoadOptions,
        network: OrpheusNetwork,
        codec: SlotSnac,
        tokenizer: OrpheusTokenizer,
        first_code: int,
        end_ids: Sequence[int],
    ) -> None:
        super().__init__(options, codec)
        config = network.backbone.config
        self.network = network
        self.hidden_size = config.hidden_size
        self.max_positions = config.max_position_embeddings
        self.kv_layout = config.kv_layout
        self.weight_bytes = held_bytes(network) + codec.weight_bytes
        self._tokenizer = tokenizer
        self._first_code = first_code
        self._end_ids = torch.tensor(sorted(set(end_ids)), device=self.device)

    def prompt(self, text: str, voice: Voice, **others: Any) -> Prompt:
        return Prompt({"tokens": torch.tensor(self._tokenizer.encode(text, voice.name))})

    def prefill(self, inputs: Inputs, lengths: Tensor, slots: Tensor, kv: KVCache) -> Tensor:
        embedded = self.network.embedding(inputs["tokens"])
        return self.network.backbone.prefill(embedded, lengths, slots, kv)

    def emit(self, hidden: Tensor, sampler: Sampler) -> tuple[Tensor, Tensor]:
        token = sampler(self.network.logits(hidden), 0)[:, None]
        return token - self._first_code, (token == self._end_ids).any(dim=1)

    def advance(self, codes: Tensor, slots: Tensor, kv: KVCache) -> Tensor:
        embedded = self.network.embedding(codes[:, 0] + self._first_code)
        return self.network.backbone.advance(embedded, slots, kv)
