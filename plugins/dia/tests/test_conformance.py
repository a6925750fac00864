"""Dia passes the conformance suite."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest

from plugins.dia.tests.checkpoints import Reference
from plugins.dia.tests.conftest import load
from vox_serve.model import Model
from vox_serve.testing import ModelConformance


class TestDia(ModelConformance):
    greedy: ClassVar = {"temperature": 0.0, "top_k": 0}
    drawn: ClassVar = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "guidance_scale": 2.0}
    plugin_module = "vox_serve_dia.plugin"
    directory: Path

    @pytest.fixture(autouse=True)
    def _checkpoint(self, reference: Reference) -> None:
        self.directory = reference.directory

    def load(self, device: str) -> Model:
        return load(self.directory, device=device)
