"""A fine-tune as a PEFT adapter is merged at load, and speaks like the merged reference."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from plugins.csm.tests.checkpoints import reference_frames, text_ids
from plugins.csm.tests.conftest import PLUGINS, Checkpoint, record, request
from tests.conftest import run_engine
from vox_serve import CheckpointError
from vox_serve.config import EngineConfig
from vox_serve.engine.load import load_engine
from vox_serve.plugins import load_plugins

FRAMES, RANK, ALPHA = 20, 4, 10
TARGETS = ("q_proj", "o_proj", "down_proj")


def write_adapter(directory: Path, model: Any) -> None:
    """Write a random adapter in PEFT's format, and apply it to `model`."""
    generator = torch.Generator().manual_seed(3)
    tensors = {}
    for name, layer in model.named_modules():
        if name.endswith(TARGETS) and "codec" not in name:
            rows, columns = layer.weight.shape
            a = 0.3 * torch.randn(RANK, columns, generator=generator)
            b = 0.3 * torch.randn(rows, RANK, generator=generator)
            tensors[f"base_model.model.{name}.lora_A.weight"] = a
            tensors[f"base_model.model.{name}.lora_B.weight"] = b
            layer.weight.data += b @ a * ALPHA / RANK
    assert len(tensors) > 8
    directory.mkdir()
    save_file(tensors, directory / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA}
    (directory / "adapter_config.json").write_text(json.dumps(config))


def spoken(checkpoint: Checkpoint, adapter: Path | None) -> list[tuple[int, ...]]:
    config = EngineConfig(
        str(checkpoint.directory),
        "cpu",
        dtype="float32",
        max_batch_size=1,
        adapter=str(adapter or ""),
        plugins=PLUGINS,
    )
    engine, _ = load_engine(config, load_plugins(PLUGINS))
    frames = record(engine)
    engine.add(request("x", "hello", frames=FRAMES))
    run_engine(engine)
    return frames["x"]


def test_it_speaks_like_the_merged_reference(checkpoint: Checkpoint, tmp_path: Path) -> None:
    changed = copy.deepcopy(checkpoint.reference)
    write_adapter(tmp_path / "adapter", changed)
    expected = reference_frames(changed, text_ids("hello"), FRAMES)
    assert spoken(checkpoint, tmp_path / "adapter") == expected
    assert spoken(checkpoint, None) != expected


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of peft about transformers
def test_it_reads_the_files_of_peft(checkpoint: Checkpoint, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(5)
    config = peft.LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        target_modules=r"(?!codec).*\.(q_proj|v_proj|gate_proj)",
        init_lora_weights=False,
    )
    model = peft.get_peft_model(copy.deepcopy(checkpoint.reference), config)
    model.save_pretrained(tmp_path / "adapter")
    expected = reference_frames(model.merge_and_unload(), text_ids("hello"), FRAMES)
    assert spoken(checkpoint, tmp_path / "adapter") == expected


def test_an_adapter_of_another_model_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    write_adapter(tmp_path / "adapter", copy.deepcopy(checkpoint.reference))
    tensors = {"base_model.model.talker.x.lora_A.weight": torch.ones(1, 1)}
    save_file(tensors, tmp_path / "adapter/adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="1 tensors do not belong to this model"):
        spoken(checkpoint, tmp_path / "adapter")
