"""A model that hums in milliseconds on a CPU, for tests of the engine and the server.

The first number in a text is its length in frames (5 if there is none).  A row reads all its
state back from its slot of the key/value cache, so a mix-up of slots changes the sound.  Words
in a text make the model misbehave: `nan` (non-finite logits at its third frame), `boom` (an
exception at its third frame), `unprefillable`, `unspeakable`, `unpromptable`, `reserved` (a code
outside the codec), `loud` (C code prints a megabyte), `crash` (C code prints a line and aborts).

Environment variables: each emit sleeps for TONE_DELAY seconds; TONE_FRAME_SIZE makes frames large
enough to fill a socket's buffers; with TONE_HEARS, the pitch depends on the context; with
TONE_LOAD_ERROR, loading fails.
"""

from __future__ import annotations

import ctypes
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from vox_serve import (
    CheckpointError,
    CheckpointSpec,
    KVCache,
    KVLayout,
    LoadOptions,
    ModelSpec,
    Parameters,
    Prompt,
    PromptTooLong,
    Sampler,
    SamplingParams,
    Segment,
    UnspeakableText,
    Voice,
    hookimpl,
)

CHECKPOINT = Path(__file__).parent / "tone_checkpoint"
VOCAB, SIZE = 67, 64  # ids per codebook; the codec has 64
FAULTS = {"nan": 1, "boom": 2, "reserved": 3}


class ToneCodec:
    """A sine per frame; each slot has a phase, which continues from frame to frame."""

    sample_rate = 8000
    frame_rate = 12.5
    frame_size = int(os.environ.get("TONE_FRAME_SIZE", "640"))
    frame_width = 2
    codebook_size = SIZE
    frames_per_step = 1

    def allocate(self, num_slots: int) -> int:
        self.phase = torch.zeros(num_slots, dtype=torch.float64)
        return self.phase.nbytes

    def clear(self, slot: int) -> None:
        self.phase[slot] = 0

    def step(self, codes, slots, reset):
        assert int(codes.max()) < SIZE
        start = torch.where(reset, 0.0, self.phase[slots])
        frequency = 100.0 + 10.0 * codes[:, 0, -1] + codes[:, 1, -1]
        turns = start[:, None] + frequency[:, None] * (
            torch.arange(1, self.frame_size + 1, dtype=torch.float64) / self.sample_rate
        )
        self.phase[slots] = turns[:, -1]
        pcm = 0.5 * torch.sin(2 * torch.pi * turns).float()
        return pcm, torch.full_like(slots, self.frame_size)

    def encode(self, pcm):
        frames = -(-len(pcm) // self.frame_size)
        return torch.full((2, frames), 7)


class ToneModel:
    device = torch.device("cpu")
    dtype = torch.float32
    hidden_size = 3
    max_positions = 200
    takes_context = True
    takes_live_text = False
    kv_layout = KVLayout(num_layers=1, num_kv_heads=1, head_dim=4)
    voices = (Voice("hum_a", 0), Voice("hum_b", 1))
    default_sampling = SamplingParams(temperature=0.0)
    weight_bytes = 0

    def __init__(self) -> None:
        self.codec = ToneCodec()
        self.delay = float(os.environ.get("TONE_DELAY", "0"))

    def prompt(
        self, text: str, voice: Voice, *, context: Sequence[Segment], parameters: Parameters
    ) -> Prompt:
        if "unspeakable" in text:
            raise UnspeakableText("text holds what no tone can say", "text")
        if "loud" in text:
            ctypes.CDLL(None).dprintf(1, b"%s\n", b"la" * 2**19)
        if "crash" in text:
            ctypes.CDLL(None).dprintf(2, b"terminate called\n")
            os.abort()
        if "unpromptable" in text:
            raise RuntimeError("a bug in prompt")
        number = re.search(r"\d+", text)
        frames = int(number[0]) if number else 5
        fault = next((code for word, code in FAULTS.items() if word in text), 0)
        length = 2 + len(text.split())
        for segment in [*voice.segments, *context]:
            length += 1 + segment.codes.shape[1]
        if length >= self.max_positions:
            raise PromptTooLong("context is too long", "context")
        heard = sum(int(s.codes.sum()) for s in context) if "TONE_HEARS" in os.environ else 0
        pitch = 10 * (voice.speaker + 1) + len(text) % 10 + heard % 7
        row = torch.tensor([frames, pitch, length, fault + 10 * ("unprefillable" in text)])
        return Prompt({"row": row.repeat(length, 1).float()})

    def prefill(
        self, inputs: Mapping[str, torch.Tensor], lengths: torch.Tensor, slots, kv: KVCache
    ):
        rows = inputs["row"]
        if bool((rows[..., 3] >= 10).any()):
            raise RuntimeError("a row that cannot be prefilled")
        positions = kv.lengths[slots][:, None] + torch.arange(rows.shape[1])
        _, values = kv.view(slots, positions).extend(0, rows[:, :, None], rows[:, :, None])
        frames, pitch, _, _ = values[:, 0, 0].unbind(-1)
        # hidden: frames left, pitch, fault (shown from the third frame on)
        return torch.stack([frames, pitch, torch.zeros(len(slots))], dim=1)

    def emit(self, hidden: torch.Tensor, sampler: Sampler):
        if self.delay:
            time.sleep(self.delay)
        left, pitch, fault = hidden.unbind(1)
        if bool((fault == 2).any()):
            raise RuntimeError("a row that raises")
        ids = torch.arange(VOCAB)
        logits = -0.05 * (ids - pitch[:, None]).abs()
        logits = torch.where((fault == 1)[:, None], torch.nan, logits)
        first = sampler(logits, 0)
        second = sampler(-0.05 * (ids - (first[:, None] * 7) % SIZE).abs(), 1)
        second = torch.where(fault == 3, VOCAB - 1, second)
        end = left <= 0
        return torch.stack([first, second], dim=1), end

    def advance(self, codes: torch.Tensor, slots: torch.Tensor, kv: KVCache):
        position = kv.lengths[slots][:, None]
        stored = torch.zeros(len(slots), 1, 1, 4)
        stored[:, 0, 0, 0] = codes[:, 0]
        _, values = kv.view(slots, position).extend(0, stored, stored)
        frames, pitch, length, fault = values[:, 0, 0].unbind(-1)
        done = position[:, 0] - length + 1
        # The last code shifts the pitch, so that a wrong code or slot changes all later frames.
        sway = values.gather(1, position[:, :, None, None].expand(-1, 1, 1, 4))[:, 0, 0, 0] % 3
        shown = torch.where(done >= 2, fault, 0.0)
        return torch.stack([frames - done, pitch + sway, shown], dim=1)


def _load(options: LoadOptions) -> ToneModel:
    if os.environ.get("TONE_LOAD_ERROR"):
        raise CheckpointError("the tone is out of tune")
    return ToneModel()


def _matches(config: Mapping[str, Any]) -> bool:
    return config.get("model_type") == "tone"


@hookimpl
def vox_serve_models() -> Sequence[ModelSpec]:
    return [ModelSpec("tone", "hums", ("test/tone",), _matches, lambda _: ["*.json"], _load)]


@hookimpl
def vox_serve_checkpoints() -> Sequence[CheckpointSpec]:
    return [CheckpointSpec("tone", str(CHECKPOINT), "a tone that hums", max_characters=500)]
