"""Fixtures: a small checkpoint that is written once, and engines that run it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plugins.dia.tests.checkpoints import Reference, write_checkpoint
from vox_serve import LoadOptions
from vox_serve.config import EngineConfig
from vox_serve.engine.engine import Engine
from vox_serve_dia.checkpoint import load_model
from vox_serve_dia.model import DiaModel

MakeEngine = Callable[..., Engine]


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return write_checkpoint(tmp_path_factory.mktemp("dia"), seed=4)


@pytest.fixture
def make_engine(reference: Reference) -> MakeEngine:
    def make(**settings: Any) -> Engine:
        config = EngineConfig(str(reference.directory), **{"max_batch_size": 4, **settings})
        return Engine(load(reference.directory), config)

    return make


def load(directory: Path, device: str = "cpu") -> DiaModel:
    return load_model(LoadOptions(directory, device, "float32"))
