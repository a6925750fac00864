"""Raises the pitch at the end of questions with the vocoder WORLD.

Only the last second is synthesized again, and faded in where the teacher is quietest, so that the
rest is the teacher's original sound.
"""

from __future__ import annotations

import numpy as np
import pyworld

from plugins.demo_voice.training.config import PITCH_PERIOD_MS, SAMPLE_RATE, Array
from plugins.demo_voice.training.words import words

RISE_S, TOP_S = 0.5, 0.1
"""Seconds before the end of the last phoneme at which the pitch begins to rise and is highest."""
RISE, RISE_AFTER_A_QUESTION_WORD = 7.0, 3.0
"""Semitones over the sentence's median at its end; smaller if the first word is a question word."""
QUESTION_WORDS = frozenset(words("who whose whom what why where when how which"))
LOWEST_HZ, HIGHEST_HZ = 60.0, 400.0
_FADE = 480
_PERIOD_MS = 5.0


def pitch(sound: Array, period_ms: float = PITCH_PERIOD_MS) -> Array:
    """F0 in Hz every `period_ms`, 0 where unvoiced; float64 `[N / period + 1]`."""
    x = np.ascontiguousarray(sound, dtype=np.float64)
    rough, times = pyworld.dio(
        x, SAMPLE_RATE, f0_floor=LOWEST_HZ, f0_ceil=HIGHEST_HZ, frame_period=period_ms
    )
    found: Array = pyworld.stonemask(x, rough, times, SAMPLE_RATE)
    return found


def ask(sentence: str, sound: Array, last_s: float) -> Array:
    """Raise a statement's end as in a question; `last_s` is the end of its last phoneme."""
    semitones = (
        RISE_AFTER_A_QUESTION_WORD if sentence.split(maxsplit=1)[0] in QUESTION_WORDS else RISE
    )
    whole = pitch(sound)
    if not whole.any():
        return sound
    goal = float(np.median(whole[whole > 0])) * 2 ** (semitones / 12)
    first = max(0, round((last_s - RISE_S - 0.5) * SAMPLE_RATE))
    tail = np.ascontiguousarray(sound[first:], dtype=np.float64)
    f0 = pitch(tail, _PERIOD_MS)
    times = np.arange(len(f0)) * _PERIOD_MS / 1000
    envelope = pyworld.cheaptrick(tail, f0, times, SAMPLE_RATE)
    noise = pyworld.d4c(tail, f0, times, SAMPLE_RATE)
    begun = times + first / SAMPLE_RATE - (last_s - RISE_S)
    progress = np.clip(begun / (RISE_S - TOP_S), 0, 1)
    raised = pyworld.synthesize(
        f0 ** (1 - progress) * np.where(f0 > 0, goal, 0) ** progress,
        envelope,
        noise,
        SAMPLE_RATE,
        _PERIOD_MS,
    )[: len(tail)]
    raised = np.pad(raised, (0, len(tail) - len(raised)))
    # The fade is in the half second before the rise.
    powers = np.convolve(tail[: SAMPLE_RATE // 2] ** 2, np.ones(_FADE), "valid")
    at = int(powers.argmin()) if len(powers) else 0
    share = np.clip((np.arange(len(tail)) - at) / _FADE, 0, 1)
    mixed = (1 - share) * tail + share * raised
    asked: Array = np.concatenate([sound[:first], mixed]).astype(np.float32)
    return asked
