"""The number of devices from a simulation, and the fit of a simulation to a measured run."""

from __future__ import annotations

import json
from pathlib import Path

import attrs
import pytest

from tests.plan.test_simulate import COSTS, SITE
from vox_serve.bench.config import BenchConfig, Target
from vox_serve.bench.figures import figures
from vox_serve.bench.load import plan
from vox_serve.bench.report import document
from vox_serve.cli import main
from vox_serve.errors import ConfigError
from vox_serve.plan.capacity import calibrated, capacity, devices, meets
from vox_serve.plan.config import PlanConfig
from vox_serve.plan.costs import Costs
from vox_serve.plan.simulate import Site, simulate

TEXTS = ["Good morning.", "Please hold the line while I look for your order."]


def test_the_capacity_is_the_highest_rate_that_meets_the_target() -> None:
    config = PlanConfig(demand=1.0, duration=60.0, first_audio=0.5)
    found = capacity(SITE, config, TEXTS)
    assert meets(found.figures, config)
    load = config.load((found.rate * 1.2,))
    assert not meets(figures(simulate(SITE, plan(load)[0], load, TEXTS)), config)


def test_a_target_that_cannot_be_met_is_reported() -> None:
    with pytest.raises(ConfigError, match=r"first audio p95 0\.1\d s, viable 100"):
        capacity(SITE, PlanConfig(demand=1.0, duration=60.0, first_audio=0.05), TEXTS)


def test_devices_are_rounded_up_after_the_headroom() -> None:
    assert devices(100.0, 10.0, 0.0) == 10
    assert devices(100.0, 10.0, 0.3) == 15


def test_a_simulation_is_fitted_to_a_run() -> None:
    """The run is a simulation of a slower device, so the result is known."""
    slower = attrs.evolve(SITE, slowdown=1.5, overhead=0.04)
    fitted = calibrated(SITE, measured(slower))
    assert fitted.slowdown == pytest.approx(1.5, rel=0.05)
    assert fitted.overhead == pytest.approx(0.04, abs=0.01)


def measured(site: Site) -> dict[str, object]:
    config = BenchConfig(concurrency=(1,), duration=30.0)
    run = simulate(site, plan(config)[0], config, TEXTS)
    return document(Target("http://nowhere/generate", "generate"), config, TEXTS, [run])


@pytest.mark.parametrize(
    "content", [{}, {"settings": {}, "runs": []}, {"settings": 3, "runs": [1], "texts": []}]
)
def test_other_json_is_not_accepted_as_a_run(content: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="calibrate"):
        calibrated(SITE, content)


def test_costs_survive_a_file(tmp_path: Path) -> None:
    file = tmp_path / "costs.json"
    COSTS.write(file)
    assert Costs.read(file) == COSTS


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": []},
        {"steps": [attrs.asdict(COSTS.step(2))]},
        {"prepare": -1.0},
        {"speech": 3},
        {"colour": "red"},
    ],
)
def test_files_that_are_not_costs_are_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    file = tmp_path / "costs.json"
    COSTS.write(file)
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(ConfigError, match=r"costs: .*costs\.json"):
        Costs.read(file)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "--rate, --concurrency, --demand or --measure"),
        ({"rate": (1.0,), "concurrency": (1,)}, "not both"),
        ({"rate": (1.0,), "long_share": 1.5}, "long_share"),
        ({"rate": (1.0,), "slots": 0}, "slots"),
        ({"rate": (1.0,), "max_queue": -1}, "max_queue"),
        ({"demand": 0.0}, "demand"),
        ({"demand": 1.0, "first_audio": 0.0}, "first_audio"),
        ({"demand": 1.0, "viable": 1.5}, "viable"),
        ({"demand": 1.0, "headroom": 1.0}, "headroom"),
        ({"demand": 1.0, "price": -1.0}, "price"),
        ({"rate": (-1.0,)}, "rate"),
    ],
)
def test_bad_settings_name_the_field(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        PlanConfig(**settings)  # type: ignore[arg-type]  # fields of many types


def test_the_command_prints_a_table_and_an_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    costs, run, answer = (tmp_path / name for name in ("costs.json", "bench.json", "plan.json"))
    COSTS.write(costs)
    run.write_text(json.dumps(measured(attrs.evolve(SITE, slowdown=1.5))))
    flags = ["--rate", "1", "2", "--duration", "30", "--demand", "50", "--price", "2"]
    flags += ["--long-share", "0.1", "--calibrate", str(run), "--json", str(answer)]
    assert main(["plan", str(costs), *flags]) == 0
    printed = capsys.readouterr().out
    assert "slowdown 1.5" in printed
    assert "first audio p95, ms" in printed
    assert "50 requests/s with 30 % kept free" in printed
    assert "per hour of audio" in printed
    found = json.loads(answer.read_text())
    assert [each["load"] for each in found["runs"]] == [1, 2]
    assert found["capacity"]["rate"] > 0


def test_more_slots_than_were_measured_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    COSTS.write(tmp_path / "costs.json")
    assert main(["plan", str(tmp_path / "costs.json"), "--rate", "1", "--slots", "5"]) == 2
    assert "slots: steps were measured up to a batch of 4" in capsys.readouterr().err


def test_a_model_can_be_measured_and_then_planned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "costs.json"
    flags = ["--measure", "--model", "demo", "--slots", "2", "--rate", "0.5", "--duration", "20"]
    assert main(["plan", str(file), *flags]) == 0
    costs = Costs.read(file)
    assert [step.batch for step in costs.steps] == [1, 2]
    assert all(min(s.emit, s.codec, s.advance + s.advance_position) > 0 for s in costs.steps)
    assert costs.prefill.at(100) > 0
    assert 0.02 < costs.speech.each < 0.12  # seconds per character of English
    assert "viable, % of requests" in capsys.readouterr().out
