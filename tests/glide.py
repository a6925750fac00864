"""A model of latents that glides from pitch to pitch; it tests the core's support of latents.

A frame is two numbers, a pitch and a loudness.  A countdown in the model's own state ends an
utterance, and a voice may come as keys and values.
"""

from __future__ import annotations

import attrs
import torch

from vox_serve import (
    Choice,
    KVLayout,
    ModelSpec,
    Parameters,
    Prompt,
    PromptTooLong,
    Range,
    Voice,
    Words,
    hookimpl,
    parameter,
)


@attrs.frozen
class GlideParameters(Parameters):
    noise_level: float = parameter(0.5, Range(float, 0.0, 2.0, "how far the pitch strays"))
    steps: int = parameter(1, Range(int, 1, 3, "halvings of the noise"))
    language: str = parameter("auto", Choice(("auto", "de", "en"), "where the first pitch is"))
    instructions: str = parameter("", Words(20, "their length moves the first pitch"))


class GlideCodec:
    sample_rate = 8000
    frame_rate = 12.5
    frame_size = 640
    frame_width = 2
    codebook_size = None
    frames_per_step = 1

    def allocate(self, num_slots):
        self.phase = torch.zeros(num_slots, dtype=torch.float64)
        return self.phase.nbytes

    def clear(self, slot):
        self.phase[slot] = 0

    def step(self, codes, slots, reset):
        start = torch.where(reset, 0.0, self.phase[slots])
        time = torch.arange(1, self.frame_size + 1, dtype=torch.float64) / self.sample_rate
        turns = start[:, None] + (200 + 50 * codes[:, 0, -1:]) * time
        self.phase[slots] = turns[:, -1]
        pcm = codes[:, 1, -1:].tanh() * torch.sin(2 * torch.pi * turns).float()
        return pcm, torch.full_like(slots, self.frame_size)


class GlideModel:
    device = torch.device("cpu")
    dtype = torch.float32
    hidden_size = 2
    max_positions = 60
    takes_context = False
    takes_live_text = False
    kv_layout = KVLayout(num_layers=1, num_kv_heads=1, head_dim=2)
    voices = (Voice("plain", 0), Voice("given", 1))
    default_sampling = GlideParameters()
    weight_bytes = 0

    def __init__(self):
        self.codec = GlideCodec()

    def allocate(self, num_slots):
        self.left = torch.zeros(num_slots, dtype=torch.int64)
        return self.left.nbytes

    def clear(self, slot):
        self.left[slot] = 0

    def prompt(self, text, voice, *, context, parameters):
        rows = torch.tensor([[float(len(word)), 0.1] for word in text.split()])
        if len(rows) > 40:
            raise PromptTooLong("text has more than 40 words", "text")
        first = 10.0 * ("auto", "de", "en").index(parameters.language)
        first += len(parameters.instructions)
        if first:
            rows = torch.cat([torch.tensor([[first, 0.1]]), rows])
        if voice.name == "plain":
            return Prompt({"row": rows})
        names, given = torch.full((2, 2), -1.0), torch.full((1, 2, 1, 2), 3.0)
        return Prompt({"row": torch.cat([names, rows])}, given=(given, given))

    def prefill(self, inputs, lengths, slots, kv):
        rows = inputs["row"][:, :, None]
        positions = kv.lengths[slots][:, None] + torch.arange(rows.shape[1])
        view = kv.view(slots, positions)
        _, values = view.extend(0, rows, rows)
        hidden = _sum(values, view.mask)[torch.arange(len(slots)), lengths - 1]
        self.left[slots] = 3 + hidden[:, 0].to(torch.int64) % 4
        return hidden

    def emit(self, hidden, sampler):
        noise = sampler.noise(2)
        for step in range(int(sampler.largest("steps")) - 1):
            noise = torch.where((sampler.parameter("steps") > step + 1)[:, None], noise / 2, noise)
        latent = torch.sin(hidden) + sampler.parameter("noise_level")[:, None] * noise
        return latent, sampler.frame >= self.left[sampler.slots]

    def advance(self, codes, slots, kv):
        positions = kv.lengths[slots][:, None]
        view = kv.view(slots, positions)
        _, values = view.extend(0, codes[:, None, None], codes[:, None, None])
        return _sum(values, view.mask)[:, 0]


def _sum(values, mask):
    """Of what each query may look at: `[B, E, 1, D]` and `[B, 1, T, E]` to `[B, T, D]`."""
    return mask[:, 0].float() @ values[:, :, 0]


@hookimpl
def vox_serve_models():
    return [
        ModelSpec(
            name="glide",
            summary="glides",
            hub_ids=("test/glide",),
            matches=lambda config: config.get("model_type") == "glide",
            files=("*.json",),
            load=lambda options: GlideModel(),
            parameters=GlideParameters,
            languages=("de", "en"),
        )
    ]
