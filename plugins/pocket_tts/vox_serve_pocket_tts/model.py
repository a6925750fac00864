"""The Pocket TTS network: a backbone over one stream of voice, text and latents, and a flow head.

Implements `vox_serve.Model`.  The architecture is described in "Continuous Audio Language Models",
https://arxiv.org/abs/2509.06926; behaviour follows the `pocket-tts` package.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vox_serve import (
    Inputs,
    KVCache,
    KVView,
    LoadOptions,
    Model,
    Parameters,
    Prompt,
    Sampler,
    Voice,
)
from vox_serve.nn import Biased, Embedding, Linear, LlamaConfig, held_bytes
from vox_serve.nn.llama import Attention, Rotation, Tables
from vox_serve.nn.rope import signed
from vox_serve_pocket_tts.codec import LatentDecoder
from vox_serve_pocket_tts.config import NORM_EPS, TIMES, PocketConfig
from vox_serve_pocket_tts.plugin import FlowParameters
from vox_serve_pocket_tts.text import Encode, frames_after_end, prepared

FIRST_FRAMES = 6
"""The end logit is ignored in the first frames: some voices cross its threshold too early."""
HEARD = -1
"""Replaces the token at positions with a latent of the voice."""
MOST_STEPS = int(FlowParameters.ranges()["flow_steps"].high)


class _Layer(nn.Module):
    def __init__(self, config: LlamaConfig, number: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.norm1 = nn.LayerNorm(width, NORM_EPS)
        self.attention = Attention(config, number)
        self.norm2 = nn.LayerNorm(width, NORM_EPS)
        self.up = Linear(width, config.intermediate_size)
        self.down = Linear(config.intermediate_size, width)

    def forward(self, x: Tensor, rotation: Rotation, kv: KVView) -> Tensor:
        attention = self.attention
        seen = attention(attention.qkv(self.norm1(x)), rotation, kv)
        x = x + attention.output(seen)
        added: Tensor = self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))
        return x + added


class FlowHead(nn.Module):
    """Noise and condition to a step from noise to latent: an MLP with adaptive layer norm.

    One vector modulates all blocks, so the modulations are computed by one matrix.
    """

    times: Tensor
    """Added to the condition, by number of steps and step: `[MOST_STEPS, MOST_STEPS, width]`."""

    def __init__(self, config: PocketConfig) -> None:
        super().__init__()
        width, depth = config.flow_width, config.flow_depth
        self.depth = depth
        self.entry = Biased(config.latent, width)
        self.condition = Biased(config.head_width or config.backbone.hidden_size, width)
        self.modulation = Biased(width, (3 * depth + 2) * width)
        self.norms = nn.ModuleList(nn.LayerNorm(width, 1e-6) for _ in range(depth))
        self.up = nn.ModuleList(Biased(width, width) for _ in range(depth))
        self.down = nn.ModuleList(Biased(width, width) for _ in range(depth))
        self.output = Biased(width, config.latent)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """`[B, latent]` and the output of `condition`, `[B, width]`, to `[B, latent]`."""
        parts = self.modulation(F.silu(condition)).chunk(3 * self.depth + 2, dim=-1)
        x = self.entry(x)
        for number in range(self.depth):
            shift, scale, gate = parts[3 * number : 3 * number + 3]
            inner = torch.addcmul(shift, self.norms[number](x), 1 + scale)
            x = torch.addcmul(x, gate, self.down[number](F.silu(self.up[number](inner))))
        shift, scale = parts[3 * self.depth :]
        x = torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale)
        latent: Tensor = self.output(x)
        return latent


class PocketNetwork(nn.Module):
    """The network with uninitialised parameters; `checkpoint.py` fills them."""

    tables: Tables

    def __init__(self, config: PocketConfig) -> None:
        super().__init__()
        width = config.backbone.hidden_size
        # After the rows of text tokens: those for the beginning of a voice and of the speech.
        self.embedding = Embedding(config.text_tokens + 3, width)
        self.voice = Linear(config.voice, width)
        self.latent = Linear(config.latent, width)
        self.layers = nn.ModuleList(
            _Layer(config.backbone, n) for n in range(config.backbone.num_hidden_layers)
        )
        self.norm = nn.LayerNorm(width, NORM_EPS)
        self.narrow = Linear(width, config.head_width) if config.head_width else nn.Identity()
        self.end = Biased(config.head_width or width, 1)
        self.flow = FlowHead(config)

    def prepare(self, config: LlamaConfig, device: torch.device, dtype: torch.dtype) -> None:
        """Compute the RoPE tables; call it once the weights are loaded."""
        tables = config.rope.table(config.head_dim, config.max_position_embeddings)
        cos, sin = (table.to(device=device, dtype=dtype) for table in tables)
        self.tables = Tables(cos, sin, signed(sin))

    def backbone(self, x: Tensor, positions: Tensor, kv: KVView) -> Tensor:
        """`[B, T, H]` at `positions` `[B, T]` to the same shape, before the last norm."""
        rotation = Rotation(self.tables, positions)
        for layer in self.layers:
            x = layer(x, rotation, kv)
        return x

    def head_input(self, x: Tensor) -> Tensor:
        """The backbone's output to the input of the heads, `[..., head_width]`."""
        narrow: Tensor = self.narrow(self.norm(x))
        return narrow


