"""flite as the teacher: a sentence to sound at 24 kHz and the times of its phonemes."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import attrs
import numpy as np
import soundfile
import soxr

from plugins.demo_voice.training.config import SAMPLE_RATE, TEACHERS, Array
from plugins.demo_voice.training.words import words

PHONES = words(
    "pau aa ae ah ao aw ax axr ay b ch d dh dx eh el em en er ey f g hh hv ih iy jh k l m n ng nx "
    "ow oy p r s sh t th uh uw v w y z zh"
)
GAINS = (1.0, 1.6)
"""By speaker: flite's rms is the quieter one, peaks near 0.45 against 0.7 of full scale."""
LEAD_S, TAIL_S = 0.06, 0.16
"""Silence left before the first and after the last phoneme; flite's own varies."""


@attrs.frozen(eq=False)
class Rendering:
    """`pcm`, int16 at 24 kHz, and each phoneme with its end in seconds."""

    pcm: Array
    phones: list[tuple[str, float]]


def render(text: str, speaker: int) -> Rendering:
    """Let the teacher of this speaker read a normalised text.

    Raises:
        RuntimeError: flite is not installed, or failed.
    """
    flite = shutil.which("flite")
    if flite is None:
        raise RuntimeError("flite is missing; on Debian: apt-get install flite")
    with tempfile.TemporaryDirectory() as folder:
        wave = Path(folder) / "teacher.wav"
        command = [flite, "-voice", TEACHERS[speaker], "-psdur", "-t", f"{text} ", "-o", str(wave)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        if done.returncode or not wave.is_file():
            raise RuntimeError(f"flite could not read {text!r}: {done.stderr.strip()}")
        sound, rate = soundfile.read(wave, dtype="float32")
    phones = [(name, float(end)) for name, end in (x.split(":") for x in done.stdout.split())]
    return _trim(GAINS[speaker] * soxr.resample(sound, rate, SAMPLE_RATE), phones)


def _trim(sound: Array, phones: list[tuple[str, float]]) -> Rendering:
    spoken = [i for i, (name, _) in enumerate(phones) if name != "pau"]
    first = phones[spoken[0] - 1][1] if spoken and spoken[0] else 0.0
    last = phones[spoken[-1]][1] if spoken else len(sound) / SAMPLE_RATE
    start = max(0.0, first - LEAD_S)
    stop = min(len(sound) / SAMPLE_RATE, last + TAIL_S)
    cut = sound[round(start * SAMPLE_RATE) : round(stop * SAMPLE_RATE)]
    # Short ramps, so that the cut itself makes no click.
    ramp = np.linspace(0, 1, 120, dtype=np.float32)
    cut[: len(ramp)] *= ramp
    cut[-len(ramp) :] *= ramp[::-1]
    pcm = (np.clip(cut, -1, 1) * 32767).round().astype(np.int16)
    return Rendering(pcm, [(n, round(min(e, stop) - start, 3)) for n, e in phones if e > start])
