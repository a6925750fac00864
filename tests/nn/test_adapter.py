"""LoRA adapters: the merged weights, and one-line errors."""

import json

import pytest
import torch
from safetensors.torch import save_file

from vox_serve.errors import CheckpointError
from vox_serve.nn import Linear, WeightFiles, WeightLoader, uninitialised
from vox_serve.nn.adapter import Adapted, beside, merging, rows_with

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


STACKED = {"layer.weight": ["q.weight", "k.weight"]}


def network(tmp_path, adapters, form=None):
    """A layer of two stacked tensors `[2, 3]`, with adapters; and its plain weight."""
    stored = {"q.weight": torch.ones(2, 3), "k.weight": torch.full((2, 3), 2.0)}
    save_file(stored, tmp_path / "stacked.safetensors")
    loader = WeightLoader(WeightFiles(tmp_path / "stacked.safetensors"))
    with uninitialised():
        made = torch.nn.ModuleDict({"layer": Linear(3, 4)})
    with beside(adapters):
        loader.build(made, STACKED, torch.device("cpu"), torch.float32, form)
    return made["layer"], torch.cat([*stored.values()])


@pytest.mark.parametrize("form", [None, "float16", "int8"])
def test_rows_of_a_batch_are_changed_by_their_own_adapters(tmp_path, form):
    """A batch of prompts and of single positions, whatever the base's weights are stored in."""
    deep = {"q.lora_A.weight": torch.rand(2, 3), "q.lora_B.weight": torch.rand(2, 2)}
    other = {"k.lora_A.weight": A.clone(), "k.lora_B.weight": B.clone()}
    one, two = write(tmp_path / "1", deep | other, r=2), write(tmp_path / "2", lora())
    layer, _ = network(tmp_path, [one, two], form)
    assert isinstance(layer, Adapted)
    changes = torch.zeros(3, 4, 3)
    changes[1, :2] = deep["q.lora_B.weight"] @ deep["q.lora_A.weight"]
    changes[1, 2:] = B @ A
    changes[2, :2] = 2 * B @ A
    x, numbers = torch.rand(4, 5, 3), torch.tensor([2, 0, 1, 2])
    expected = layer.base(x) + torch.einsum("boi,bti->bto", changes[numbers], x)
    with rows_with(numbers):
        torch.testing.assert_close(layer(x), expected)
        torch.testing.assert_close(layer(x[:, 0]), expected[:, 0], rtol=1e-2, atol=1e-2)
    with rows_with(None):
        assert torch.equal(layer(x), layer.base(x))


def test_a_broken_adapter_does_not_reach_the_rows_of_others(tmp_path):
    broken = write(tmp_path / "1", lora(a=torch.full_like(A, torch.inf)))
    layer, weight = network(tmp_path, [broken, write(tmp_path / "2", lora())])
    x = torch.rand(3, 3)
    with rows_with(torch.tensor([1, 0, 2])):
        y = layer(x)
    assert not y[0].isfinite().any() or not y[0].isfinite().all()
    assert torch.equal(y[1], (x @ weight.T)[1])
    assert y[2].isfinite().all()


def test_layers_that_no_adapter_changes_are_left_alone(tmp_path):
    unchanged = write(tmp_path / "1", lora(b=torch.zeros(2, 1)))
    layer, _ = network(tmp_path, [unchanged])
    assert type(layer) is Linear
    layer, _ = network(tmp_path, [])
    assert type(layer) is Linear


def test_a_layer_that_is_computed_with_at_load_cannot_have_several(tmp_path):
    layer, _ = network(tmp_path, [write(tmp_path / "1", lora())])
    with pytest.raises(CheckpointError, match=r"q\.weight, which this model computes with"):
        layer(torch.ones(1, 3))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (lora(a=A[:, :2]), r"change of q.weight has shape \[2, 2\].* \[2, 3\]"),
        ({"v.lora_A.weight": A, "v.lora_B.weight": B}, "changes v.lora_B.weight, .* served alone"),
        ({"q.weight": torch.ones(2, 3)}, "changes q.weight, .* --adapter "),
    ],
    ids=str.split("shape unknown whole"),
)
def test_what_cannot_be_served_beside_others_is_refused(tmp_path, tensors, message):
    with pytest.raises(CheckpointError, match=message.replace("served alone", "serve it alone")):
        network(tmp_path, [write(tmp_path / "1", tensors)])


def test_the_zeros_of_layers_without_gradients_are_not_a_change(tmp_path):
    zeros = {"codec.lora_A.weight": A.clone(), "codec.lora_B.weight": torch.zeros(2, 1)}
    layer, _ = network(tmp_path, [write(tmp_path / "1", lora() | zeros)])
    assert isinstance(layer, Adapted)
