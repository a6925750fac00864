"""Sound from a checkpoint: speaks texts, and passes sound through its codec."""

from __future__ import annotations

import time
from collections.abc import Sequence

import attrs
import numpy as np
import torch
from tqdm import tqdm

from plugins.demo_voice.training.config import Array
from vox_serve import Codec
from vox_serve.engine.engine import Engine
from vox_serve.messages import Audio, Finished, FinishReason, SpeechRequest


@attrs.frozen(eq=False)
class Utterance:
    sound: Array
    ended: bool
    seconds: float
    first_audio_seconds: float


def speak(
    engine: Engine, texts: Sequence[tuple[str, int]], temperature: float, at_once: int
) -> list[Utterance]:
    """Speak texts with their speakers, `at_once` at a time; times are only fair one by one."""
    made: list[Utterance] = []
    bar = tqdm(total=len(texts), desc=f"speaking, {at_once} at a time")
    for first in range(0, len(texts), at_once):
        some = texts[first : first + at_once]
        start = time.perf_counter()
        for i, (text, speaker) in enumerate(some):
            sampling = {"temperature": temperature, "seed": first + i}
            engine.add(SpeechRequest(str(i), text, speaker, sampling=sampling))
        pcm = [b""] * len(some)
        ended = [False] * len(some)
        heard = [0.0] * len(some)
        while engine.has_work:
            for event in engine.step().events:
                i = int(event.request_id)
                if isinstance(event, Audio):
                    heard[i] = heard[i] or time.perf_counter() - start
                    pcm[i] += event.pcm
                elif isinstance(event, Finished):
                    ended[i] = event.reason is FinishReason.STOP
        spent = time.perf_counter() - start
        for i in range(len(some)):
            sound = np.frombuffer(pcm[i], "<i2").astype(np.float32) / 32767
            made.append(Utterance(sound, ended[i], spent, heard[i]))
        bar.update(len(some))
    return made


def through_codec(codec: Codec, sound: Array) -> Array:
    """Encode and decode sound, frame by frame like a stream."""
    codes = codec.encode(torch.from_numpy(sound))
    slot = torch.zeros(1, dtype=torch.long)
    parts = [
        codec.step(codes[None, :, t : t + 1], slot, torch.tensor([t == 0]))[0][0]
        for t in range(codes.shape[1])
    ]
    return torch.cat(parts).numpy()[: len(sound)]
