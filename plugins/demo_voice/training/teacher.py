"""The teachers: turn normalised text into sound at 24 kHz with the times of its phonemes.

`hts` is festival's HTS voice slt, `rms` and `slt` are flite's; all use the same phoneme names.
Each sentence of a text is read separately and trimmed to the same silence before and after, so that
the pause between sentences is always `LEAD_S + TAIL_S`.  They have no question intonation, so if a
sentence ends with `?`, a vocoder raises its last half second (`ask.py`).
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import attrs
import numpy as np
import soundfile
import soxr

from plugins.demo_voice.training.ask import ask
from plugins.demo_voice.training.config import SAMPLE_RATE, Array

GAINS = {"hts": 1.7, "rms": 1.6, "slt": 1.0}
"""Gains, so that all peak near 0.7 of full scale."""
LEAD_S, TAIL_S = 0.06, 0.26
"""Silence before a sentence's first and after its last phoneme; the teachers' varies."""
_BORDER = re.compile(r"(?<=[.!?]) ")
_FESTIVAL = """(voice_cmu_us_slt_arctic_hts)
(define (say text wave labels)
  (let ((utterance (eval (list 'Utterance 'Text text))))
    (utt.synth utterance)
    (utt.save.wave utterance wave 'riff)
    (utt.save.segs utterance labels)))
"""


@attrs.frozen(eq=False)
class Rendering:
    """`pcm`, int16 at 24 kHz, and each phoneme with its end in seconds."""

    pcm: Array
    phones: list[tuple[str, float]]


def render(text: str, teacher: str) -> Rendering:
    """Let a teacher read a normalised text.

    Raises:
        RuntimeError: the teacher is not installed, or failed.
    """
    return render_all([text], teacher)[0]


def render_all(texts: Sequence[str], teacher: str) -> list[Rendering]:
    """Read several texts at once, which is faster with festival, because it starts only once.

    Raises:
        RuntimeError: as `render`.
    """
    split = [_BORDER.split(text) for text in texts]
    pieces = [piece for parts in split for piece in parts]
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        read = _festival(pieces, where) if teacher == "hts" else _flite(pieces, where, teacher)
    made = iter(
        _finish(piece, GAINS[teacher] * sound, phones)
        for piece, (sound, phones) in zip(pieces, read, strict=True)
    )
    return [_join([next(made) for _ in parts]) for parts in split]


_Read = list[tuple[Array, list[tuple[str, float]]]]


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise RuntimeError(f"{name} is missing; on Debian: apt-get install {name}")
    return found


def _festival(pieces: Sequence[str], folder: Path) -> _Read:
    files = [(folder / f"{i}.wav", folder / f"{i}.labels") for i in range(len(pieces))]
    calls = [
        f'(say "{piece}" "{wave}" "{labels}")'
        for piece, (wave, labels) in zip(pieces, files, strict=True)
    ]
    script = folder / "say.scm"
    script.write_text(_FESTIVAL + "\n".join(calls) + "\n", encoding="utf-8")
    command = [_program("festival"), "-b", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    read: _Read = []
    for piece, (wave, labels) in zip(pieces, files, strict=True):
        if done.returncode or not labels.is_file():
            raise RuntimeError(
                f"festival (which needs festvox-us-slt-hts) could not read {piece!r}: "
                f"{done.stderr.strip()}"
            )
        lines = labels.read_text(encoding="utf-8").split("#\n", 1)[1].splitlines()
        phones = [(name, float(end)) for end, _, name in (line.split() for line in lines)]
        read.append((_sound(wave), phones))
    return read


def _flite(pieces: Sequence[str], folder: Path, voice: str) -> _Read:
    wave, read = folder / "teacher.wav", []
    for piece in pieces:
        command = [_program("flite"), "-voice", voice, "-psdur", "-t", f"{piece} ", "-o", str(wave)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        if done.returncode or not wave.is_file():
            raise RuntimeError(f"flite could not read {piece!r}: {done.stderr.strip()}")
        marks = [mark.split(":") for mark in done.stdout.split()]
        read.append((_sound(wave), [(name, float(end)) for name, end in marks]))
        wave.unlink()
    return read


def _sound(wave: Path) -> Array:
    sound, rate = soundfile.read(wave, dtype="float32")
    resampled: Array = soxr.resample(sound, rate, SAMPLE_RATE)
    return resampled


def _finish(piece: str, sound: Array, phones: list[tuple[str, float]]) -> Rendering:
    spoken = [i for i, (name, _) in enumerate(phones) if name != "pau"]
    first = phones[spoken[0] - 1][1] if spoken and spoken[0] else 0.0
    last = phones[spoken[-1]][1] if spoken else len(sound) / SAMPLE_RATE
    if piece.endswith("?"):
        sound = ask(piece, sound, last)
    start = round((first - LEAD_S) * SAMPLE_RATE)
    stop = round((last + TAIL_S) * SAMPLE_RATE)
    cut = np.pad(sound, (max(0, -start), max(0, stop - len(sound))))
    cut = cut[max(0, start) : stop + max(0, -start)]
    # Short ramps, so that the cut makes no click.
    ramp = np.linspace(0, 1, 120, dtype=np.float32)
    cut[: len(ramp)] *= ramp
    cut[-len(ramp) :] *= ramp[::-1]
    pcm = (np.clip(cut, -1, 1) * 32767).round().astype(np.int16)
    end, begin = len(pcm) / SAMPLE_RATE, start / SAMPLE_RATE
    kept = [(n, round(min(e - begin, end), 3)) for n, e in phones if e - begin > 0]
    if kept[-1][0] == "pau":
        kept[-1] = ("pau", round(end, 3))
    return Rendering(pcm, kept)


def _join(parts: Sequence[Rendering]) -> Rendering:
    phones: list[tuple[str, float]] = []
    at = 0.0
    for part in parts:
        phones += [(name, round(at + end, 3)) for name, end in part.phones]
        at += len(part.pcm) / SAMPLE_RATE
    return Rendering(np.concatenate([part.pcm for part in parts]), phones)
