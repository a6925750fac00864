"""With any configuration, loading ends quickly, either with a model or with a one-line error."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from plugins.dia.tests.checkpoints import Reference
from vox_serve.config import EngineConfig
from vox_serve.engine.load import load_engine
from vox_serve.plugins import load_plugins
from vox_serve.testing.configs import check_damaged


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_wrong_sizes_are_refused_in_one_line(
    reference: Reference, tmp_path: Path, every: bool
) -> None:
    directory = Path(shutil.copytree(reference.directory, tmp_path / "model"))
    plugins = load_plugins(["vox_serve_dia.plugin"])
    settings = EngineConfig(model=str(directory), max_batch_size=2)
    refused = 0
    for name in ("config.json", "dac/config.json"):
        file = directory / name
        config = json.loads(file.read_text())
        refused += check_damaged(file, config, lambda: load_engine(settings, plugins), every=every)
    assert refused > 200 if every else refused > 15
