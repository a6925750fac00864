"""Our side of a comparison: runs an engine, and measures its frames."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from vox_serve.engine.engine import Engine
from vox_serve.messages import Audio, Failed, Finished, SpeechRequest
from vox_serve.nn import PackedLinear, held_bytes
from vox_serve.nn.decode_step import DecodeStep
from vox_serve.voice import Segment

TEXT = "the past is just a story we tell ourselves."
PHASES = ("advance", "emit", "codec")
VOICE_SECONDS = 20.0


def speak(
    engine: Engine, texts: Sequence[str], seconds: float | None, voice: str | None = None
) -> dict[str, float]:
    """Speak texts together, greedy.

    Args:
        seconds: the length of each text; None: until the model ends it.
        voice: its name; by default the model's first.

    Returns:
        `first_audio`: seconds from the first text's arrival to its first sound;
        `frame`: seconds per frame after that, of the longest text, for the whole batch; split into
        `advance_per_frame`, `emit_per_frame` and `codec_per_frame`; `real_time_factor`: time
        over audio, all texts together; `frames` of the longest text.

    Raises:
        RuntimeError: a text could not be spoken.
    """
    start = time.perf_counter()
    for number, text in enumerate(texts):
        request = SpeechRequest(
            str(number), text, voice=voice, sampling={"temperature": 0.0}, max_seconds=seconds
        )
        engine.add(request)
    first, samples, frames = 0.0, 0, 0
    phases = dict.fromkeys(PHASES, 0.0)
    while engine.has_work:
        output = engine.step()
        if first:
            for name, spent in output.stats.phase_seconds:
                if name in phases:
                    phases[name] += spent
        for event in output.events:
            if isinstance(event, Failed):
                raise RuntimeError(f"text {event.request_id}: {event.error}")
            if isinstance(event, Audio):
                samples += len(event.pcm) // 2
            if isinstance(event, Finished):
                frames = max(frames, event.frames)
        first = first or (time.perf_counter() - start if samples else 0.0)
    spent = time.perf_counter() - start
    later = max(frames - 1, 1)
    return {
        "first_audio": first,
        "frame": (spent - first) / later,
        **{f"{name}_per_frame": phases[name] / later for name in PHASES},
        "real_time_factor": spent / (samples / engine.model.codec.sample_rate),
        "frames": float(frames),
    }


def first_audio(engine: Engine, text: str, seed: int) -> dict[str, float]:
    """First sound of one text: without a voice, with a new voice, and again with that voice.

    The voice is 20 s of random codes, or as much as half the model's context holds.  The second
    time the engine finds its keys and values in the prefix cache.
    """
    codec = engine.model.codec
    frames = min(round(VOICE_SECONDS * codec.frame_rate), engine.model.max_positions // 2)
    generator = torch.Generator().manual_seed(seed)
    shape = (codec.frame_width, frames)
    codes = torch.randint(codec.codebook_size, shape, generator=generator)
    engine.prompts.voices.add("measured", 0, [Segment(0, text, codes=codes)])
    brief = 1 / codec.frame_rate
    figures = {"text_alone": speak(engine, [text], brief)["first_audio"]}
    for name in ("voice_cold", "voice_cached"):
        figures[name] = speak(engine, [text], brief, "measured")["first_audio"]
    engine.prompts.voices.remove("measured")
    return figures | {"voice_seconds": frames / codec.frame_rate}


def bytes_per_frame(engine: Engine) -> int:
    """Weights that one frame at batch 1 reads: the backbone once, the depth decoder K - 1 times.

    Rows of embeddings and the codec are not counted.
    """
    network: Any = engine.model.network  # type: ignore[attr-defined]  # a CSM
    passes = engine.model.codec.frame_width - 1
    once = [network.backbone, network.head, network.depth_heads]
    # Projected codes are in a table.  Only the hidden state is projected in each frame, and even
    # that matrix may have been merged into another.
    projector = getattr(network, "projector", None)
    read = sum(map(layer_bytes, [*once, *([projector] if projector else [])]))
    return read + passes * layer_bytes(network.depth)


def layer_bytes(module: Any) -> int:
    """Bytes of the layers' weights, without the copies for a compiled step or for many rows."""
    copies = (m for m in module.modules() if isinstance(m, DecodeStep | PackedLinear))
    return held_bytes(module) - sum(copy.nbytes for copy in copies)
