"""Checkpoint directories: which ones load, and the one-line errors of the others."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.utils import filter_repo_objects

from plugins.orpheus.tests.checkpoints import HEAD, SNAC_CONFIG, VOCAB, reference_tokens, text_ids
from plugins.orpheus.tests.conftest import Checkpoint, MakeEngine, load, spoken_alone
from tests.checkpoint_files import change_json, change_tensors, read_tensors, write_json
from vox_serve import CheckpointError, LoadOptions
from vox_serve_orpheus import convert_snac
from vox_serve_orpheus.plugin import vox_serve_models

SPEC = vox_serve_models()[0]
PUBLISHED = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 156940}
MODEL, SNAC_FILE = "model.safetensors", "snac/model.safetensors"


@pytest.mark.parametrize(
    ("changes", "fits"),
    [
        ({}, True),
        ({"vocab_size": 156938}, True),
        ({"vocab_size": 157184}, True),  # padded to a multiple of 256
        ({"vocab_size": 128256}, False),  # any Llama 3
        ({"vocab_size": 156937}, False),
        ({"vocab_size": None}, False),
        ({"vocab_size": 300, "vox_serve_model": "orpheus"}, True),
        ({"model_type": "csm"}, False),
    ],
)
def test_orpheus_is_distinguished_from_other_llamas(changes: dict[str, object], fits: bool) -> None:
    assert SPEC.matches(PUBLISHED | changes) is fits


def test_only_needed_files_are_downloaded() -> None:
    held = [
        "config.json",
        "tokenizer.json",
        "model-00001-of-00004.safetensors",
        "model.safetensors.index.json",
        "snac/config.json",
        "snac/model.safetensors",
    ]
    others = ["README.md", "optimizer.bin", "pytorch_model_fsdp_0.bin", "consolidated.pth"]
    taken = filter_repo_objects([*held, *others], allow_patterns=list(SPEC.files(PUBLISHED)))
    assert list(taken) == held


def test_a_sharded_checkpoint_loads(
    checkpoint: Checkpoint, directory: Path, make_engine: MakeEngine
) -> None:
    (directory / MODEL).unlink()
    checkpoint.model.save_pretrained(directory, max_shard_size="200KB")
    assert len(list(directory.glob("model-*.safetensors"))) > 1
    expected = reference_tokens(checkpoint.model, text_ids("hi"), 10)
    assert spoken_alone(make_engine(directory), "hi", tokens=10)[0] == expected


def test_a_context_too_long_for_a_cache_is_shortened(directory: Path) -> None:
    change_json(directory / "config.json", max_position_embeddings=131072)
    assert load(directory).max_positions == 8192


def test_the_flat_layout_of_snac_loads(directory: Path) -> None:
    (directory / SNAC_FILE).rename(directory / "snac.safetensors")
    (directory / "snac/config.json").rename(directory / "snac_config.json")
    (directory / "snac").rmdir()
    assert load(directory).codec.sample_rate == 24000


def drop(name: str) -> Callable[[Path], None]:
    return lambda directory: (directory / name).unlink()


def config(**changes: Any) -> Callable[[Path], None]:
    return lambda directory: change_json(directory / "config.json", **changes)


def tensors(name: str = MODEL, **changes: torch.Tensor | None) -> Callable[[Path], None]:
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    return lambda directory: change_tensors(directory / name, dotted)


def tokens(**changes: Any) -> Callable[[Path], None]:
    return lambda directory: change_json(directory / "tokenizer.json", **changes)


def write(name: str, text: str) -> Callable[[Path], object]:
    return lambda directory: (directory / name).write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (drop(MODEL), "no weights; it must contain one of"),
        (drop("tokenizer.json"), "tokenizer.json: this file is missing"),
        (drop("tokenizer_config.json"), "tokenizer_config.json: this file is missing"),
        (write("tokenizer.json", "{"), "tokenizer.json: cannot be read"),
        (write("tokenizer_config.json", "{}"), "has no bos_token"),
        (tokens(added_tokens=[]), "does not contain the token '<|begin_of_text|>'"),
        (config(vocab_size=VOCAB - 3), "vocab_size is 379, but the tokenizer's last code has"),
        (config(vocab_size=VOCAB + 1), "does not fit the configuration"),
        (config(attention_bias=True), "attention_bias True is not supported"),
        (config(hidden_size=0), "hidden_size must be a whole number from 1 to 65536, not 0"),
        (tensors(lm_head__weight=None), f"tensor {HEAD} is missing"),
        (tensors(spare=torch.zeros(1)), "1 tensors do not belong"),
        (drop(SNAC_FILE), "SNAC is missing; `python -m vox_serve_orpheus.convert_snac"),
        (drop("snac/config.json"), "SNAC is missing"),
        (write("snac/config.json", "["), "config.json: cannot be read as JSON"),
        (write("snac/config.json", "[]"), "not a JSON object"),
        (write("snac/config.json", "{}"), "vq_strides None is not supported"),
        (write(SNAC_FILE, "x"), "truncated, or not a safetensors file"),
        (
            tensors(SNAC_FILE, quantizer__quantizers__0__codebook__weight=None),
            "tensor quantizer.quantizers.0.codebook.weight is missing",
        ),
        (
            tensors(SNAC_FILE, quantizer__quantizers__0__codebook__weight=torch.zeros(2)),
            "has shape [2], which does not fit the configuration's [16, 4]",
        ),
        (
            tensors(SNAC_FILE, spare=torch.zeros(1)),
            "1 tensors do not belong to this model, the first is spare",
        ),
    ],
)
def test_a_damaged_checkpoint_is_refused_in_one_line(
    directory: Path, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(directory)
    with pytest.raises(CheckpointError) as caught:
        load(directory)
    text = str(caught.value)
    assert message in text
    assert "\n" not in text


def test_codes_without_consecutive_ids_are_refused(directory: Path) -> None:
    path = directory / "tokenizer.json"
    path.write_text(path.read_text().replace('"<custom_token_121>"', '"<other>"'))
    path.write_text(path.read_text().replace('"<custom_token_122>"', '"<custom_token_121>"'))
    with pytest.raises(CheckpointError, match="codes are not consecutive"):
        load(directory)


def test_weights_may_be_bfloat16(directory: Path) -> None:
    model = SPEC.load(LoadOptions(directory, "cpu", "bfloat16"))
    assert model.dtype == torch.bfloat16
    held = read_tensors(directory / MODEL).values()
    network = sum(tensor.numel() for tensor in held) * 2
    assert network < model.weight_bytes < network + 10_000_000  # the codec is small


@pytest.fixture
def pickled(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    """SNAC in the format of the hub."""
    source = tmp_path / "snac_24khz"
    source.mkdir()
    torch.save(checkpoint.codec.state_dict(), source / "pytorch_model.bin")
    write_json(source / "config.json", SNAC_CONFIG)
    return source


def test_snac_is_written_to_the_downloaded_checkpoint(
    directory: Path, pickled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(directory / "snac")

    def download(repo: str, allow_patterns: list[str]) -> str:
        assert (repo, allow_patterns) == ("org/orpheus", ["config.json"])
        return str(directory)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert convert_snac.main(["org/orpheus", "--source", str(pickled)]) == 0
    assert (directory / SNAC_FILE).is_file()


def test_a_missing_directory_for_snac_is_reported(
    pickled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "mistyped"
    assert convert_snac.main([str(missing), "--source", str(pickled)]) == 1
    assert capsys.readouterr().err == f"{missing}: no such directory, and not a hub id\n"
    assert not missing.exists()


def test_snac_is_converted(
    directory: Path, pickled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = read_tensors(directory / SNAC_FILE)
    shutil.rmtree(directory / "snac")
    assert convert_snac.main([str(directory), "--source", str(pickled)]) == 0
    assert capsys.readouterr().out == f"wrote {directory / 'snac'}\n"
    after = read_tensors(directory / SNAC_FILE)
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())
    assert not any(name.startswith("encoder.") for name in after)
    load(directory)


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("code of the pickle ran",)


@pytest.mark.parametrize(
    "content",
    [pickle.dumps(Trap(), protocol=2), b"", b"nonsense", pickle.dumps({"a": 1}, protocol=2)],
    ids=["code", "empty", "nonsense", "other"],
)
def test_a_bad_pickle_is_refused_in_one_line(
    directory: Path, pickled: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    (pickled / "pytorch_model.bin").write_bytes(content)
    assert convert_snac.main([str(directory), "--source", str(pickled)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "cannot be read as SNAC" in printed.err
    assert printed.err.count("\n") == 1
