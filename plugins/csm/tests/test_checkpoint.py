"""Checkpoint directories: which ones load, and the one-line errors of the others."""

from __future__ import annotations

import copy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import soundfile
import torch
import transformers
from huggingface_hub.utils import filter_repo_objects
from transformers import CsmForConditionalGeneration

from plugins.csm.tests.checkpoints import (
    HEAD,
    INDEX,
    LLAMA3_ROPE,
    clip,
    reference_frames,
    text_ids,
    to_hub_layout,
    write_checkpoint,
    write_tokenizer,
)
from plugins.csm.tests.conftest import (
    Checkpoint,
    MakeEngine,
    load,
    record,
    request,
    spoken_alone,
)
from tests.checkpoint_files import change_json, change_tensors, read_json, read_tensors, write_json
from tests.conftest import run_engine
from vox_serve import CheckpointError, NotFound, SamplingParams, Segment
from vox_serve_csm.config import CsmConfig
from vox_serve_csm.plugin import vox_serve_models
from vox_serve_csm.voices import TRANSCRIPTS

AUDIO_EMBEDDINGS = (
    "backbone_model.embed_tokens.embed_audio_tokens.weight",
    "depth_decoder.model.embed_tokens.weight",
)
UP_PROJ = "backbone_model.layers.1.mlp.up_proj.weight"
SECOND_SHARD = "transformers-00002-of-00003.safetensors"


