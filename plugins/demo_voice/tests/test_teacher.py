"""Changes to the teachers' readings.  Needs the extra `voice` and Debian's voices."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

pytest.importorskip("pyworld", reason="the extra `voice`")

from plugins.demo_voice.training.ask import ask, pitch
from plugins.demo_voice.training.hearing import ending
from plugins.demo_voice.training.teacher import LEAD_S, TAIL_S, render, render_all

RATE = 24000


def hum(seconds: float = 2.0) -> np.ndarray:
    """A voice at 120 Hz, and then a quarter of a second of silence."""
    t = np.arange(round(seconds * RATE)) / RATE
    voice = sum(np.sin(2 * np.pi * 120 * k * t) / k for k in range(1, 30)) * 0.1
    return np.concatenate([voice, np.zeros(RATE // 4)]).astype(np.float32)


@pytest.mark.parametrize(
    ("sentence", "semitones"), [("you saw it?", 7.0), ("where did you see it?", 3.0)]
)
def test_a_question_rises_at_its_end_only(sentence: str, semitones: float) -> None:
    sound = hum()
    asked = ask(sentence, sound, last_s=2.0)
    assert len(asked) == len(sound)
    np.testing.assert_array_equal(asked[:RATE], sound[:RATE])
    f0 = pitch(asked)
    assert np.median(f0[f0 > 0]) == pytest.approx(120, rel=0.02)
    assert ending(f0) == pytest.approx(semitones, abs=1.0)


def test_silence_as_a_question_stays_silence() -> None:
    sound = np.zeros(RATE, np.float32)
    np.testing.assert_array_equal(ask("you?", sound, last_s=0.8), sound)


@pytest.mark.skipif(
    not (shutil.which("flite") and shutil.which("festival")), reason="flite or festival is missing"
)
@pytest.mark.parametrize("teacher", ["hts", "rms"])
def test_sentences_are_read_with_a_pause_between_them(teacher: str) -> None:
    one, other = render_all(["it rains.", "we stay."], teacher)
    both = render("it rains. we stay.", teacher)
    np.testing.assert_array_equal(both.pcm, np.concatenate([one.pcm, other.pcm]))
    ends = [end for name, end in one.phones if name != "pau"]
    starts = [end for name, end in other.phones if name == "pau"]
    pause = len(one.pcm) / RATE - ends[-1] + starts[0]
    assert pause == pytest.approx(LEAD_S + TAIL_S, abs=0.01)
    assert 0.25 < pause < 0.4
    assert both.phones[-1][1] == pytest.approx(len(both.pcm) / RATE, abs=0.001)
