"""Measures the distance between recordings of a sentence, and the noise between its words.

The distance is that of Kubichek (1993) on mel cepstra, after dynamic time warping: 24 kHz
sound, Hann windows of 1024 samples (43 ms) every 240 (10 ms), `BANDS` mel band magnitudes
floored at -80 dB, natural log, orthonormal DCT-II, coefficients 1 to `COEFFICIENTS` (loudness,
number 0, is left out); of two frames 10 / ln 10 * sqrt(2 * sum of squared differences), in dB;
of two recordings the mean over the warping path.  An orthonormal DCT makes these figures
larger than those of papers that divide it by its length: compare only with ones made here.
(The first version's 12.8 dB for its codec and 41.8 dB between different sentences come out as
13.3 and 41.6 by this definition, so its figures can be compared with these.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs
import numpy as np
import torch

from plugins.demo_voice.training.config import SAMPLE_RATE, Array
from plugins.demo_voice.training.spectra import log_mel, magnitudes

WINDOW, HOP, BANDS, COEFFICIENTS = 1024, 240, 80, 13
_DECIBELS = 10 / math.log(10) * math.sqrt(2)


def cepstra(sound: Array) -> Array:
    """Mel cepstra `[frames, 13]` of float sound."""
    mel = log_mel(torch.from_numpy(sound.astype(np.float32))[None], WINDOW, HOP, BANDS)[0]
    order = np.arange(1, COEFFICIENTS + 1)[:, None]
    basis = np.cos(np.pi / BANDS * order * (np.arange(BANDS) + 0.5)) * math.sqrt(2 / BANDS)
    found: Array = (basis @ mel.double().numpy()).T
    return found


def warped_distance(a: Array, b: Array) -> float:
    """Mean distance in dB of `[T, 13]` and `[U, 13]` over the cheapest warping path."""
    return float(warped_distances(a, [b])[0])


def warped_distances(a: Array, others: Sequence[Array]) -> Array:
    """Distances of one recording to N others at once.

    Steps are one ahead in either or both (Sakoe and Chiba 1978, symmetric, unweighted); among
    equals the one ahead in both wins.
    """
    columns = np.array([len(b) for b in others])
    padded = np.zeros((len(others), columns.max(), a.shape[1]))
    for row, b in zip(padded, others, strict=True):
        row[: len(b)] = b
    products = np.einsum("td,nud->ntu", a, padded, optimize=True)
    squares = (a**2).sum(1)[None, :, None] + (padded**2).sum(2)[:, None] - 2 * products
    cost = _DECIBELS * np.sqrt(squares.clip(min=0))
    rows, most = cost.shape[1:]
    # No cell of an antidiagonal needs another of it.  Column i + 1 is row i; column 0 is outside.
    totals = [np.full((len(others), rows + 1), np.inf) for _ in range(2)]
    steps = [np.zeros((len(others), rows + 1)) for _ in range(2)]
    totals[0][:, 0] = 0.0
    found = np.empty(len(others))
    for diagonal in range(rows + most - 1):
        i = np.arange(max(0, diagonal - most + 1), min(rows, diagonal + 1))
        choices = np.stack([totals[0][:, i], totals[1][:, i + 1], totals[1][:, i]])
        taken = np.stack([steps[0][:, i], steps[1][:, i + 1], steps[1][:, i]])
        best = choices.argmin(0)[None]
        here, count = np.full_like(totals[0], np.inf), np.zeros_like(steps[0])
        here[:, i + 1] = np.take_along_axis(choices, best, 0)[0] + cost[:, i, diagonal - i]
        count[:, i + 1] = np.take_along_axis(taken, best, 0)[0] + 1
        totals, steps = [totals[1], here], [steps[1], count]
        ended = columns == diagonal - rows + 2
        found[ended] = here[ended, rows] / count[ended, rows]
    return found


@attrs.frozen
class Sound:
    """Levels of audible defects, in dB relative to full scale, and the peak."""

    peak: float
    floor_db: float
    """Level of the quietest tenth of 20 ms windows: the noise in pauses."""
    tone_db: float
    """In the same windows, the highest bin of the mean spectrum over its median: hums."""
    tail_db: float
    """Level of the last 20 ms: high if speech was cut off."""


def listen(sound: Array) -> Sound:
    window = SAMPLE_RATE // 50
    if len(sound) < 2 * window:
        return Sound(float(np.abs(sound).max(initial=0)), -120.0, 0.0, -120.0)
    pieces = sound[: len(sound) // window * window].reshape(-1, window)
    powers = (pieces**2).mean(1)
    quiet = np.argsort(powers)[: max(1, len(powers) // 10)]
    spectrum = magnitudes(torch.from_numpy(pieces[quiet].astype(np.float32)), window, window)
    mean = spectrum.mean((0, 2))[2:].numpy()
    return Sound(
        peak=float(np.abs(sound).max()),
        floor_db=_db(powers[quiet].mean()),
        tone_db=float(20 * np.log10(mean.max() / np.median(mean))),
        tail_db=_db(float((sound[-window:] ** 2).mean())),
    )


def _db(power: float) -> float:
    return float(10 * np.log10(max(power, 1e-12)))
