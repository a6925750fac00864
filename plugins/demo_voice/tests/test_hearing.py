"""The figures of the evaluation, for sounds whose figures are known."""

from __future__ import annotations

import numpy as np
import pytest

from plugins.demo_voice.training.hearing import (
    ending,
    harmonics_to_noise,
    hiss,
    line,
    longest_pause,
    pause_spectrum,
    wrong,
)

SECOND = np.arange(24000) / 24000


def noise(seed: int, seconds: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=24000 * seconds)


@pytest.mark.parametrize(
    ("heard", "expected"),
    [
        ("the cat sat", 0),
        ("the cat", 1),
        ("the hat sat", 1),
        ("a hat sat down", 3),
        ("", 3),
        ("one two three four five six seven", 3),
    ],
)
def test_replaced_dropped_and_added_words_are_errors(heard: str, expected: int) -> None:
    assert wrong(["the", "cat", "sat"], heard.split()) == expected


def test_a_rising_sentence_ends_above_its_middle() -> None:
    level = np.full(100, 200.0)
    risen = np.concatenate([level[:90], np.full(10, 400.0)])
    assert ending(level) == 0
    assert ending(np.concatenate([risen, np.zeros(30)])) == pytest.approx(12)
    assert np.isnan(ending(np.zeros(50)))


def test_a_repeating_hiss_is_distinguished_from_noise() -> None:
    high = np.diff(noise(1), n=3)[:23990] * 0.1
    buzz = np.resize(np.diff(noise(2), n=3)[:120], 23990) * 0.1
    assert len(hiss(high)) > 20
    assert np.mean(hiss(high)) < 0.4
    assert np.mean(hiss(buzz)) > 0.8
    assert hiss(0.1 * np.sin(2 * np.pi * 300 * SECOND)) == []  # not a fricative


def test_a_pure_voice_has_more_harmonics_than_a_hoarse_one() -> None:
    voice = sum(np.sin(2 * np.pi * 125 * k * SECOND) / k for k in range(1, 20))
    f0 = np.full(101, 125.0)
    pure, hoarse = (harmonics_to_noise(voice + gain * noise(3), f0) for gain in (0.01, 1.0))
    assert pure > hoarse + 6
    assert np.isnan(harmonics_to_noise(voice, np.zeros(101)))


def test_a_tone_in_pauses_is_found_with_its_frequency() -> None:
    hum = 0.002 * noise(4, 4)
    speech = np.where(np.arange(len(hum)) < 48000, 0.3, 0) * noise(5, 4)
    tone = 0.001 * np.sin(2 * np.pi * 6000 * np.arange(len(hum)) / 24000)
    assert line([pause_spectrum(speech + hum)])[0] < 12
    strength, hertz = line([pause_spectrum(speech + hum + tone)])
    assert strength > 15
    assert hertz == 6000


def test_the_longest_silence_between_sounds_is_a_pause() -> None:
    loud, silent = 0.2 * noise(6), 0.0001 * noise(7)
    said = [silent[:9600], loud[:7200], silent[:2400], loud[:4800], silent[:7680], loud]
    assert longest_pause(np.concatenate([*said, silent])) == pytest.approx(320, abs=10)
    assert longest_pause(loud) == 0
