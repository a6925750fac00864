"""LoRA adapters: the merged weights, and one-line errors."""

import json

import pytest
import torch
from safetensors.torch import save_file

from vox_serve.errors import CheckpointError
from vox_serve.nn import WeightFiles
from vox_serve.nn.adapter import merging

A, B = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1.0], [-1.0]])


@pytest.fixture
def files(tmp_path):
    tensors = {"q.weight": torch.ones(2, 3, dtype=torch.float16), "head.weight": torch.zeros(2, 2)}
    save_file(tensors, tmp_path / "model.safetensors")
    return WeightFiles(tmp_path / "model.safetensors")


def write(directory, tensors, **config):
    directory.mkdir(exist_ok=True)
    named = {f"base_model.model.{name}": tensor for name, tensor in tensors.items()}
    save_file(named, directory / "adapter_model.safetensors")
    known = {"peft_type": "LORA", "r": 1, "lora_alpha": 2}
    (directory / "adapter_config.json").write_text(json.dumps(known | config))
    return directory


def lora(a=A, b=B):
    return {"q.lora_A.weight": a, "q.lora_B.weight": b}


def test_low_rank_changes_are_added_and_whole_tensors_replace_weights(files, tmp_path):
    adapter = write(tmp_path / "x", lora() | {"head.weight": torch.eye(2)})
    with merging(adapter):
        changed, head = files.read("q.weight"), files.read("head.weight")
    assert changed.dtype == torch.float16
    assert changed.tolist() == [[3.0, 5.0, 7.0], [-1.0, -3.0, -5.0]]
    assert head.tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert files.read("q.weight").tolist() == [[1.0] * 3] * 2


@pytest.mark.parametrize(
    ("tensors", "config", "message"),
    [
        (lora(), {"peft_type": "IA3"}, "only plain LoRA"),
        (lora(), {"use_dora": True}, "one with use_dora"),
        (lora(), {"r": 0}, "r must be a number above 0"),
        (lora(), {"lora_alpha": "x"}, "lora_alpha must be a number"),
        (lora(a=A[:, :2]), {}, r"change of q.weight has shape \[2, 2\].* \[2, 3\]"),
        (lora(b=torch.ones(2, 5)), {}, "the two parts of q.weight do not fit"),
        ({"k.lora_A.weight": A}, {}, "1 tensors do not belong to this model.* k.lora_A.weight"),
    ],
    ids=str.split("kind dora rank alpha shape parts unused"),
)
def test_an_adapter_that_does_not_fit_is_refused(files, tmp_path, tensors, config, message):
    adapter = write(tmp_path / "x", tensors, **config)
    with pytest.raises(CheckpointError, match=message), merging(adapter):
        files.read("q.weight")


def test_a_pickled_adapter_is_not_read(tmp_path):
    adapter = write(tmp_path / "x", lora())
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="safetensors only"), merging(adapter):
        pass