@pytest.fixture
def directory(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    """A copy of the small checkpoint that a test may change."""
    return Path(shutil.copytree(checkpoint.directory, tmp_path / "checkpoint"))


@pytest.fixture
def expected(checkpoint: Checkpoint) -> list[tuple[int, ...]]:
    return reference_frames(checkpoint.reference, text_ids("hi"), 5)


def test_the_layout_of_the_hub_loads(
    make_engine: MakeEngine, directory: Path, expected: Any
) -> None:
    to_hub_layout(directory)
    assert spoken_alone(make_engine(directory), "hi", frames=5) == expected


def test_the_layout_of_the_hub_loads_without_the_key(
    make_engine: MakeEngine, directory: Path, expected: Any
) -> None:
    """The transformers layout takes precedence over the original one."""
    to_hub_layout(directory)
    change_json(directory / "config.json", transformers_weights=None)
    assert spoken_alone(make_engine(directory), "hi", frames=5) == expected


@pytest.mark.parametrize("kept", [*([name] for name in AUDIO_EMBEDDINGS), AUDIO_EMBEDDINGS])
def test_the_audio_embedding_loads_under_both_names(
    make_engine: MakeEngine, directory: Path, expected: Any, kept: list[str]
) -> None:
    tensors = read_tensors(directory)
    table = next(tensors[name] for name in AUDIO_EMBEDDINGS if name in tensors)
    change_tensors(directory, dict.fromkeys(AUDIO_EMBEDDINGS))
    change_tensors(directory, {name: table.clone() for name in kept})
    assert spoken_alone(make_engine(directory), "hi", frames=5) == expected


def test_weights_have_the_requested_dtype(directory: Path) -> None:
    model = load(directory, "bfloat16")
    assert {p.dtype for p in model.network.parameters()} == {torch.bfloat16}
    network = sum(2 * p.numel() for p in model.network.parameters())
    config = model.config
    projected = 2 * (config.num_codebooks - 1) * config.audio_vocab * config.depth.hidden_size
    assert model.weight_bytes == network + projected + model.codec.weight_bytes


def test_defaults_equal_those_of_transformers() -> None:
    written = transformers.CsmConfig().to_dict()
    ours = CsmConfig.from_json({"model_type": "csm"})
    assert attrs.evolve(ours, codec=written["codec_config"]) == CsmConfig.from_json(written)
    # With a key that transformers spells differently, both sides would show our default.
    assert ours.num_codebooks == written["num_codebooks"]
    assert ours.audio_vocab == written["vocab_size"]
    assert ours.text_vocab == written["text_vocab_size"]
    assert ours.end_code == written["codebook_eos_token_id"]
    for stack, config in ((ours.backbone, written), (ours.depth, written["depth_decoder_config"])):
        sizes = {k: v for k, v in attrs.asdict(stack).items() if k not in ("rope", "head_norms")}
        assert sizes == {name: config[name] for name in sizes}
        parameters = config.get("rope_parameters") or config
        assert stack.rope.theta == parameters["rope_theta"]


@pytest.mark.parametrize("hub_layout", [False, True], ids=["save_pretrained", "hub"])
def test_a_download_takes_only_the_needed_files(directory: Path, hub_layout: bool) -> None:
    """`sesame/csm-1b` contains its weights twice: 6 GB that are not needed."""
    if hub_layout:
        to_hub_layout(directory)
    (directory / "prompts").mkdir()
    unneeded = {"README.md", "ckpt.pt", "prompts/notes.txt", ".gitattributes"}
    for name in ("prompts/conversational_a.wav", *unneeded):
        (directory / name).touch()
    files = {str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file()}
    (spec,) = vox_serve_models()
    patterns = list(spec.files(read_json(directory / "config.json")))
    taken = set(filter_repo_objects(files, allow_patterns=patterns))
    if hub_layout:
        unneeded |= {"model.safetensors"}
    assert taken == files - unneeded


@pytest.mark.parametrize(
    ("stored", "sampling"),
    [
        (None, SamplingParams(0.9, 50)),
        ({}, SamplingParams(0.9, 50)),
        ({"temperature": 0.7, "top_k": None}, SamplingParams(0.7, 50)),
        ({"do_sample": True, "temperature": 0.8, "top_k": 9, "top_p": 0.5}, (0.8, 9, 0.5)),
        ({"do_sample": False, "top_k": 9}, SamplingParams(0.0, 50)),
    ],
)
def test_sampling_defaults_come_from_the_generation_config(
    directory: Path, stored: Any, sampling: Any
) -> None:
    path = directory / "generation_config.json"
    path.unlink(missing_ok=True)
    if stored is not None:
        write_json(path, stored)
    expected = SamplingParams(*sampling) if isinstance(sampling, tuple) else sampling
    assert load(directory).default_sampling == expected


def test_reference_clips_are_the_voices(directory: Path) -> None:
    """Each speaker has a voice for each clip, whatever its sample rate."""
    prompts = directory / "prompts"
    prompts.mkdir()
    sound = clip(3).numpy()
    soundfile.write(prompts / "conversational_a.wav", sound, 24000, subtype="FLOAT")
    soundfile.write(prompts / "conversational_b.wav", clip(8).numpy(), 48000)
    model = load(directory)
    assert [(voice.name, voice.speaker) for voice in model.voices] == [
        ("conversational_a", 0),
        ("conversational_b", 1),
    ]
    for voice in model.voices:
        first, second = voice.segments
        assert (first.speaker, second.speaker) == (0, 1)
        assert [first.text, second.text] == list(TRANSCRIPTS.values())
        assert torch.equal(codes_of(first), model.codec.encode(torch.from_numpy(sound)))
        assert codes_of(second).shape == (model.codec.frame_width, 4)


def codes_of(segment: Segment) -> torch.Tensor:
    assert segment.codes is not None
    return segment.codes


@pytest.mark.parametrize(
    ("dtype", "shard"),
    [
        pytest.param(torch.float32, "50GB", marks=pytest.mark.slow),
        (torch.bfloat16, "60KB"),
        pytest.param(torch.float16, "60KB", marks=pytest.mark.slow),
    ],
)
def test_a_full_fine_tune_with_ten_speakers(
    checkpoint: Checkpoint, make_engine: MakeEngine, tmp_path: Path, dtype: Any, shard: str
) -> None:
    """A fine-tune as a training script saves it speaks as in transformers, from the same files."""
    model = copy.deepcopy(checkpoint.reference)
    with torch.no_grad():
        for layer in model.backbone_model.layers:
            layer.mlp.up_proj.weight.mul_(1.5)
    model.config.speakers = [f"reader_{number}" for number in range(10)]
    model.to(dtype).save_pretrained(tmp_path, max_shard_size=shard)
    write_tokenizer(tmp_path)
    assert (len([*tmp_path.glob("*.safetensors")]) > 3) == (shard != "50GB")
    tuned = CsmForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32).eval()
    engine = make_engine(tmp_path)
    frames = record(engine)
    for voice in ("reader_7", None):
        engine.add(request(f"{voice}", "hi", 8, voice=voice, speaker=9))
    run_engine(engine)
    for name, speaker in (("reader_7", 7), ("None", 9)):
        assert frames[name] == reference_frames(tuned, text_ids("hi", speaker), 8)
    assert frames["None"] != reference_frames(checkpoint.reference, text_ids("hi", 9), 8)
    with pytest.raises(NotFound, match="speaker 10"):
        engine.add(request("x", "hi", 5, speaker=10))


