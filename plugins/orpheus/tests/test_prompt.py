"""Prompt tokens: the expected markers, the voice, and refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from plugins.orpheus.tests.checkpoints import EOT, byte_letters, text_ids, write_tokenizer
from plugins.orpheus.tests.conftest import Checkpoint, load
from vox_serve import PromptTooLong, Segment, UnspeakableText
from vox_serve.config import EngineConfig
from vox_serve.engine.engine import Engine
from vox_serve.messages import SpeechRequest
from vox_serve_orpheus.model import OrpheusModel


@pytest.fixture(scope="module")
def model(checkpoint: Checkpoint) -> OrpheusModel:
    return load(checkpoint.directory)


def ids(model: OrpheusModel, text: str, speaker: int = 0) -> list[int]:
    return model.prompt(text, model.voices[speaker]).inputs["tokens"].tolist()


def test_a_prompt_has_the_expected_tokens(model: OrpheusModel) -> None:
    """As in the published notebook: start of human, one begin token, text, two ends, two starts."""
    letters = [byte_letters().index(letter) for letter in ("l", "e", "o", ":", "Ġ", "h", "i")]
    assert ids(model, "hi", speaker=3) == [261, 256, *letters, 257, 262, 263, 259]


def test_voices_are_the_published_names(model: OrpheusModel) -> None:
    names = ["tara", "leah", "jess", "leo", "dan", "mia", "zac", "zoe"]
    assert [(v.name, v.speaker) for v in model.voices] == list(zip(names, range(8), strict=True))
    for speaker, name in enumerate(names):
        assert ids(model, "hi", speaker) == text_ids("hi", name)


@pytest.mark.parametrize("text", ["hi i", " hi i", "hi \t\n i ", "hi\u00a0i", "\nhi\r\ni\n"])
def test_white_space_becomes_one_space(model: OrpheusModel, text: str) -> None:
    assert ids(model, text) == text_ids("hi i")


@pytest.mark.parametrize("token", ["<|eot_id|>", "<custom_token_2>", "<custom_token_11>"])
def test_a_marker_in_a_text_is_read_as_characters(model: OrpheusModel, token: str) -> None:
    assert ids(model, f"a{token}b") == text_ids(f"a{token}b")


def test_the_tokenizer_itself_would_read_it_as_a_marker(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert EOT in tokenizer.encode("a<|eot_id|>").ids
    tokenizer.encode_special_tokens = True
    assert tokenizer.encode("<custom_token_2>", add_special_tokens=False).ids == [260]


def test_tags_are_text(model: OrpheusModel) -> None:
    assert ids(model, "so <laugh> it was") == text_ids("so <laugh> it was")


def test_context_is_refused(model: OrpheusModel) -> None:
    engine = Engine(model, EngineConfig("orpheus", max_batch_size=1))
    segment = Segment(0, "hi", audio=np.zeros(2048, np.float32))
    with pytest.raises(UnspeakableText, match="not trained to follow") as caught:
        engine.add(SpeechRequest("a", "hi", context=(segment,)))
    assert caught.value.param == "context"


def test_a_text_that_does_not_fit_is_refused(model: OrpheusModel) -> None:
    fits = "i" * (511 - len(text_ids("")))
    assert len(ids(model, fits)) == 511
    prompts = Engine(model, EngineConfig("orpheus", max_batch_size=1)).prompts
    prompts.build(fits, model.voices[0], ())
    with pytest.raises(PromptTooLong, match="512 positions of the 512") as caught:
        prompts.build(fits + "i", model.voices[0], ())
    assert caught.value.param == "text"
