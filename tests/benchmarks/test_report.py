"""The report is made from the results alone, targets included."""

import json
from pathlib import Path

import pytest

from benchmarks.report import _cell, tables
from benchmarks.spread import spread, spreads
from benchmarks.titles import TARGETS, real_time

RESULTS = Path(__file__).parents[2] / "benchmarks/results"


def test_a_spread_is_the_median_the_minimum_and_the_maximum():
    assert spread([3.0, 1.0, 2.0]) == [2.0, 1.0, 3.0]
    assert spreads([{"frame": 1.0}, {"frame": 3.0}]) == {"frame": [2.0, 1.0, 3.0]}


def test_the_real_time_factor_counts_all_rows():
    assert real_time(16, 0.64) == pytest.approx(2.0)


def test_a_figure_that_did_not_vary_is_printed_once():
    assert _cell([2.0, 2.0, 2.0]) == "2"
    assert _cell([0.0091, 0.009, 0.012]) == "0.0091 (0.009 to 0.012)"
    assert _cell(None) == ""


@pytest.mark.parametrize(
    ("frame", "share", "met"), [(0.59, 0.1, True), (0.61, 0.1, False), (0.9, 0.8, True)]
)
def test_a_frame_meets_its_target_in_seconds_or_by_the_floor(frame, share, met):
    target = next(each for each in TARGETS if each.name.startswith("full size, float16"))
    column = "vox_serve_float16"
    result = {
        "batches": {"1": {column: {"frame": [frame, frame, frame]}}},
        "floor": {column: {"share": share}},
    }
    assert target.read(result)[1] is met


def test_an_underrun_or_a_lost_request_misses_the_target():
    target = next(each for each in TARGETS if "underrun" in each.name)
    loop = {"load": 8, "underruns": 0, "ok": 9, "requests": 9}
    assert target.read({"served": {"closed_loop": [loop]}})[1]
    assert not target.read({"served": {"closed_loop": [loop | {"underruns": 1}]}})[1]
    assert not target.read({"served": {"closed_loop": [loop | {"ok": 8}]}})[1]


@pytest.mark.parametrize("file", sorted(RESULTS.glob("csm-cpu-*.json")), ids=lambda f: f.name)
def test_stored_results_make_tables(file):
    found = json.loads(file.read_text(encoding="utf-8"))
    if "command" not in found:
        pytest.skip("measured by an earlier benchmark, with other figures")
    assert "| aimed at |" in tables(found)
