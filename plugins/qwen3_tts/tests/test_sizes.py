"""With any configuration, loading ends quickly, either with a model or with a one-line error."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from vox_serve.config import EngineConfig
from vox_serve.engine.load import load_engine
from vox_serve.plugins import load_plugins
from vox_serve.testing.configs import check_damaged


@pytest.mark.slow
def test_wrong_sizes_are_refused_in_one_line(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    directory = Path(shutil.copytree(checkpoints["base"], tmp_path / "model"))
    plugins = load_plugins(["vox_serve_qwen3_tts.plugin"])
    settings = EngineConfig(model=str(directory), max_batch_size=2)
    refused = 0
    for name in ("config.json", "speech_tokenizer/config.json"):
        file = directory / name
        config = json.loads(file.read_text())
        refused += check_damaged(file, config, lambda: load_engine(settings, plugins))
    assert refused > 400
