"""The shipped voice is understood, ends by itself, and speaks like transformers.

`teacher.npz` (written by `training/reference.py`) contains the teacher's reading of ten unseen
sentences, so that a broken decoder, prompt or tokenizer is detected.  `make voice-eval` is the
long version.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import CsmForConditionalGeneration

from plugins.csm.tests.checkpoints import Frames, reference_frames
from plugins.csm.tests.conftest import record
from plugins.demo_voice.training.measure import cepstra, listen, warped_distance, warped_distances
from tests.conftest import run_engine
from vox_serve import UnspeakableText
from vox_serve.config import EngineConfig
from vox_serve.engine.engine import Engine
from vox_serve.engine.load import load_engine
from vox_serve.messages import Finished, FinishReason, SpeechRequest
from vox_serve.nn import linear
from vox_serve.nn.linear import fast_bfloat16, holds_halves
from vox_serve.plugins import Plugins, load_plugins
from vox_serve_demo_voice.plugin import CHECKPOINT
from vox_serve_demo_voice.text import normalise

TEACHER = np.load(Path(__file__).parent / "teacher.npz")
SENTENCES: list[str] = TEACHER["texts"].tolist()
MOST_FRAMES = 200
SAMPLE_RATE = 24000
COARSE = 2
SECONDS_PER_CEPSTRUM = COARSE * 0.01


@attrs.frozen
class Utterance:
    frames: Frames
    sound: np.ndarray
    ended: bool


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    """Names the plugins if their distributions, and so their entry points, are not installed."""
    found = load_plugins()
    if "demo" in found.checkpoints:
        return found
    return load_plugins(("vox_serve_csm.plugin", "vox_serve_demo_voice.plugin"))


@pytest.fixture(scope="module", params=["auto", "float32"])
def loaded(plugins: Plugins, request: pytest.FixtureRequest) -> Engine:
    config = EngineConfig("demo", device="cpu", dtype=request.param, max_batch_size=4)
    return load_engine(config, plugins)[0]


@pytest.fixture
def engine(loaded: Engine) -> Engine:
    return Engine(loaded.model, loaded.config, loaded.checkpoint)


@pytest.fixture(scope="module")
def reference() -> Any:
    return CsmForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()


def speak(engine: Engine, text: str, speaker: int, **fields: Any) -> Utterance:
    """Speak with all defaults: a request has only a text and a speaker."""
    frames = record(engine)
    engine.add(SpeechRequest("demo", normalise(text), speaker, **fields))
    spoken = run_engine(engine)["demo"]
    assert isinstance(spoken.end, Finished)
    sound = np.frombuffer(spoken.pcm, "<i2").astype(np.float32) / 32767
    return Utterance(list(frames["demo"]), sound, spoken.end.reason is FinishReason.STOP)


@pytest.fixture(scope="module")
def spoken(loaded: Engine) -> list[Utterance]:
    """Sentence i by speaker i % 2, as in the teacher's readings."""
    return [speak(loaded, text, i % 2) for i, text in enumerate(SENTENCES)]


def teacher(number: int) -> np.ndarray:
    return TEACHER[str(number)].astype(np.float64)


def test_every_sentence_ends_by_itself(spoken: list[Utterance]) -> None:
    assert len(spoken) == 10
    assert [u.ended for u in spoken] == [True] * 10


def test_durations_are_close_to_the_teachers(spoken: list[Utterance]) -> None:
    seconds = [len(teacher(i)) * SECONDS_PER_CEPSTRUM for i in range(10)]
    ratios = [len(u.sound) / SAMPLE_RATE / s for u, s in zip(spoken, seconds, strict=True)]
    assert 0.9 < np.mean(ratios) < 1.1
    assert all(0.7 < ratio < 1.4 for ratio in ratios), ratios


def test_each_sentence_is_closest_to_the_teachers_reading_of_it(spoken: list[Utterance]) -> None:
    made = [cepstra(u.sound)[::COARSE] for u in spoken]
    teachers = [teacher(i) for i in range(10)]
    nearest = [int(warped_distances(m, teachers).argmin()) for m in made]
    assert nearest == list(range(10))
    assert np.mean([warped_distance(m, t) for m, t in zip(made, teachers, strict=True)]) < 25


def test_the_sound_is_clean(spoken: list[Utterance]) -> None:
    """It has no clipping, no cut ends, and no hum or tone in pauses."""
    heard = [listen(u.sound) for u in spoken]
    assert all(0.1 < h.peak < 0.999 for h in heard)
    assert np.mean([h.tail_db for h in heard]) < -45
    assert np.mean([h.floor_db for h in heard]) < -45