def test_without_clips_there_is_a_voice_per_speaker(directory: Path) -> None:
    voices = load(directory).voices
    assert [(voice.speaker, voice.segments) for voice in voices] == [(0, ()), (1, ())]


# Ways to damage a checkpoint, and the error of each.
Damage = Callable[[Path], None]
DAMAGES: dict[str, tuple[Damage, str]] = {}


def damage(says: str) -> Callable[[Damage], Damage]:
    def register(function: Damage) -> Damage:
        DAMAGES[function.__name__] = (function, says)
        return function

    return register


@damage(f"{SECOND_SHARD}: this file is missing; download")
def missing_shard(directory: Path) -> None:
    to_hub_layout(directory)
    (directory / SECOND_SHARD).unlink()


@damage(f"{SECOND_SHARD}: truncated, or not a safetensors file")
def truncated_shard(directory: Path) -> None:
    to_hub_layout(directory)
    shard = directory / SECOND_SHARD
    shard.write_bytes(shard.read_bytes()[:-100])


@damage(r"model\.safetensors: truncated, or not a safetensors file")
def empty_weights(directory: Path) -> None:
    (directory / "model.safetensors").write_bytes(b"")


@damage(rf"transformers-\S+: tensor {HEAD} is missing, although the index lists it")
def tensor_missing_from_its_shard(directory: Path) -> None:
    to_hub_layout(directory)
    index = read_json(directory / INDEX)
    shards = set(index["weight_map"].values()) - {index["weight_map"][HEAD]}
    index["weight_map"][HEAD] = min(shards)
    write_json(directory / INDEX, index)


@damage(rf"{INDEX}: not an index of safetensors shards")
def index_of_something_else(directory: Path) -> None:
    to_hub_layout(directory)
    write_json(directory / INDEX, {"metadata": {}})


@damage(f"tensor {UP_PROJ} is missing")
def missing_tensor(directory: Path) -> None:
    change_tensors(directory, {UP_PROJ: None})


@damage(r"tensor backbone_model\.embed_tokens\.embed_audio_tokens\.weight is missing")
def missing_audio_embedding(directory: Path) -> None:
    change_tensors(directory, dict.fromkeys(AUDIO_EMBEDDINGS))


@damage(rf"tensor {UP_PROJ} has shape \[128, 63\], which does not fit the configuration's")
def wrong_width(directory: Path) -> None:
    change_tensors(directory, {UP_PROJ: torch.zeros(128, 63)})


@damage(rf"tensor {HEAD} has shape \[66, 64\], .* \[67, 64\]")
def too_few_rows(directory: Path) -> None:
    change_tensors(directory, {HEAD: torch.zeros(66, 64)})


@damage("2 tensors do not belong to this model, the first is backbone_model.extra.weight")
def tensors_left_over(directory: Path) -> None:
    extra = {f"backbone_model.{name}.weight": torch.zeros(1) for name in ("extra", "more")}
    change_tensors(directory, extra)


@damage(r"tensor codec_model\.decoder\.layers\.0\.conv\.weight is missing")
def missing_codec_tensor(directory: Path) -> None:
    change_tensors(directory, {"codec_model.decoder.layers.0.conv.weight": None})


@damage("1 tensors do not belong to this model, the first is codec_model.decoder.extra.weight")
def codec_tensor_left_over(directory: Path) -> None:
    change_tensors(directory, {"codec_model.decoder.extra.weight": torch.zeros(1)})


@damage("codec cannot be loaded: codec_config: sliding_window is null")
def codec_without_window(directory: Path) -> None:
    codec = read_json(directory / "config.json")["codec_config"]
    change_json(directory / "config.json", codec_config=codec | {"sliding_window": None})


@damage("these weights are not in the transformers layout; download the transformers-")
def original_layout_alone(directory: Path) -> None:
    to_hub_layout(directory)
    for path in directory.glob("transformers*"):
        path.unlink()
    change_json(directory / "config.json", transformers_weights=None)


@damage(rf"{INDEX}: config\.json names this file, but it is missing; download")
def missing_index(directory: Path) -> None:
    to_hub_layout(directory)
    (directory / INDEX).unlink()


@damage(rf"no weights; it must contain one of {INDEX}, \S+, model\.safetensors")
def no_weights(directory: Path) -> None:
    (directory / "model.safetensors").unlink()


@damage(r"no config\.json in this directory")
def no_config(directory: Path) -> None:
    (directory / "config.json").unlink()


