"""Which audio counts as audible."""

from __future__ import annotations

import numpy as np
import pytest

from vox_serve.audio.loudness import Ear, audible_seconds

RATE = 8000


def tone(seconds: float, peak: float) -> bytes:
    turns = 200 * np.arange(round(seconds * RATE)) / RATE
    return (32_767 * peak * np.sin(2 * np.pi * turns)).astype("<i2").tobytes()


@pytest.mark.parametrize(("peak", "heard"), [(0.0, False), (0.01, False), (0.1, True), (0.5, True)])
def test_a_vowel_is_heard_and_noise_is_not(peak: float, heard: bool) -> None:
    ear = Ear(RATE)
    ear.listen(bytes(1000) + tone(0.2, peak))
    assert ear.heard is heard


def test_a_sound_in_small_pieces_is_heard() -> None:
    pcm = bytes(1602) + tone(0.09, 0.2) + bytes(1600)
    ear = Ear(RATE)
    for start in range(0, len(pcm), 10):
        ear.listen(pcm[start : start + 10])
    assert ear.heard


def test_a_click_is_not_heard() -> None:
    ear = Ear(RATE)
    ear.listen(bytes(800) + tone(0.002, 0.06) + bytes(8000))
    assert not ear.heard


def test_seconds_are_counted() -> None:
    assert audible_seconds(bytes(1600) + tone(0.4, 0.5) + bytes(1600), RATE) == pytest.approx(
        0.4, abs=0.04
    )
    assert audible_seconds(b"", RATE) == 0
