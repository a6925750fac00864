"""Loading safetensors into parameters: shards, missing tensors, unused tensors."""

import json

import pytest
import torch
from safetensors.torch import save_file

from vox_serve.errors import CheckpointError
from vox_serve.nn import WeightFiles, WeightLoader


@pytest.fixture
def sharded(tmp_path):
    save_file({"a": torch.ones(2, 3)}, tmp_path / "one.safetensors")
    save_file({"b": torch.full((1, 3), 2.0), "c": torch.zeros(4)}, tmp_path / "two.safetensors")
    index = tmp_path / "x.safetensors.index.json"
    files = {"a": "one.safetensors", "b": "two.safetensors", "c": "two.safetensors"}
    index.write_text(json.dumps({"weight_map": files}))
    return index


def test_tensors_are_stacked_and_converted(sharded):
    loader = WeightLoader(WeightFiles(sharded))
    parameter = torch.empty(3, 3, dtype=torch.bfloat16)
    loader.fill(parameter, ["a", "b"])
    assert parameter[:, 0].tolist() == [1.0, 1.0, 2.0]
    with pytest.raises(CheckpointError, match=r"1 tensors do not belong to this model.* c"):
        loader.finish()
    loader.ignore("c")
    loader.finish()


@pytest.mark.parametrize(
    ("shape", "names", "message"),
    [
        ((2, 4), ["a"], r"tensor a has shape \[2, 3\].* \[2, 4\]"),
        ((3, 3), ["a"], r"tensor a has shape \[2, 3\].* \[3, 3\]"),
        ((1, 3), ["a"], r"tensor a has shape"),
        ((2, 3), ["lost"], "tensor lost is missing"),
    ],
)
def test_shapes_and_names_must_fit(sharded, shape, names, message):
    with pytest.raises(CheckpointError, match=message):
        WeightLoader(WeightFiles(sharded)).fill(torch.empty(shape), names)


def test_a_tensor_may_be_read_by_its_shape(sharded):
    loader = WeightLoader(WeightFiles(sharded))
    assert loader.read("a", (2, 3)).tolist() == [[1.0] * 3] * 2
    assert loader.unused == {"b", "c"}
    with pytest.raises(CheckpointError, match=r"tensor b has shape \[1, 3\].* \[3\]"):
        loader.read("b", [3])


def test_broken_files_are_named(sharded, tmp_path):
    (tmp_path / "one.safetensors").write_bytes(b"\x10")
    with pytest.raises(CheckpointError, match=r"one.safetensors: truncated"):
        WeightFiles(sharded)
    (tmp_path / "one.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"one.safetensors: this file is missing"):
        WeightFiles(sharded)
    save_file({"other": torch.ones(1)}, tmp_path / "one.safetensors")
    with pytest.raises(CheckpointError, match=r"one.safetensors: tensor a is missing"):
        WeightFiles(sharded)
    sharded.write_text("{}")
    with pytest.raises(CheckpointError, match="not an index of safetensors"):
        WeightFiles(sharded)


def test_an_index_cannot_point_outside_its_directory(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "secret.safetensors")
    inner = tmp_path / "inner"
    inner.mkdir()
    index = inner / "x.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    with pytest.raises(CheckpointError, match="this file is missing"):
        WeightFiles(index)
