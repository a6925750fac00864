"""The dashboard can be imported unmodified, and queries series that exist."""

from __future__ import annotations

import json
import os
import re
from typing import Any

import pytest

from deploy.grafana import dashboard
from vox_serve.metrics import Metrics

BOARD = json.loads(dashboard.FILE.read_text())
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
TARGETS = [(panel["title"], target) for panel in PANELS for target in panel["targets"]]
SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def families() -> set[str]:
    registry = Metrics("x").registry
    registry.watch_process("x", "server", os.getpid())
    return set(re.findall(r"^# HELP (\S+)", registry.exposition().decode(), re.MULTILINE))


def test_the_file_is_generated_from_the_table() -> None:
    assert dashboard.FILE.read_text() == dashboard.text(), "run: python -m deploy.grafana.dashboard"


def test_it_can_be_imported_unmodified() -> None:
    assert BOARD["id"] is None
    assert BOARD["uid"] == "vox-serve"
    assert "__inputs" not in BOARD
    first, model = BOARD["templating"]["list"]
    assert (first["name"], first["type"], first["query"]) == (
        "datasource",
        "datasource",
        "prometheus",
    )
    assert (model["name"], model["datasource"]) == ("model", SOURCE)
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(set(ids)) == len(ids)


def test_every_panel_uses_the_chosen_source_and_has_a_description() -> None:
    assert len(PANELS) > 20
    for panel in PANELS:
        assert panel["datasource"] == SOURCE, panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert all(target["datasource"] == SOURCE for target in panel["targets"])


@pytest.mark.parametrize(("title", "target"), TARGETS)
def test_every_expression_uses_the_variables_and_existing_series(
    title: str, target: dict[str, Any]
) -> None:
    expression = target["expr"]
    names = re.findall(r"\bvox_serve_\w+", expression)
    selectors = re.findall(r"vox_serve_\w+\{([^}]*)\}", expression)
    assert len(selectors) == len(names)
    assert all('model=~"$model"' in selector for selector in selectors)
    windows = re.findall(r"rate\(.*?\[(.*?)\]", expression)
    assert set(windows) <= {"$__rate_interval"}
    assert {re.sub(r"_(bucket|count|sum)$", "", name) for name in names} <= families()


def test_no_panels_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
