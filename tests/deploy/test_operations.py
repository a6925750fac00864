"""docs/operations.md and docs/runbook.md name flags, series, panels and files that exist."""

from __future__ import annotations

import re

import pytest

from deploy.grafana.dashboard import ROWS
from tests.deploy.test_grafana import families
from tests.deploy.tools import DEPLOY
from vox_serve.launch import parser

ROOT = DEPLOY.parent
PAGES = {name: (ROOT / "docs" / name).read_text() for name in ("operations.md", "runbook.md")}
FOREIGN = {"--format", "--now", "--pid", "--require-hashes"}
"""Flags of other programs."""


@pytest.mark.parametrize("page", PAGES)
def test_flags_are_flags_of_the_server(page: str) -> None:
    known = {name for action in parser("x")._actions for name in action.option_strings}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGES[page])) <= known | FOREIGN


@pytest.mark.parametrize("page", PAGES)
def test_series_are_exported_by_the_server(page: str) -> None:
    assert set(re.findall(r"`(vox_serve_\w+)`", PAGES[page])) <= families()


def test_panels_are_panels_of_the_dashboard() -> None:
    panels = {panel.title for row in ROWS.values() for panel in row}
    named = re.findall(r"(?<!\*)\*([A-Z][^*\n]+)\*(?!\*)", "\n".join(PAGES.values()))
    assert len(named) > 10
    assert set(named) <= panels


def test_files_exist() -> None:
    for page in PAGES.values():
        for path in re.findall(r"deploy/[\w./*-]+\w", page):
            assert list(ROOT.glob(path)) or (ROOT / path).exists(), path
