"""Which checkpoints load, and the errors of the others."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import attrs
import pocket_tts
import pytest
import safetensors.torch
import sentencepiece
import torch
import yaml

from plugins.pocket_tts.tests.checkpoints import SMALL, changed, clip, load, write_checkpoint
from plugins.pocket_tts.tests.conftest import Checkpoint
from vox_serve import (
    CheckpointError,
    InvalidRequest,
    PromptTooLong,
    Segment,
    UnspeakableText,
    Voice,
)
from vox_serve.config import EngineConfig
from vox_serve.engine.engine import Engine
from vox_serve.messages import SpeechRequest
from vox_serve.plugins import load_plugins
from vox_serve_pocket_tts import languages
from vox_serve_pocket_tts.config import PocketConfig
from vox_serve_pocket_tts.plugin import LANGUAGES, OPEN
from vox_serve_pocket_tts.text import read_tokenizer

CONFIGS = Path(pocket_tts.__file__).parent / "config"


@pytest.fixture
def copied(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint.directory, tmp_path / "copy"))


@pytest.mark.parametrize("name", languages.DIFFERENCES)
def test_our_configurations_equal_those_of_the_package(name: str):
    theirs = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    assert PocketConfig.from_tree(theirs) == PocketConfig.from_tree(languages.published(name))


def test_we_have_every_configuration_of_the_package():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(languages.DIFFERENCES)


def found(name: str) -> tuple[str, str]:
    resolved = load_plugins(["vox_serve_pocket_tts.plugin"], points=[]).resolve(name)
    return resolved.spec.name, resolved.source


def test_checkpoints_are_found_by_every_kind_of_name(copied: Path, tmp_path: Path):
    assert found("pocket-tts") == ("pocket-tts", f"{OPEN}/languages/english")
    for language in LANGUAGES:
        assert found(f"pocket-tts-{language}")[1].endswith(f"languages/{language}")
    for name in (f"{OPEN}/languages/german_24l", "kyutai/pocket-tts", str(copied)):
        assert found(name) == ("pocket-tts", name)
    (copied / "config.yaml").unlink()
    shutil.copytree(copied, tmp_path / "repository/languages/english")
    for part in ("repository", "repository/languages/english"):
        assert found(str(tmp_path / part))[0] == "pocket-tts"
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        found(str(copied))


def test_voices_are_named_after_their_files(checkpoint: Checkpoint):
    model = load(checkpoint.directory)
    assert [(voice.name, voice.speaker) for voice in model.voices] == [("anna", 0), ("bert", 1)]
    prompt = model.prompt("Hi.", model.voices[1])
    assert prompt.given is not None
    assert len(prompt) == prompt.given[0].shape[1] + len("_Hi.") + 1


def test_without_files_there_is_one_voice(copied: Path):
    shutil.rmtree(copied / "embeddings")
    model = load(copied)
    assert [voice.name for voice in model.voices] == ["any"]
    assert len(model.prompt("Hi.", model.voices[0])) == len("_Hi.") + 1


def test_weights_without_an_encoder_cannot_clone_voices(copied: Path, tmp_path: Path):
    tensors = safetensors.torch.load_file(copied / "model.safetensors")
    tensors["flow_lm.speaker_proj_weight"].zero_()
    safetensors.torch.save_file(tensors, copied / "model.safetensors")
    named = tmp_path / "models--kyutai--pocket-tts-without-voice-cloning"
    shutil.copytree(copied, named)
    for directory in (copied, named):
        engine = Engine(load(directory), EngineConfig(model="p", max_batch_size=1))
        assert not engine.prompts.takes_voices


def damaged(message: str) -> Callable[[Callable[[Path], None]], object]:
    return lambda damage: pytest.param(damage, message, id=damage.__name__)


@damaged("no .*yaml describes these weights")
def no_config(directory: Path) -> None:
    (directory / "config.yaml").unlink()


@damaged("several .*yaml")
def two_configs(directory: Path) -> None:
    (directory / "other.yaml").write_text("{}")


@damaged("cannot be read as YAML")
def broken_config(directory: Path) -> None:
    (directory / "config.yaml").write_text("{")


@damaged("the configuration lacks 'flow_lm'")
def empty_config(directory: Path) -> None:
    (directory / "config.yaml").write_text("{}")


@damaged("flow type 'flow_matching' is not supported")
def other_flow(directory: Path) -> None:
    rewrite(directory, {"flow_lm.flow.type": "flow_matching"})


@damaged("tensor flow_lm.* has shape")
def other_width(directory: Path) -> None:
    rewrite(directory, {"flow_lm.transformer.d_model": 32, "flow_lm.lookup_table.dim": 32})


@damaged("tokens; the configuration has")
def other_tokens(directory: Path) -> None:
    path = directory / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["vocab"].pop()
    path.write_text(json.dumps(tokenizer))


@damaged("this file is missing")
def no_weights(directory: Path) -> None:
    (directory / "model.safetensors").unlink()


@damaged("tokenizer.json: this file is missing")
def no_tokenizer(directory: Path) -> None:
    (directory / "tokenizer.json").unlink()


@damaged("anna.safetensors: not a voice of this model")
def other_voice(directory: Path) -> None:
    safetensors.torch.save_file({"x": torch.zeros(1)}, directory / "embeddings/anna.safetensors")


@damaged("1 tensors do not belong to this model, the first is extra")
def an_extra_tensor(directory: Path) -> None:
    tensors = safetensors.torch.load_file(directory / "model.safetensors")
    safetensors.torch.save_file(
        tensors | {"extra": torch.zeros(1)}, directory / "model.safetensors"
    )


def rewrite(directory: Path, changes: dict[str, object]) -> None:
    (directory / "config.yaml").write_text(yaml.safe_dump(changed(SMALL, changes)))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        no_config,
        two_configs,
        broken_config,
        empty_config,
        other_flow,
        other_width,
        other_tokens,
        no_weights,
        no_tokenizer,
        other_voice,
        an_extra_tensor,
    ],
)
def test_a_damaged_checkpoint_is_refused_by_name(
    copied: Path, damage: Callable[[Path], None], message: str
):
    damage(copied)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(copied)
    assert "\n" not in str(caught.value)


def test_texts_that_cannot_be_spoken_are_refused(checkpoint: Checkpoint):
    model = load(checkpoint.directory)
    with pytest.raises(UnspeakableText, match="contains '%'"):
        model.prompt("50 %", model.voices[0])
    with pytest.raises(UnspeakableText, match="nothing that this voice can speak"):
        model.prompt('""', model.voices[0])
    prompts = Engine(model, EngineConfig("pocket", max_batch_size=1)).prompts
    with pytest.raises(PromptTooLong, match="text is too long"):
        prompts.build("word " * 300, model.voices[0], ())
    heard = Segment(0, "said", codes=torch.zeros(8, 1100))
    with pytest.raises(PromptTooLong, match="voice is too long"):
        prompts.build("word", Voice("long", 0, (heard,)), ())


def test_a_sentencepiece_tokenizer_is_read(copied: Path):
    sentences = ["the quick brown fox jumps over the lazy dog"] * 4
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=written,
        vocab_size=PocketConfig.from_tree(SMALL).text_tokens,
        hard_vocab_limit=False,
        model_type="unigram",
        minloglevel=2,
    )
    (copied / "tokenizer.model").write_bytes(written.getvalue())
    config = attrs.evolve(PocketConfig.from_tree(SMALL), tokenizer="sentencepiece")
    processor = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    config = attrs.evolve(config, text_tokens=processor.vocab_size())
    encode = read_tokenizer(copied, config)
    assert encode("the lazy fox") == processor.encode("the lazy fox", out_type=int)
    with pytest.raises(UnspeakableText, match=r"contains .*%"):
        encode("the % fox")
    (copied / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(CheckpointError, match="not a sentencepiece model"):
        read_tokenizer(copied, config)


def test_parameters_of_codes_are_refused(checkpoint: Checkpoint):
    engine = Engine(load(checkpoint.directory), EngineConfig(model="p", max_batch_size=1))
    with pytest.raises(InvalidRequest, match="no parameter temperature; it has seed, noise_temp"):
        engine.add(SpeechRequest("x", "Hi.", sampling={"temperature": 0.5}))


def test_one_step_heads_have_no_parameter_steps(tmp_path: Path):
    write_checkpoint(tmp_path / "c", flow_lm__flow__type="drifting")
    engine = Engine(load(tmp_path / "c"), EngineConfig(model="p", max_batch_size=1))
    with pytest.raises(InvalidRequest, match="no parameter flow_steps"):
        engine.add(SpeechRequest("x", "Hi.", sampling={"flow_steps": 2}))


def test_float16_weights_sound_nearly_the_same(checkpoint: Checkpoint):
    from vox_serve import LoadOptions
    from vox_serve_pocket_tts.checkpoint import load_model

    exact = load(checkpoint.directory)
    packed = load_model(LoadOptions(checkpoint.directory, "cpu", "float32", "float16"))
    assert packed.weight_bytes < exact.weight_bytes
    x = torch.randn(2, exact.hidden_size, generator=torch.Generator().manual_seed(0))
    noise = torch.zeros(2, exact.config.latent)
    flows = [m.network.flow(noise, m.network.flow.condition(x)) for m in (exact, packed)]
    torch.testing.assert_close(*flows, atol=0.02, rtol=0.02)


def test_a_clip_is_encoded_like_in_the_package(checkpoint: Checkpoint):
    reference, model = checkpoint.reference, load(checkpoint.directory)
    from pocket_tts.data.audio_utils import end_on_pause

    for seconds in (0.01, 0.5, 4.03):
        sound = torch.cat([clip(seconds), torch.zeros(3000)])
        wanted = reference.mimi.encode_to_latent(end_on_pause(sound[None], 24000)[None])[0].t()
        torch.testing.assert_close(model.codec.encode(sound), wanted, atol=1e-4, rtol=1e-4)