def pitch(sound: np.ndarray) -> float:
    """The median fundamental of the loud windows in Hz, by autocorrelation from 60 to 400 Hz."""
    windows = sound[: len(sound) // 1200 * 1200].reshape(-1, 1200)
    found = []
    for window in windows[(windows**2).mean(1) > 0.2 * (windows**2).mean()]:
        spectrum = np.abs(np.fft.rfft(window - window.mean(), 4096)) ** 2
        lags = np.fft.irfft(spectrum)[60:400]
        found.append(SAMPLE_RATE / (60 + int(lags.argmax())))
    return float(np.median(found))


def test_the_speakers_stay_distinct(engine: Engine, spoken: list[Utterance]) -> None:
    """slt is a woman, and rms a man, even in a dialogue after turns of the other."""
    pitches = [pitch(u.sound) for u in spoken]
    assert min(pitches[::2]) > 140 > max(pitches[1::2]), pitches
    for turn, text in enumerate(SENTENCES[:4]):
        said = speak(engine, text, turn % 2, conversation="dialogue")
        assert said.ended
        assert (pitch(said.sound) > 140) == (turn % 2 == 0)


def test_a_dialogue_is_understood(engine: Engine) -> None:
    teachers = [teacher(i) for i in range(10)]
    for turn, text in enumerate(SENTENCES[:4]):
        said = speak(engine, text, turn % 2, conversation="dialogue")
        assert said.ended
        assert int(warped_distances(cepstra(said.sound)[::COARSE], teachers).argmin()) == turn


def expected(reference: Any, number: int) -> Frames:
    """What transformers speaks in float32."""
    tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    text = f"<|begin_of_text|>[{number % 2}]{SENTENCES[number]}<|end_of_text|>"
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    return reference_frames(reference, ids, MOST_FRAMES)


@pytest.mark.parametrize("number", range(4))
def test_it_speaks_like_the_reference(
    reference: Any, loaded: Engine, spoken: list[Utterance], number: int
) -> None:
    """By default, some CPUs multiply prompts in bfloat16; after a near tie, all frames differ."""
    exact = loaded.config.dtype == "float32" or not fast_bfloat16()
    compared = slice(None if exact else 5)
    assert spoken[number].frames[compared] == expected(reference, number)[compared]


@pytest.mark.skipif(not holds_halves(), reason="this CPU's torch has no FBGEMM")
def test_bfloat16_products_are_all_that_differs_by_default(
    plugins: Plugins, reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "fast_bfloat16", lambda: False)
    config = EngineConfig("demo", device="cpu", max_batch_size=1)
    engine = load_engine(config, plugins)[0]
    for number in (0, 2, 4):
        said = speak(engine, SENTENCES[number], number % 2)
        assert said.frames == expected(reference, number)


def test_any_spelling_of_a_text_sounds_the_same(engine: Engine) -> None:
    written = speak(engine, "  Mr. O\u2019Neil paid $20 \u2014 “really”? ", 0)
    spelled = speak(engine, "mister o'neil paid twenty dollars, really?", 0)
    assert written.frames == spelled.frames


@pytest.mark.parametrize("name", ["demo", str(CHECKPOINT), f"{CHECKPOINT.parent}/./checkpoint"])
def test_the_limits_apply_by_alias_and_by_directory(
    plugins: Plugins, engine: Engine, name: str
) -> None:
    resolved = plugins.resolve(name)
    assert resolved.spec.name == "csm"
    assert resolved.directory() == Path(resolved.source)
    assert resolved.directory().samefile(CHECKPOINT)
    limited = Engine(engine.model, engine.config, resolved.checkpoint)
    refused = {"a " * 25 + "a": "26 words; .* at most 25", "a" * 160: "161 characters.* 160"}
    for text, says in refused.items():
        with pytest.raises(UnspeakableText, match=says) as caught:
            limited.add(SpeechRequest("long", normalise(text)))
        assert caught.value.param == "text"
    assert not limited.has_work
    limited.add(SpeechRequest("words", normalise("a " * 24 + "a")))
    limited.add(SpeechRequest("characters", normalise("a" * 159)))


@pytest.mark.parametrize("text", ["你好", "привет", "hello שלום"])
def test_other_scripts_are_refused(text: str) -> None:
    with pytest.raises(UnspeakableText, match="which this voice cannot speak"):
        normalise(text)
