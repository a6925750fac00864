"""The voice that ships: it says what transformers says, ends by itself, and knows its limits."""

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
from tests.conftest import run_engine
from vox_serve import UnspeakableText
from vox_serve.config import EngineConfig
from vox_serve.engine.engine import Engine
from vox_serve.engine.load import load_engine
from vox_serve.engine.messages import Finished, FinishReason, SpeechRequest
from vox_serve.plugins import Plugins, load_plugins
from vox_serve_demo_voice.plugin import CHECKPOINT

SENTENCES = (
    "Hello there!",
    "How are you today?",
    "The train leaves in ten minutes.",
    "Please open the window.",
    "I like to walk in the park.",
    "What time is it?",
    "She reads a book every week.",
    "It will rain this evening.",
    "Thank you very much.",
    "We are going home now.",
)
MOST_FRAMES = 200
SAMPLE_RATE = 24000


@attrs.frozen
class Utterance:
    frames: Frames
    pcm: bytes
    end: Any


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    """Named where the distributions are not installed and their entry points are not found."""
    found = load_plugins()
    if "demo" in found.checkpoints:
        return found
    return load_plugins(("vox_serve_csm.plugin", "vox_serve_demo_voice.plugin"))


@pytest.fixture(scope="module")
def loaded(plugins: Plugins) -> Engine:
    config = EngineConfig("demo", device="cpu", dtype="float32", max_batch_size=4)
    return load_engine(config, plugins)[0]


@pytest.fixture
def engine(loaded: Engine) -> Engine:
    return Engine(loaded.model, loaded.config, loaded.checkpoint)


@pytest.fixture(scope="module")
def reference() -> Any:
    return CsmForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()


def speak(engine: Engine, text: str, speaker: int) -> Utterance:
    """Speak as a plain request would: nothing is named but the text and the speaker."""
    frames = record(engine)
    engine.add(SpeechRequest("demo", text, speaker))
    spoken = run_engine(engine)["demo"]
    return Utterance(frames["demo"], spoken.pcm, spoken.end)


@pytest.mark.parametrize("speaker", [0, 1])
@pytest.mark.parametrize("text", SENTENCES)
def test_speaks_as_the_reference_does(
    engine: Engine, reference: Any, text: str, speaker: int
) -> None:
    tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    ids = tokenizer.encode(
        f"<|begin_of_text|>[{speaker}]{text}<|end_of_text|>", add_special_tokens=False
    ).ids
    utterance = speak(engine, text, speaker)
    assert utterance.frames == reference_frames(reference, ids, MOST_FRAMES)
    assert isinstance(utterance.end, Finished)
    assert utterance.end.reason is FinishReason.STOP
    samples = np.frombuffer(utterance.pcm, "<i2") / 32767
    assert 0.04 < len(samples) / SAMPLE_RATE / len(text) < 0.16  # seconds per character
    assert np.sqrt((samples**2).mean()) > 0.01  # silence and faint noise are below


def test_the_speakers_differ(engine: Engine) -> None:
    first = speak(engine, SENTENCES[0], 0)
    assert speak(engine, SENTENCES[0], 1).frames != first.frames


@pytest.mark.parametrize("name", ["demo", str(CHECKPOINT), f"{CHECKPOINT.parent}/./checkpoint"])
def test_the_limits_hold_by_alias_and_by_directory(
    plugins: Plugins, engine: Engine, name: str
) -> None:
    resolved = plugins.resolve(name)
    assert resolved.spec.name == "csm"
    assert resolved.directory() == Path(resolved.source)
    assert resolved.directory().samefile(CHECKPOINT)
    limited = Engine(engine.model, engine.config, resolved.checkpoint)
    refused = {"a " * 12 + "a": "13 words; this voice speaks 12", "a" * 81: "81 characters.* 80"}
    for text, says in refused.items():
        with pytest.raises(UnspeakableText, match=says) as caught:
            limited.add(SpeechRequest("long", text))
        assert caught.value.param == "text"
    assert not limited.has_work
    limited.add(SpeechRequest("words", "a " * 11 + "a"))
    limited.add(SpeechRequest("characters", "a" * 80))


@pytest.mark.parametrize("text", ["été", "你好", "a_b"])
def test_what_it_cannot_spell_is_refused(engine: Engine, text: str) -> None:
    with pytest.raises(UnspeakableText, match="which this model cannot speak"):
        engine.add(SpeechRequest("foreign", text))
