"""A model that takes text while it speaks: each character is a frame.

A frame's audio depends on its character, the previous frame and the seed, so a character that
comes too late or at another frame changes the audio from there on.
"""

from __future__ import annotations

from pathlib import Path

import torch

from tests.tone import ToneCodec
from vox_serve import FrontEnd, ModelSpec, Prompt, SamplingParams, UnspeakableText, Voice, hookimpl
from vox_serve.model import NO_CACHE

CHECKPOINT = Path(__file__).parent / "talk_checkpoint"
END = 0
CODES = 64
MAX_CHARACTERS = 120


class TalkModel:
    device = torch.device("cpu")
    dtype = torch.float32
    hidden_size = 2
    max_positions = 500
    kv_layout = NO_CACHE
    takes_context = False
    takes_live_text = True
    voices = (Voice("plain", 0), Voice("slow", 1))
    default_sampling = SamplingParams(temperature=0.0)
    weight_bytes = 0

    def __init__(self):
        self.codec = ToneCodec()

    def allocate(self, num_slots):
        self.text = torch.full((num_slots, self.max_positions), END)
        self.begin = torch.zeros(num_slots, dtype=torch.int64)
        return self.text.nbytes

    def clear(self, slot):
        self.text[slot] = END

    def put_text(self, slot, start, ids):
        self.text[slot, start:] = END
        self.text[slot, start : start + len(ids)] = ids

    def tokens(self, text, end):
        """A word's characters count only once a space follows it."""
        if "broken" in text:
            raise RuntimeError("a bug in tokens")
        if end:
            return [*map(ord, text.rstrip()), END], ""
        words = text[: max(0, text.rfind(" "))]
        return [*map(ord, words)], text[len(words) :]

    def live_prompt(self, tokens, end, voice, **others):
        if end and len(tokens) == 1:
            raise UnspeakableText("text contains nothing to say", "text")
        needed = 8 if voice.name == "slow" else 1
        if len(tokens) < needed and not end:
            return Prompt({})
        return Prompt({"ids": torch.tensor([1])}, later=torch.tensor(tokens))

    def prompt(self, text, voice, **others):
        return self.live_prompt(self.tokens(text, True)[0], True, voice)

    def prefill(self, inputs, lengths, slots, kv):
        self.begin[slots] = kv.lengths[slots] + lengths
        return torch.tensor([[1.0, 7.0]]).expand(len(slots), 2)

    def emit(self, hidden, sampler):
        token, before = hidden.unbind(1)
        ids = torch.arange(CODES)
        logits = -0.05 * (ids - (token + before)[:, None] % CODES).abs()
        first = sampler(logits, 0)
        second = sampler(-0.05 * (ids - first[:, None]).abs(), 1)
        return torch.stack([first, second], 1), token == END

    def advance(self, codes, slots, kv):
        step = (kv.lengths[slots] - self.begin[slots]).clamp(0, self.max_positions - 1)
        return torch.stack([self.text[slots, step], codes.sum(1)], 1).float()


@hookimpl
def vox_serve_models():
    return [
        ModelSpec(
            "talk",
            "talks",
            (),
            lambda config: config.get("model_type") == "talk",
            lambda config: ["*.json"],
            lambda options: TalkModel(),
            front_end=FrontEnd(language=None),
            max_characters=MAX_CHARACTERS,
        )
    ]
