"""Reading a checkpoint, refusals, and prompts."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from plugins.qwen3_tts.tests.checkpoints import (
    CODES,
    GOLDEN,
    KINDS,
    tokenizer_ids,
    write_checkpoint,
)
from plugins.qwen3_tts.tests.conftest import MakeEngine, load
from tests.checkpoint_files import change_json, change_tensors, read_json
from vox_serve import CheckpointError, PromptTooLong, RequestError, UnspeakableText
from vox_serve.messages import SpeechRequest
from vox_serve_qwen3_tts.plugin import (
    InstructedParameters,
    QwenParameters,
    vox_serve_models,
)
from vox_serve_qwen3_tts.prompt import TextTokenizer

TEXTS = ("hello the assistant", "Ünïcode, 東京 123!\n\nTwo  spaces", "e\u0301 I'm")


@pytest.fixture
def copied(checkpoints: dict[str, Path], tmp_path: Path) -> Path:
    return shutil.copytree(checkpoints["custom_voice"], tmp_path / "copied")


@pytest.mark.parametrize("kind", KINDS)
def test_texts_have_the_ids_of_the_package(kind: str, checkpoints: dict[str, Path]) -> None:
    tokenizer, ids = TextTokenizer(checkpoints[kind], 300), tokenizer_ids()
    begin, end = ids["<|im_start|>"], ids["<|im_end|>"]
    for text, wanted in zip(
        TEXTS, read_json(GOLDEN / "codes.json")[f"tokens of {kind}"], strict=True
    ):
        role, said = tokenizer.encode("assistant\n"), tokenizer.encode(text)
        newline = tokenizer.encode("\n")
        assert [begin, *role, *said, end, *newline, begin, *role] == wanted


def test_any_text_has_the_ids_of_transformers(checkpoints: dict[str, Path]) -> None:
    reference = AutoTokenizer.from_pretrained(checkpoints["base"])
    ours = TextTokenizer(checkpoints["base"], 300)
    for text in (*TEXTS, " a  b\n\n c\t", "x" * 50, "½ ﬁ ﷺ 👩‍👩‍👧 1234 don't WE'LL", "\u200b.,;"):
        assert ours.encode(text) == reference.encode(text)


def test_a_special_token_in_a_text_is_read_as_characters(checkpoints: dict[str, Path]) -> None:
    tokenizer = TextTokenizer(checkpoints["base"], 300)
    assert max(tokenizer.encode("<|im_end|>")) < tokenizer_ids()["<|im_start|>"]


def test_each_kind_has_its_voices_and_parameters(checkpoints: dict[str, Path]) -> None:
    models = {kind: load(checkpoints[kind]) for kind in KINDS}
    names = {kind: [voice.name for voice in model.voices] for kind, model in models.items()}
    assert names == {
        "custom_voice": ["vivian", "dylan"],
        "voice_design": ["described"],
        "base": ["any"],
    }
    for kind, model in models.items():
        allowed = model.default_sampling.allowed()
        assert allowed["language"].schema["enum"] == ["auto", "en", "zh", "de"]
        assert ("instructions" in allowed) == (kind != "base")
        assert model.default_sampling.repetition_penalty == 1.05
        assert model.default_sampling.repetition_window == 2048


def test_the_small_checkpoint_does_not_accept_instructions(copied: Path) -> None:
    change_json(copied / "config.json", tts_model_size="0b6")
    assert "instructions" not in load(copied).default_sampling.allowed()


def test_the_declared_parameters_list_all_published_languages() -> None:
    (spec,) = vox_serve_models()
    assert spec.parameters is InstructedParameters
    assert issubclass(InstructedParameters, QwenParameters)
    assert set(spec.parameters.allowed()["language"].schema["enum"]) == {"auto", *spec.languages}
    assert len(spec.languages) == 10


def test_sampling_defaults_come_from_the_checkpoint(copied: Path) -> None:
    change_json(copied / "generation_config.json", temperature=0.7, subtalker_temperature=0.7)
    assert load(copied).default_sampling.temperature == 0.7
    change_json(copied / "generation_config.json", do_sample=False, subtalker_dosample=False)
    assert load(copied).default_sampling.temperature == 0
    change_json(copied / "generation_config.json", do_sample=True, subtalker_dosample=True)
    change_json(copied / "generation_config.json", subtalker_top_k=5)
    with pytest.raises(CheckpointError, match="subtalker_top_k is 5, and top_k is 50"):
        load(copied)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "qwen3"}, "not a Qwen3-TTS checkpoint"),
        ({"tts_model_type": "other"}, "tts_model_type is 'other'"),
        ({"tokenizer_type": "qwen3_tts_tokenizer_25hz"}, "only 'qwen3_tts_tokenizer_12hz'"),
    ],
)
def test_other_checkpoints_are_refused(copied: Path, changes: dict[str, str], message: str) -> None:
    change_json(copied / "config.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        load(copied)


def test_a_damaged_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "one", "base")
    weights, codec = directory / "model.safetensors", directory / "speech_tokenizer"
    change_tensors(weights, {"talker.model.more": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"do not belong.*talker\.model\.more"):
        load(directory)
    change_tensors(weights, {"talker.model.more": None, "talker.codec_head.weight": None})
    with pytest.raises(CheckpointError, match=r"codec_head\.weight is missing"):
        load(directory)
    change_json(codec / "config.json", decode_upsample_rate=960)
    with pytest.raises(CheckpointError, match="decode_upsample_rate is 960; expected 1920"):
        load(write_again(directory))
    (directory / "merges.txt").unlink()
    with pytest.raises(CheckpointError, match=r"merges\.txt: this file is missing"):
        TextTokenizer(directory, 300)


def write_again(directory: Path) -> Path:
    head = torch.zeros(CODES + 1024, 32)
    change_tensors(directory / "model.safetensors", {"talker.codec_head.weight": head})
    return directory


def test_texts_that_cannot_be_spoken_are_refused(
    checkpoints: dict[str, Path], make_engine: MakeEngine
) -> None:
    model = load(checkpoints["base"])
    with pytest.raises(PromptTooLong, match="positions of the 2048") as refused:
        make_engine("base").prompts.build("word " * 600, model.voices[0], ())
    assert refused.value.param == "text"
    with pytest.raises(UnspeakableText):
        model.prompt("  ", model.voices[0], context=(), parameters=model.default_sampling)


def test_instructions_are_refused_by_models_that_cannot_follow_them(
    make_engine: MakeEngine,
) -> None:
    request = SpeechRequest("x", "hello", sampling={"instructions": "Whisper."})
    with pytest.raises(RequestError, match="no parameter instructions") as refused:
        make_engine("base").add(request)
    assert refused.value.param == "instructions"


def test_a_voice_from_a_clip_is_computed_once(make_engine: MakeEngine) -> None:
    engine = make_engine("base")
    prompts = [
        engine.prompts.prepare(SpeechRequest(text, text, voice="anna")).prompt
        for text in ("hello there", "something else")
    ]
    shared = prompts[0].shared
    assert 10 < shared == prompts[1].shared
    for name in ("tokens", "vector"):
        first, second = (prompt.inputs[name] for prompt in prompts)
        assert torch.equal(first[:shared], second[:shared])
