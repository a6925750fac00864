"""Mimi's codes compared with those of moshi, if it is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import MimiConfig, MimiModel

from plugins.csm.tests.test_mimi import CODEBOOKS, SMALL, VARIANTS, clip, load, randomise

pytest.importorskip("moshi", reason="moshi is not installed: make test-oldest")
from plugins.csm.tests.moshi_mimi import MoshiEncoder  # needs moshi


@pytest.mark.parametrize("changes", VARIANTS, ids=lambda changes: " ".join(changes) or "small")
def test_mimi_encodes_like_moshi(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = SMALL | changes
    reference = MimiModel(MimiConfig(**config)).eval()
    with torch.no_grad():
        randomise(reference)
    reference.save_pretrained(tmp_path)
    codec = load(tmp_path, config)
    moshi = MoshiEncoder(config, load_file(tmp_path / "model.safetensors"), CODEBOOKS)
    pcm = clip(50 * codec.frame_size)  # longer than the window and than a piece
    assert torch.equal(codec.encode(pcm), moshi.encode(pcm))
