"""Prompt tokens: expected ids of text and context, and refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from plugins.csm.tests.checkpoints import CODEBOOKS, SPECIALS, clip, write_tokenizer
from plugins.csm.tests.conftest import Checkpoint, load
from vox_serve import Prompt, PromptTooLong, Segment, UnspeakableText, Voice
from vox_serve.config import EngineConfig
from vox_serve.engine.engine import Engine
from vox_serve_csm.model import CsmModel

VOICE = Voice("plain", 1)
BEGIN, END, UNKNOWN = 1, 2, 3
LEFT, ONE, RIGHT = 6, 9, 7  # of "[1]"
H, I, SPACE = 25, 26, 44  # noqa: E741


@pytest.fixture(scope="module")
def model(checkpoint: Checkpoint) -> CsmModel:
    return load(checkpoint.directory)


def text_column(prompt: Prompt) -> list[int]:
    return prompt.inputs["tokens"][:, -1].tolist()


def test_a_text_has_the_expected_tokens(model: CsmModel) -> None:
    """No space follows the speaker; there is one begin token, although the tokenizer adds one."""
    tokens = model.prompt("hi", VOICE, context=()).inputs["tokens"]
    assert tokens.dtype == torch.int64
    assert tokens[:, -1].tolist() == [BEGIN, LEFT, ONE, RIGHT, H, I, END]
    assert torch.equal(tokens[:, :-1], torch.full((7, CODEBOOKS), -1))


def test_tokens_that_the_tokenizer_would_add_are_not_added(tmp_path: Path) -> None:
    """Checks that the tokenizer would indeed add one, as the test above assumes."""
    write_tokenizer(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.encode("hi").ids == [BEGIN, H, I]


@pytest.mark.parametrize("text", ["hi i", " hi i", "hi \t\n i ", "hi\u00a0i", "\nhi\r\ni\n"])
def test_white_space_becomes_one_space(model: CsmModel, text: str) -> None:
    assert text_column(model.prompt(text, VOICE, context=()))[4:-1] == [
        H,
        I,
        SPACE,
        I,
    ]


@pytest.mark.parametrize(("text", "shown"), [("hé", "é"), ("A b", "A"), ("hi 🙂 é", "🙂")])
def test_an_unknown_character_is_refused_by_name(model: CsmModel, text: str, shown: str) -> None:
    with pytest.raises(
        UnspeakableText, match=f"text contains '{shown}', which this model"
    ) as caught:
        model.prompt(text, VOICE, context=())
    assert caught.value.param == "text"


@pytest.mark.parametrize("token", SPECIALS)
def test_a_special_token_in_a_text_is_read_as_characters(model: CsmModel, token: str) -> None:
    with pytest.raises(UnspeakableText, match="text contains '<', which this model"):
        model.prompt(f"hi{token}", VOICE, context=())


def test_a_context_segment_is_text_audio_and_a_frame_of_end_codes(model: CsmModel) -> None:
    codes = model.codec.encode(clip(3))
    prompt = model.prompt("hi", VOICE, context=[Segment(0, "i", codes=codes)])
    assert prompt.shared == 6 + 3 + 1
    tokens = prompt.inputs["tokens"]
    text, frames, end, target = tokens.split([6, 3, 1, 7])
    assert text[:, -1].tolist() == [BEGIN, LEFT, ONE - 1, RIGHT, I, END]
    assert torch.equal(frames[:, :-1], codes.T)
    assert end[:, :-1].tolist() == [[0] * CODEBOOKS]
    assert (tokens[6:10, -1] == -1).all()
    assert (text[:, :-1] == -1).all()
    assert torch.equal(
        target,
        model.prompt("hi", VOICE, context=()).inputs["tokens"],
    )


def test_the_voice_comes_before_the_context(model: CsmModel) -> None:
    def segment(code: int) -> Segment:
        return Segment(0, "i", codes=torch.full((CODEBOOKS, 2), code))

    voice = Voice("with", 0, (segment(5),))
    tokens = model.prompt("hi", voice, context=[segment(7)]).inputs["tokens"]
    first_codes = tokens[:, 0].tolist()
    assert [code for code in first_codes if code >= 0] == [5, 5, 0, 7, 7, 0]


def test_a_prompt_that_does_not_fit_names_the_field(model: CsmModel) -> None:
    fits = "i" * (model.max_positions - 1 - 5)  # begin, [1], end; one position is left
    prompts = Engine(model, EngineConfig("csm", max_batch_size=1)).prompts
    assert len(prompts.build(fits, VOICE, ())) == model.max_positions - 1
    with pytest.raises(PromptTooLong, match="256 positions of the 256") as caught:
        prompts.build(fits + "i", VOICE, ())
    assert caught.value.param == "text"
    sound = Segment(0, "i", codes=torch.zeros(CODEBOOKS, 250, dtype=torch.int64))
    with pytest.raises(PromptTooLong, match="context is too long") as caught:
        prompts.build("hi", VOICE, [sound])
    assert caught.value.param == "context"
