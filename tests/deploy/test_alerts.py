"""The rules are valid; each alert fires when it should, only then, and is in the runbook."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.deploy.tools import DEPLOY, needs_prometheus, passes, run

PROMETHEUS = DEPLOY / "prometheus"
RULES = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"][0]["rules"]
ALERTS = [rule["alert"] for rule in RULES]
CASES = yaml.safe_load((PROMETHEUS / "alerts_test.yml").read_text())["tests"]
RUNBOOK = (DEPLOY.parent / "docs" / "runbook.md").read_text()


@needs_prometheus
def test_promtool_accepts_configuration_and_rules() -> None:
    passes("promtool", "check", "config", PROMETHEUS / "prometheus.yml")
    passes("promtool", "check", "rules", PROMETHEUS / "rules.yml", PROMETHEUS / "alerts.yml")


@needs_prometheus
def test_every_case_passes() -> None:
    passes("promtool", "test", "rules", PROMETHEUS / "alerts_test.yml")


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_has_a_firing_and_a_silent_case(alert: str) -> None:
    found = {
        bool(check["exp_alerts"])
        for case in CASES
        for check in case["alert_rule_test"]
        if check["alertname"] == alert
    }
    assert found == {True, False}


@needs_prometheus
@pytest.mark.parametrize("always", [True, False])
def test_the_cases_detect_alerts_that_always_or_never_fire(always: bool, tmp_path: Path) -> None:
    for name in ("rules.yml", "alerts_test.yml"):
        (tmp_path / name).write_text((PROMETHEUS / name).read_text())
    broken = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())
    for rule in broken["groups"][0]["rules"]:
        rule["expr"] = "vector(1)" if always else "vector(1) > 2"
    (tmp_path / "alerts.yml").write_text(yaml.safe_dump(broken))
    done = run("promtool", "test", "rules", tmp_path / "alerts_test.yml")
    assert done.returncode != 0
    kind = "is silent" if always else "fires"
    unnoticed = [alert for alert in ALERTS if f"name: {alert} {kind}:" not in done.stdout]
    assert unnoticed == []


@pytest.mark.parametrize("rule", RULES, ids=ALERTS)
def test_the_runbook_says_of_every_alert_what_to_do(rule: dict) -> None:
    name = rule["alert"]
    assert rule["annotations"]["runbook"] == f"docs/runbook.md#{name.lower()}"
    section = RUNBOOK.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
    for part in ("**Means**", "**Look**", "**Do**"):
        assert part in section, name


def test_the_runbook_names_only_existing_alerts() -> None:
    assert set(re.findall(r"^## (VoxServe\w+)$", RUNBOOK, re.MULTILINE)) == set(ALERTS)
