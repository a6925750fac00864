"""The GPU suite on a CPU: its arithmetic, its time budget, and a run with a tiny model."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import suite as gpu
from benchmarks.gpu.bench import SMOKE, Bench, Skipped
from benchmarks.gpu.profile import shares
from benchmarks.gpu.report import report
from benchmarks.gpu.streams import largest
from benchmarks.gpu.timing import Marks, bandwidth, spread
from tests.conftest import until

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("limit", [0, 1, 63, 64, 65, 300, 511, 512, 746])
@pytest.mark.parametrize("step", [1, 16])
def test_the_largest_count_is_found(limit: int, step: int):
    tried: list[int] = []

    def fits(count: int) -> bool:
        tried.append(count)
        return count <= limit

    count, whole = largest(fits, 64, 746, step, lambda: True)
    assert whole
    assert limit - step < count <= limit
    assert len(set(tried)) == len(tried) < 16
    assert all(0 < each <= 746 for each in tried)


def test_a_search_that_runs_out_of_time_says_so():
    answers = iter([True, True, False])
    assert largest(lambda count: True, 64, 746, 1, lambda: next(answers)) == (128, False)


def test_shares_of_a_profile():
    found = shares([("a", 0, 10), ("b", 5, 20), ("a", 30, 40)], frames=2)  # microseconds
    assert found["kernels_per_frame"] == 1.5
    assert found["ms_per_frame"] == 0.02
    assert found["idle_share"] == 0.25
    assert [row["kernel"] for row in found["top"]] == ["a", "b"]


def test_time_on_a_cpu():
    marks = Marks(torch.device("cpu"))
    for _ in range(3):
        marks.mark()
        time.sleep(0.002)
    spans = marks.spans()
    assert len(spans) == 2
    assert min(spans) >= 0.002
    assert spread([0.003, 0.001, 0.002]) == {"median": 2.0, "least": 1.0, "most": 3.0}
    assert bandwidth(torch.device("cpu"), 2**16, repeats=2)["best"] > 0


def test_a_part_that_fails_or_is_skipped_is_kept_and_the_next_one_runs(tmp_path: Path):
    bench = Bench(SMOKE, tmp_path, tmp_path / "result.json", seconds=60)

    def fail() -> None:
        raise ValueError("it broke\nand more")

    def skip() -> None:
        raise Skipped("not here")

    assert bench.part("bad", fail) is None
    assert bench.part("skipped", skip) is None
    assert bench.part("good", lambda: {"figure": 1}) == {"figure": 1}
    written = json.loads((tmp_path / "result.json").read_text())
    assert written == {
        "bad": {"failed": "ValueError: it broke"},
        "failures": ["bad: ValueError: it broke"],
        "skipped": {"skipped": "not here"},
        "good": {"figure": 1},
    }


def test_sections_that_no_longer_fit_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folders = ["--output", str(tmp_path / "out"), "--scratch", str(tmp_path / "scratch")]
    assert gpu.main(["--smoke", "--budget", "0", *folders]) == 0
    document = json.loads((tmp_path / "out/csm-unknown-smoke.json").read_text())
    assert list(document["sections"]) == [section.name for section in gpu.SECTIONS]
    assert {section["outcome"] for section in document["sections"].values()} == {"skipped"}
    assert "| peers | skipped |  | needs some 60 s, 0 s are left |" in capsys.readouterr().out


def test_a_section_that_hangs_is_ended_and_its_results_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The results that it wrote are read; its process and that process's children are killed."""
    python, started = tmp_path / "python", tmp_path / "started"
    result = tmp_path / "frames.json"
    python.write_text(
        f"#!/bin/sh\nsleep 60 &\necho '{{\"cell\": 1}}' > {result}\necho $! > {started}\nwait\n"
    )
    python.chmod(0o755)
    monkeypatch.setattr(gpu.sys, "executable", str(python))
    folders = ["--output", str(tmp_path / "out"), "--scratch", str(tmp_path)]
    suite = gpu.Suite(gpu._parser().parse_args(["--smoke", "--budget", "3", *folders]))
    suite.run(gpu.Section("frames", "frames", "run", 2), later=0)
    section = suite.document["sections"]["frames"]
    assert section["outcome"] == "failed"
    assert section["reason"].startswith("cut after ")
    assert section["result"] == {"cell": 1}
    status = Path(f"/proc/{started.read_text().strip()}/stat")
    # Killed, though perhaps still a zombie.
    until(lambda: not status.exists() or status.read_text().split()[2] == "Z")
    assert "cut after" in report(suite.document)


@pytest.mark.slow  # each section has a process that loads torch: over a minute on two cores
@pytest.mark.timeout(400)
def test_the_smoke_run_runs_every_section(tmp_path: Path):
    command = [sys.executable, "-m", "benchmarks.gpu", "--smoke", "--budget", "380"]
    command += ["--output", str(tmp_path), "--scratch", str(tmp_path / "scratch")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    document = json.loads((tmp_path / "csm-cpu-smoke.json").read_text())
    sections = document["sections"]
    assert {section["outcome"] for section in sections.values()} == {"done"}
    assert sections["correctness"]["result"]["parity"]["frames"] == SMOKE.parity_frames
    assert sections["streams"]["result"]["largest"]["found_whole"]
    assert sections["http"]["result"]["poisson"]["ok"] == 3
    assert "vox_serve, batch 1" in sections["peers"]["result"]
    assert (tmp_path / "csm-cpu-smoke.md").read_text().startswith("# CSM on cpu")
