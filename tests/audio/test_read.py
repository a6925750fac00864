"""Clips are read as mono, resampled and finite samples, with a limit on their duration."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from vox_serve.audio import AudioUnreadable, read_audio

RATE = 8000


def clip(samples: Any, rate: int = RATE, format: str = "WAV", **settings: Any) -> io.BytesIO:
    file = io.BytesIO()
    soundfile.write(file, np.asarray(samples), rate, format=format, **settings)
    file.seek(0)
    return file


def test_samples_are_float32_mono() -> None:
    samples = np.array([0.0, 0.5, -0.5, 0.25], dtype=np.float32)
    read = read_audio(clip(samples, subtype="FLOAT"), RATE, 1.0)
    assert read.dtype == np.float32
    assert read.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(read, samples)


def test_a_path_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "clip.wav"
    path.write_bytes(clip(np.zeros(10)).getvalue())
    assert len(read_audio(path, RATE, 1.0)) == 10


def test_channels_are_averaged() -> None:
    stereo = np.stack([np.full(100, 0.5), np.full(100, -0.25)], axis=1)
    np.testing.assert_allclose(read_audio(clip(stereo, subtype="FLOAT"), RATE, 1.0), 0.125)


@pytest.mark.parametrize("rate", [4000, 16_000, 22_050, 44_100, 48_000])
def test_resampling_keeps_length_and_pitch(rate: int) -> None:
    turns = 440 * np.arange(rate) / rate
    read = read_audio(clip(0.5 * np.sin(2 * np.pi * turns), rate), RATE, 1.0)
    assert len(read) == RATE
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)
    middle = slice(500, -500)  # the filter distorts both ends
    np.testing.assert_allclose(read[middle], expected[middle], atol=0.01)


def test_the_limit_is_inclusive() -> None:
    assert len(read_audio(clip(np.zeros(2 * RATE)), RATE, 2.0)) == 2 * RATE
    with pytest.raises(AudioUnreadable, match="longer than 2 seconds"):
        read_audio(clip(np.zeros(2 * RATE + 1)), RATE, 2.0)


@pytest.mark.parametrize("format", ["WAV", "FLAC", "OGG", "MP3"])
def test_too_long_is_noticed_while_it_is_read(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than a second beyond the limit is decoded, however long the clip is."""
    decoded = 0
    read = soundfile.SoundFile.read

    def counted(self, *args, **settings):
        nonlocal decoded
        block = read(self, *args, **settings)
        decoded += len(block)
        return block

    monkeypatch.setattr(soundfile.SoundFile, "read", counted)
    with pytest.raises(AudioUnreadable, match="longer"):
        read_audio(clip(np.zeros(60 * RATE), format=format), RATE, 2.0)
    assert decoded <= 3 * RATE


@pytest.mark.parametrize("claimed", [0xFFFFFFFF, 0x7FFFFFF0, 4])
def test_a_header_with_a_wrong_length_is_harmless(claimed: int) -> None:
    """The clip ends with the file, or earlier if the header says so."""
    content = bytearray(clip(np.full(100, 0.25)).getvalue())
    assert content[36:40] == b"data"
    content[40:44] = struct.pack("<I", claimed)
    read = read_audio(io.BytesIO(bytes(content)), RATE, 1.0)
    assert len(read) == min(100, claimed // 2)


def test_a_false_sample_rate_does_not_escape_the_limit() -> None:
    """At a claimed 1 Hz, a kilobyte would become hours when resampled."""
    with pytest.raises(AudioUnreadable, match="longer"):
        read_audio(clip(np.zeros(500), rate=1), RATE, 10.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_samples_must_be_finite(bad: float) -> None:
    samples = np.zeros(100, dtype=np.float32)
    samples[50] = bad
    with pytest.raises(AudioUnreadable, match="finite"):
        read_audio(clip(samples, subtype="FLOAT"), RATE, 1.0)


@pytest.mark.parametrize(
    "file",
    [clip(np.zeros(0)), clip(np.zeros(1), rate=192_000)],
    ids=["no sample", "none once resampled"],
)
def test_a_clip_without_samples_is_refused(file: io.BytesIO) -> None:
    with pytest.raises(AudioUnreadable, match="empty"):
        read_audio(file, RATE, 1.0)


@pytest.mark.parametrize(
    "content",
    [b"", b"text", b"RIFF", b"RIFF\xff\xff\xff\xffWAVE", b"fLaC" + bytes(100), b"OggS" + bytes(99)],
)
def test_a_file_that_is_not_audio_is_refused(content: bytes) -> None:
    with pytest.raises(AudioUnreadable, match="cannot be read") as caught:
        read_audio(io.BytesIO(content), RATE, 1.0)
    assert "BytesIO" not in str(caught.value)


def test_channels_are_bounded() -> None:
    assert len(read_audio(clip(np.zeros((10, 32))), RATE, 1.0)) == 10
    with pytest.raises(AudioUnreadable, match="more than 32 channels"):
        read_audio(clip(np.zeros((10, 33))), RATE, 1.0)


@pytest.mark.parametrize("rate", [RATE, 2 * RATE])
def test_samples_that_overflow_in_sums_are_refused(rate: int) -> None:
    """Each of them is finite, but their mean or the resampled result is not."""
    samples = np.full((100, 2), 3e38, np.float32) * np.where(np.arange(100) % 7, 1, -1)[:, None]
    for channels in (1, 2) if rate != RATE else (2,):
        with pytest.raises(AudioUnreadable, match="not finite"):
            read_audio(clip(samples[:, :channels], rate, subtype="FLOAT"), RATE, 1.0)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AudioUnreadable, match="cannot be read"):
        read_audio(tmp_path / "none.wav", RATE, 1.0)
