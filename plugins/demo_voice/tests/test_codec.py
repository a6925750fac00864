"""The codec of the shipped checkpoint gives the codes of transformers and of moshi."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import CsmForConditionalGeneration

from plugins.csm.tests.checkpoints import clip, encoded, mimi_window
from vox_serve import LoadOptions
from vox_serve.hub import read_config
from vox_serve.nn.mimi import Mimi
from vox_serve_csm.checkpoint import CODEC_PREFIX, load_model
from vox_serve_demo_voice.plugin import CHECKPOINT


@pytest.fixture(scope="module")
def codec() -> Any:
    return load_model(LoadOptions(CHECKPOINT, "cpu", "float32")).codec


@pytest.fixture(scope="module")
def sound(codec: Mimi) -> torch.Tensor:
    """15 s: a rising tone, noise, and decoded random codes."""
    codec.allocate(1)
    generator = torch.Generator().manual_seed(5)
    frames = torch.randint(codec.codebook_size, (100, 1, codec.frame_width, 1), generator=generator)
    slot = torch.tensor([0])
    spoken = [codec.step(f, slot, torch.tensor([i == 0]))[0][0] for i, f in enumerate(frames)]
    return torch.cat([clip(87), *spoken])


def test_it_encodes_like_transformers(codec: Mimi, sound: torch.Tensor) -> None:
    model: Any = CsmForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32)
    with mimi_window():
        expected = encoded(model.eval().codec_model, sound)
    assert len(expected.unique()) > 100
    assert torch.equal(codec.encode(sound), expected)


def test_it_encodes_like_moshi(codec: Mimi, sound: torch.Tensor) -> None:
    pytest.importorskip("moshi", reason="moshi is not installed: make test-oldest")
    from plugins.csm.tests.moshi_mimi import MoshiEncoder

    stored = load_file(CHECKPOINT / "model.safetensors")
    tensors = {
        name.removeprefix(CODEC_PREFIX): tensor.float()
        for name, tensor in stored.items()
        if name.startswith(CODEC_PREFIX)
    }
    config = read_config(str(CHECKPOINT))["codec_config"]
    moshi = MoshiEncoder(config, tensors, codec.frame_width)
    assert torch.equal(codec.encode(sound), moshi.encode(sound))
