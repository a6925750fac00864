"""The documentation shows the stored figures of one and two replicas."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.picture import draw_replicas
from benchmarks.replicas import table

ROOT = Path(__file__).parents[2]
FOUND = json.loads((ROOT / "benchmarks/results/replicas-cpu-2-cores.json").read_text())


def test_the_table_of_the_page_is_made_from_the_stored_figures():
    assert table(FOUND) in (ROOT / "docs/scaling.md").read_text()


def test_any_number_of_replicas_can_be_drawn(tmp_path: Path):
    more = [{**run, "replicas": 4} for run in FOUND["load"] if run["replicas"] == 2]
    draw_replicas({**FOUND, "load": [*FOUND["load"], *more]}, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
