"""With any configuration, loading ends quickly, either with a model or with a one-line error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plugins.csm.tests.checkpoints import write_checkpoint
from vox_serve.config import EngineConfig
from vox_serve.engine.load import load_engine
from vox_serve.plugins import load_plugins
from vox_serve.testing.configs import check_damaged


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_wrong_sizes_are_refused_in_one_line(tmp_path: Path, every: bool) -> None:
    directory = tmp_path / "model"
    write_checkpoint(directory)
    plugins = load_plugins()
    settings = EngineConfig(model=str(directory), max_batch_size=2)
    file = directory / "config.json"
    config = json.loads(file.read_text())
    refused = check_damaged(file, config, lambda: load_engine(settings, plugins), every=every)
    assert refused > 500 if every else refused > 40
