"""Checkpoint directories: which ones load, and the one-line errors of the others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from huggingface_hub.utils import filter_repo_objects
from transformers import DiaConfig as TransformersConfig

from plugins.dia.tests.checkpoints import DELAYS, Reference, write_dac
from plugins.dia.tests.conftest import load
from vox_serve import CheckpointError, PromptTooLong, RequestError, Segment, Voice
from vox_serve_dia import checkpoint
from vox_serve_dia.checkpoint import DAC, dac_source
from vox_serve_dia.config import DiaConfig
from vox_serve_dia.model import DiaModel
from vox_serve_dia.plugin import DiaParameters, vox_serve_models

SPEC = vox_serve_models()[0]
ORIGINAL = {"version": "0.1", "model": {}, "training": {}, "data": {"delay_pattern": DELAYS}}


@pytest.fixture
def directory(reference: Reference, tmp_path: Path) -> Path:
    return Path(shutil.copytree(reference.directory, tmp_path / "copy"))


def change_json(path: Path, **changes: Any) -> None:
    found = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(found | changes))


def test_dia_is_recognised_by_its_configuration() -> None:
    assert SPEC.matches({"model_type": "dia"})
    assert not SPEC.matches({"model_type": "dac"})
    assert not SPEC.matches({"model": {}, "data": {}})


def test_the_error_for_nari_labs_own_layout_names_the_other_one(directory: Path) -> None:
    (directory / "config.json").write_text(json.dumps(ORIGINAL))
    assert SPEC.matches(ORIGINAL)
    with pytest.raises(CheckpointError, match=r"nari-labs/Dia-1\.6B-0626"):
        load(directory)


def test_only_needed_files_are_downloaded() -> None:
    held = [
        "config.json",
        "generation_config.json",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    others = ["README.md", "pytorch_model.bin", "dia-v0_1.pth"]
    assert isinstance(SPEC.files, tuple)
    assert list(filter_repo_objects([*held, *others], allow_patterns=list(SPEC.files))) == held


def test_the_published_sizes_are_the_defaults() -> None:
    """Published configurations have the reserved ids outside `decoder_config`, newer ones in it."""
    plain = DiaConfig.from_json({"model_type": "dia"})
    assert plain == DiaConfig.from_json(TransformersConfig().to_dict())
    ids = {"eos_token_id": 1024, "pad_token_id": 1025, "bos_token_id": 1026}
    assert plain == DiaConfig.from_json({"model_type": "dia", **ids})
    assert (plain.end, plain.pad, plain.begin) == (1024, 1025, 1026)
    assert plain.delays == (0, *range(8, 16))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"delay_pattern": [0, 1]}, "num_channels is 4"),
        ({"delay_pattern": [1, 2, 3, 4]}, "begin with 0"),
        ({"decoder_config": {"num_channels": 4}}, "cross_hidden_size"),
        ({"eos_token_id": 99}, "pad_token_id must be above"),
        ({"bos_token_id": 3}, "bos_token_id must be above"),
        ({"encoder_config": {"hidden_act": "gelu"}}, "hidden_act 'gelu'"),
    ],
)
def test_sizes_that_contradict_each_other_are_refused(
    directory: Path, changes: dict[str, Any], message: str
) -> None:
    change_json(directory / "config.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        load(directory)


def test_sampling_defaults_come_from_the_checkpoint(directory: Path) -> None:
    published = DiaParameters(temperature=1.8, top_k=45, top_p=0.9, guidance_scale=3.0)
    assert load(directory).default_sampling == published
    path = directory / "generation_config.json"
    change_json(path, temperature=1.2, guidance_scale=4.0, top_k=None)
    expected = DiaParameters(temperature=1.2, top_k=45, top_p=0.9, guidance_scale=4.0)
    assert load(directory).default_sampling == expected
    change_json(path, guidance_scale=0.5)
    with pytest.raises(CheckpointError, match="guidance_scale must be from 1 to 10"):
        load(directory)


@pytest.mark.parametrize(("name", "key"), [
    ("audio_tokenizer_config.json", None),
    ("processor_config.json", "audio_tokenizer"),
])  # fmt: skip
def test_dac_is_found_where_the_checkpoint_says(
    directory: Path, name: str, key: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert dac_source(directory) == DAC
    moved = directory.parent / "elsewhere"
    (directory / "dac").rename(moved)
    named = {"audio_tokenizer_name_or_path": str(moved), "audio_tokenizer_class": "DacModel"}
    change_json(directory / name, **({key: named} if key else named))
    assert load(directory).codec.frame_width == len(DELAYS)
    asked: list[object] = []
    change_json(
        directory / name, **({key: None} if key else {"audio_tokenizer_name_or_path": None})
    )
    monkeypatch.setattr(checkpoint, "fetch", lambda *a: asked.append(a) or moved)
    load(directory)
    assert asked == [(DAC, ("config.json", "model*.safetensors*"))]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"n_codebooks": 3}, "DAC has 3 codebooks, but the delays are 4"),
        ({"codebook_size": 64}, "DAC has 64 codes, but the model 36"),
        ({"downsampling_ratios": [2, 5]}, "must be even"),
    ],
)
def test_a_dac_that_does_not_fit_is_refused(
    directory: Path, sizes: dict[str, Any], message: str
) -> None:
    shutil.rmtree(directory / "dac")
    write_dac(directory / "dac", **sizes)
    with pytest.raises(CheckpointError, match=message):
        load(directory)


def test_a_dac_without_a_size_is_refused(directory: Path) -> None:
    (directory / "dac" / "config.json").write_text('{"model_type": "dac"}')
    with pytest.raises(CheckpointError, match="downsampling_ratios"):
        load(directory)


@pytest.mark.parametrize("file", ["model.safetensors", "dac/model.safetensors"])
def test_missing_and_extra_tensors_are_refused(directory: Path, file: str) -> None:
    tensors = safetensors.torch.load_file(directory / file)
    name = next(iter(tensors))
    safetensors.torch.save_file({**tensors, "more": torch.zeros(1)}, directory / file)
    with pytest.raises(CheckpointError, match="the first is more"):
        load(directory)
    del tensors[name]
    safetensors.torch.save_file(tensors, directory / file)
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        load(directory)


@pytest.fixture(scope="module")
def model(reference: Reference) -> DiaModel:
    return load(reference.directory)


def read(model: DiaModel, text: str, voice: Voice | None = None) -> str:
    prompt = model.prompt(text, voice or model.voices[0])
    found = bytes(prompt.inputs["text"][0].tolist()).rstrip(b"\0").decode()
    return found.replace("\1", "[S1]").replace("\2", "[S2]")


def test_a_text_gets_the_tag_of_its_speaker(model: DiaModel) -> None:
    assert read(model, " Hello") == "[S1] Hello"
    assert read(model, "Hello", model.voices[1]) == "[S2] Hello"
    assert read(model, "[S2] Hi [S1] Ho", model.voices[0]) == "[S2] Hi [S1] Ho"
    clip = Segment(1, "Said before", codes=torch.zeros(len(DELAYS), 2, dtype=torch.int64))
    assert read(model, "[S1] Hi", Voice("x", 1, (clip,))) == "[S2] Said before [S1] Hi"


def test_limits_are_named(model: DiaModel) -> None:
    def refused(text: str, voice: Voice) -> RequestError:
        with pytest.raises(RequestError) as raised:
            model.prompt(text, voice)
        return raised.value

    long = refused("a" * 100, model.voices[0])
    assert "have 102 bytes; the limit is 96" in long.message
    assert long.param == "text"
    assert refused("a\0b", model.voices[0]).param == "text"
    codes = torch.zeros(len(DELAYS), 1000, dtype=torch.int64)
    clips = Voice("x", 0, (Segment(0, "said", codes=codes),))
    assert "its clip has 1000 frames of the 1000" in refused("a", clips).message
    said = Voice("x", 0, (Segment(0, "said" * 30, codes=codes[:, :2]),))
    error = refused("a", said)
    assert isinstance(error, PromptTooLong)
    assert error.param == "voice"
