"""Reads audio files into samples, within limits checked while reading.  Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from vox_serve.errors import VoxServeError

BLOCK_SECONDS = 1.0
MAX_SAMPLE_RATE = 192_000
MAX_CHANNELS = 32
"""Without these bounds, seconds would not bound memory."""


class AudioUnreadable(VoxServeError):
    """The audio cannot be used; the message says why."""


def read_audio(
    file: Path | IO[bytes], sample_rate: int, max_seconds: float
) -> npt.NDArray[np.float32]:
    """Read a clip as float32 mono `[T]` at `sample_rate`.

    Reads a second at a time and stops as soon as the clip is too long, whatever its header
    says.  Channels are averaged.

    Raises:
        AudioUnreadable: libsndfile cannot read it, or it is empty, not finite or too long.
    """
    try:
        with soundfile.SoundFile(file) as clip:
            if clip.samplerate > MAX_SAMPLE_RATE:
                raise AudioUnreadable(f"audio has more than {MAX_SAMPLE_RATE} samples per second")
            if clip.channels > MAX_CHANNELS:
                raise AudioUnreadable(f"audio has more than {MAX_CHANNELS} channels")
            blocks: list[npt.NDArray[np.float32]] = []
            limit = int(max_seconds * clip.samplerate)
            count = 0
            step = max(1, int(BLOCK_SECONDS * clip.samplerate))
            while len(block := clip.read(step, dtype="float32", always_2d=True)):
                count += len(block)
                if count > limit:
                    raise AudioUnreadable(f"audio is longer than {max_seconds:g} seconds")
                with np.errstate(over="ignore"):  # reported below
                    blocks.append(block.mean(axis=1, dtype=np.float32))
            rate = clip.samplerate
    except soundfile.LibsndfileError as error:
        raise AudioUnreadable(f"audio cannot be read: {error.error_string}") from error
    except (OSError, TypeError) as error:
        raise AudioUnreadable(f"audio cannot be read: {error}") from error
    samples = np.concatenate(blocks) if blocks else np.empty(0, np.float32)
    if rate != sample_rate:
        samples = soxr.resample(samples, rate, sample_rate)
    if not np.isfinite(samples).all():  # after all sums, which may overflow
        raise AudioUnreadable("audio holds samples that are not finite")
    if not len(samples):
        raise AudioUnreadable("audio is empty")
    return np.ascontiguousarray(samples, dtype=np.float32)