@attrs.frozen(eq=False)
class GivenVoice:
    """A voice as keys and values `[layers, P, H, D]`."""

    keys: Tensor
    values: Tensor

    def __len__(self) -> int:
        return self.keys.shape[1]


class PocketModel(Model):
    """Pocket TTS, loaded.  Its state per slot says how the utterance ends.

    Args:
        options: the options of loading.
        config: sizes.
        network: loaded weights, on their device.
        codec: the loaded codec.
        encode: text to ids.
        given: the voices of the checkpoint, by name.
        default_sampling: applies to parameters that a request does not set.
    """

    def __init__(
        self,
        options: LoadOptions,
        config: PocketConfig,
        network: PocketNetwork,
        codec: LatentDecoder,
        encode: Encode,
        given: Mapping[str, GivenVoice],
        default_sampling: Parameters,
    ) -> None:
        super().__init__(options, codec)
        self.config = config
        self.network = network
        self.default_sampling = default_sampling
        self.hidden_size = config.head_width or config.backbone.hidden_size
        self.max_positions = config.backbone.max_position_embeddings
        self.kv_layout = config.backbone.kv_layout
        self.weight_bytes = held_bytes(network) + codec.weight_bytes
        self.voices = tuple(Voice(name, number) for number, name in enumerate(given or ["any"]))
        self._given = list(given.values())
        self._encode = encode
        self._voice_begin, self._begin = config.text_tokens + 1, config.text_tokens + 2

    def allocate(self, num_slots: int) -> int:
        """Per slot: the frame that marked the end (-1: none), and the frames to speak from it."""
        self._marked = torch.full((num_slots,), -1, device=self.device)
        self._tail = torch.zeros(num_slots, dtype=torch.int64, device=self.device)
        return self._marked.nbytes + self._tail.nbytes

    def clear(self, slot: int) -> None:
        self._marked[slot] = -1
        self._tail[slot] = 0

    def prompt(self, text: str, voice: Voice, **others: Any) -> Prompt:
        """The voice, the text and the beginning of speech.

        `tokens` int64 `[T]`; `latents` `[T, voice]` where a token says HEARD; `tail` `[T]`.
        """
        spelled = prepared(text, self.config)
        ids = [*self._encode(spelled), self._begin]
        clip = [segment.codes.t().cpu() for segment in voice.segments if segment.codes is not None]
        given = None
        if clip:
            heard = torch.cat(clip).float()
            before = [self._voice_begin] * self.config.begins_voice + [HEARD] * len(heard)
        elif self._given:
            given = self._given[voice.speaker]
            before, heard = [HEARD - 1 - voice.speaker] * len(given), torch.zeros(0)
        else:
            before, heard = [], torch.zeros(0)
        tokens = torch.tensor([*before, *ids])
        latents = torch.zeros(len(tokens), self.config.voice)
        latents[len(before) - len(heard) : len(before)] = heard.view(len(heard), self.config.voice)
        tail = torch.zeros_like(tokens)
        tail[-1] = frames_after_end(spelled, self.config)
        return Prompt(
            {"tokens": tokens, "latents": latents, "tail": tail},
            shared=len(before) if clip else 0,
            given=(given.keys, given.values) if given is not None else None,
        )

    def prefill(self, inputs: Inputs, lengths: Tensor, slots: Tensor, kv: KVCache) -> Tensor:
        net, tokens = self.network, inputs["tokens"]
        heard = net.voice(inputs["latents"].to(self.dtype))
        x = torch.where((tokens == HEARD)[..., None], heard, net.embedding(tokens.clamp(min=0)))
        steps = torch.arange(tokens.shape[1], device=tokens.device)
        positions = kv.lengths[slots][:, None] + steps
        x = net.backbone(x, positions, kv.view(slots, positions))
        last = torch.arange(len(slots), device=slots.device), lengths - 1
        self._marked.index_fill_(0, slots, -1)
        self._tail[slots] = inputs["tail"][last]
        return net.head_input(x[last])

    def emit(self, hidden: Tensor, sampler: Sampler) -> tuple[Tensor, Tensor]:
        flow, kind = self.network.flow, self.config.flow_kind
        condition = flow.condition(hidden)
        latent = sampler.noise(self.config.latent)
        latent = latent * sampler.parameter("noise_temperature").sqrt()[:, None]
        if kind == "lsd":
            latent = self._integrated(latent, condition, sampler)
        else:
            made = flow(latent.to(self.dtype), condition).float()
            latent = made if kind == "drifting" else latent + made
        return latent, self._ended(hidden, sampler)

    def advance(self, codes: Tensor, slots: Tensor, kv: KVCache) -> Tensor:
        net, positions = self.network, kv.lengths[slots][:, None]
        x = net.latent(codes.to(self.dtype))[:, None]
        return net.head_input(net.backbone(x, positions, kv.view(slots, positions))[:, 0])

    def _integrated(self, latent: Tensor, condition: Tensor, sampler: Sampler) -> Tensor:
        """Lagrangian self-distillation (https://arxiv.org/abs/2505.18825), a few Euler steps."""
        flow, most = self.network.flow, int(sampler.largest("flow_steps"))
        if most == 1:
            made: Tensor = flow(latent.to(self.dtype), condition + flow.times[0, 0])
            return latent + made.float()
        steps = sampler.parameter("flow_steps")
        for number in range(most):
            direction = flow(latent.to(self.dtype), condition + flow.times[steps - 1, number])
            moved = latent + direction.float() / steps[:, None]
            latent = torch.where((steps > number)[:, None], moved, latent)
        return latent

    def _ended(self, hidden: Tensor, sampler: Sampler) -> Tensor:
        """Whether the utterance ends here, a few frames after its end mark; bool `[B]`."""
        slots, frame = sampler.slots, sampler.frame
        logit = self.network.end(hidden)[:, 0].float()
        marks = (logit > self.config.end_threshold) & (frame >= FIRST_FRAMES)
        marked = self._marked[slots]
        marked = torch.where((marked < 0) & marks, frame, marked)
        self._marked[slots] = marked
        return (marked >= 0) & (frame >= marked + self._tail[slots])


def time_table(config: PocketConfig, embed: Sequence[Callable[[Tensor], Tensor]]) -> Tensor:
    """Added to the condition, by number of steps and step: `[steps, steps, width]`.

    Args:
        embed: functions from `[N, 1]` to `[N, width]`, one for each time that the head takes.
    """
    table = torch.zeros(MOST_STEPS, MOST_STEPS, config.flow_width)
    if TIMES[config.flow_kind]:
        for count in range(1, MOST_STEPS + 1):
            borders = torch.arange(count + 1)[:, None] / count
            for number, times in enumerate(pairwise(borders)):
                parts = [make(time[None]) for make, time in zip(embed, times, strict=True)]
                table[count - 1, number] = torch.stack(parts).mean(0)[0]
    return table
