"""Speech at another speed: its length and pitch, and the same bytes for pieces of any size."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from vox_serve.audio.formats import FORMATS
from vox_serve.audio.stretch import check_speed, tempos
from vox_serve.errors import InvalidRequest

RATE = 24_000
TASKS = Path("/proc/self/task")
PCM = FORMATS["pcm"]
SPEEDS = [0.25, 0.3, 0.5, 0.75, 0.99, 1.0, 1.25, 1.5, 2.0, 2.5, 4.0]


def tone(seconds: float, rate: int = RATE) -> np.ndarray:
    turns = 220 * np.arange(round(seconds * rate)) / rate
    return (8000 * np.sin(2 * np.pi * turns)).astype("<i2")


def speech(count: int) -> np.ndarray:
    turns = np.arange(count) / RATE
    noise = np.random.default_rng(7).normal(0, 500, count)
    return (8000 * np.sin(440 * np.pi * turns) * np.cos(6 * turns) ** 2 + noise).astype("<i2")


def stretched(samples: np.ndarray, speed: float, pieces: list[int], rate: int = RATE) -> bytes:
    stretch = PCM.encoder(rate, speed)
    out, start, turn = [], 0, 0
    while start < len(samples):
        step = pieces[turn % len(pieces)]
        out.append(stretch.encode(samples[start : start + step].tobytes()))
        start, turn = start + step, turn + 1
    return b"".join([*out, stretch.finish()])


@pytest.mark.parametrize("rate", [8000, RATE, 44_100])
@pytest.mark.parametrize("speed", SPEEDS)
@pytest.mark.parametrize("seconds", [0.01, 0.5, 4.0])
def test_the_length_is_divided_by_the_speed(seconds: float, speed: float, rate: int) -> None:
    samples = tone(seconds, rate)
    assert len(stretched(samples, speed, [1920], rate)) // 2 == round(len(samples) / speed)


@pytest.mark.parametrize("speed", SPEEDS)
def test_pitch_and_loudness_stay(speed: float) -> None:
    out = np.frombuffer(stretched(tone(4), speed, [1920]), "<i2").astype(float)
    middle = out[len(out) // 8 : -len(out) // 8]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle)), 8 * len(middle)))
    assert spectrum.argmax() * RATE / (8 * len(middle)) == pytest.approx(220, rel=0.01)
    assert np.sqrt(np.mean(middle**2)) == pytest.approx(8000 / math.sqrt(2), rel=0.1)


@pytest.mark.parametrize("speed", SPEEDS)
def test_sounds_keep_their_order(speed: float) -> None:
    """What sounds in each third of the input also sounds in that third of the output."""
    samples = np.concatenate([tone(2), np.zeros(2 * RATE, "<i2"), tone(2)])
    out = np.frombuffer(stretched(samples, speed, [1920]), "<i2").astype(float)
    loud = [np.sqrt(np.mean(third**2)) for third in np.array_split(out, 3)]
    assert loud[0] > 5000
    assert loud[1] < 1500
    assert loud[2] > 5000


@pytest.mark.parametrize("seconds", [0.1, 1.0])
@pytest.mark.parametrize("speed", SPEEDS)
def test_the_end_is_heard(speed: float, seconds: float) -> None:
    """The last tenth of a second sounds, even if there is nothing before it."""
    silence = np.zeros(round((seconds - 0.1) * RATE), "<i2")
    samples = np.concatenate([silence, tone(0.1)])
    out = np.frombuffer(stretched(samples, speed, [1920]), "<i2").astype(float)
    end = out[-round(0.1 * RATE / speed) :]
    assert np.sqrt(np.mean(end**2)) > 4000


@pytest.mark.parametrize("speed", SPEEDS)
@pytest.mark.parametrize("pieces", [[1], [137], [240], [1920, 0, 3], [9999]], ids=str)
def test_streamed_equals_whole(speed: float, pieces: list[int]) -> None:
    samples = speech(RATE // 2 + 77)
    assert stretched(samples, speed, pieces) == stretched(samples, speed, [len(samples)])


@pytest.mark.parametrize(
    ("speed", "milliseconds"), [(0.25, 140), (0.5, 100), (0.9, 100), (1.5, 100), (2, 100), (4, 200)]
)
def test_the_first_sound_is_not_held_back(speed: float, milliseconds: int) -> None:
    stretch, samples = PCM.encoder(RATE, speed), speech(RATE)
    fed = 0
    while not stretch.encode(samples[fed : fed + 240].tobytes()):
        fed += 240
    stretch.close()
    assert (fed + 240) / 24 <= milliseconds


def test_speed_1_changes_nothing() -> None:
    samples = speech(1000)
    stretch = PCM.encoder(RATE, 1.0)
    assert stretch.encode(samples[:999].tobytes()) == samples[:999].tobytes()
    assert stretch.encode(samples[999:].tobytes()) == samples[999:].tobytes()
    assert stretch.finish() == b""


@pytest.mark.parametrize("speed", [0.0, -1.0, 0.2499, 4.0001, math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("use", [check_speed, lambda speed: PCM.encoder(RATE, speed)])
def test_a_speed_out_of_range_is_refused(use, speed: float) -> None:
    with pytest.raises(InvalidRequest, match=r"speed must be from 0\.25 to 4") as caught:
        use(speed)
    assert caught.value.param == "speed"


@pytest.mark.parametrize("speed", np.linspace(0.25, 4, 76).tolist())
def test_each_factor_is_in_the_range_that_atempo_does_well(speed: float) -> None:
    factors = tempos(speed)
    assert math.prod(factors) == pytest.approx(speed)
    assert all(0.5 <= factor <= 2 for factor in factors)


@pytest.mark.parametrize("speed", [0.25, 1.0, 1.5, 4.0])
@pytest.mark.parametrize("count", [0, 1, 100])
def test_a_few_samples_have_the_right_length(speed: float, count: int) -> None:
    out = stretched(tone(1)[:count], speed, [60])
    assert len(out) == 2 * round(count / speed)


@pytest.mark.parametrize("speed", [1.0, 1.5])
def test_a_closed_encoder_refuses_more(speed: float) -> None:
    finished, cut = PCM.encoder(RATE, speed), PCM.encoder(RATE, speed)
    for stretch in (finished, cut):
        stretch.encode(speech(5000).tobytes())
    finished.finish()
    cut.close()
    for stretch in (finished, cut):
        stretch.close()
        with pytest.raises(ValueError, match="closed"):
            stretch.encode(b"\0\0")
        with pytest.raises(ValueError, match="closed"):
            stretch.finish()


@pytest.mark.skipif(not TASKS.exists(), reason="counts threads in /proc")
def test_a_change_of_speed_starts_no_threads() -> None:
    before = len(list(TASKS.iterdir()))
    stretch = PCM.encoder(RATE, 0.25)
    stretch.encode(speech(RATE).tobytes())
    assert len(list(TASKS.iterdir())) == before


@pytest.mark.parametrize("speed", [1.0, 1.5])
def test_half_a_sample_is_refused(speed: float) -> None:
    with pytest.raises(ValueError, match="3 bytes"):
        PCM.encoder(RATE, speed).encode(b"abc")