@damage(r"config\.json: cannot be read as JSON")
def broken_config(directory: Path) -> None:
    (directory / "config.json").write_text("{")


@damage("not a CSM checkpoint: config.json says model_type 'llama'")
def another_model(directory: Path) -> None:
    change_json(directory / "config.json", model_type="llama")


@damage("tie_codebooks_embeddings false is not supported")
def untied_embeddings(directory: Path) -> None:
    change_json(directory / "config.json", tie_codebooks_embeddings=False)


@damage("RoPE scaling 'yarn' is not supported; default and llama3 are")
def unsupported_rope(directory: Path) -> None:
    scaling = dict(LLAMA3_ROPE) | {"rope_type": "yarn"}
    change_json(directory / "config.json", rope_parameters=None, rope_scaling=scaling)


@damage("depth_decoder_config.num_codebooks is 8, but the backbone has 7")
def contradicting_codebooks(directory: Path) -> None:
    change_json(directory / "config.json", num_codebooks=7)


@damage("depth_decoder_config.max_position_embeddings is too small")
def short_depth_decoder(directory: Path) -> None:
    depth = read_json(directory / "config.json")["depth_decoder_config"]
    change_json(
        directory / "config.json", depth_decoder_config=depth | {"max_position_embeddings": 7}
    )


@damage("speakers must be a list of 1 to 1000 different names")
def speakers_with_the_same_name(directory: Path) -> None:
    change_json(directory / "config.json", speakers=["anna", "anna"])


@damage("speakers must be a list of 1 to 1000 different names")
def a_number_of_speakers(directory: Path) -> None:
    change_json(directory / "config.json", speakers=10)


@damage(r"tokenizer\.json: this file is missing; download")
def missing_tokenizer(directory: Path) -> None:
    (directory / "tokenizer.json").unlink()


@damage(r"tokenizer\.json: cannot be read")
def broken_tokenizer(directory: Path) -> None:
    (directory / "tokenizer.json").write_text("{}")


@damage(r"tokenizer_config\.json: this file is missing")
def missing_tokenizer_config(directory: Path) -> None:
    (directory / "tokenizer_config.json").unlink()


@damage(r"tokenizer_config\.json: has no eos_token")
def no_end_token(directory: Path) -> None:
    change_json(directory / "tokenizer_config.json", eos_token=None)


@damage("does not contain the token '<end>'")
def unknown_end_token(directory: Path) -> None:
    change_json(directory / "tokenizer_config.json", eos_token={"content": "<end>"})


@damage(r"generation_config\.json: cannot be read as JSON")
def broken_generation_config(directory: Path) -> None:
    (directory / "generation_config.json").write_text("greedy")


@damage(r"generation_config\.json: temperature must be from 0 to 5, not -1\.0$")
def impossible_temperature(directory: Path) -> None:
    write_json(directory / "generation_config.json", {"temperature": -1.0})


@damage(r"conversational_a\.wav: audio cannot be read")
def unreadable_clip(directory: Path) -> None:
    (directory / "prompts").mkdir()
    (directory / "prompts" / "conversational_a.wav").write_bytes(b"not audio")


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_refused_in_one_line(directory: Path, name: str) -> None:
    breaks, says = DAMAGES[name]
    breaks(directory)
    with pytest.raises(CheckpointError, match=says) as caught:
        load(directory)
    assert "\n" not in str(caught.value)


MEASURE = """
import sys
from pathlib import Path
from vox_serve import LoadOptions
from vox_serve_csm.checkpoint import load_model

def resident(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

small, large = (LoadOptions(Path(path), "cpu", "bfloat16") for path in sys.argv[1:])
load_model(small)  # torch imports another 100 MB when it first builds modules
before = resident("VmRSS:")
model = load_model(large)
print(model.weight_bytes, resident("VmHWM:") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads Linux's own figures")
def test_loading_needs_little_more_memory_than_the_weights(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """It measures the peak above the imports, but not by ru_maxrss, which children inherit."""
    write_checkpoint(
        tmp_path,
        {"backbone_hidden_size": 512},
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=10,
        num_attention_heads=8,
        text_vocab_size=8000,
    )
    assert (tmp_path / "model.safetensors").stat().st_size > 130e6
    command = [sys.executable, "-c", MEASURE, str(checkpoint.directory), str(tmp_path)]
    measured = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    weights, peak = map(int, measured.split())
    assert weights > 65e6
    assert peak < 1.3 * weights
