"""The engine's OpenMP threads sleep while they wait, unless the user sets something else."""

import os
import subprocess
import sys

import pytest
import torch

from vox_serve.workers.threads import SPIN_COUNT, VARIABLES, let_threads_sleep

CODE = """
from vox_serve.workers.threads import let_threads_sleep
import sys
assert "torch" not in sys.modules
let_threads_sleep()
import torch
torch.ones(2)
"""


@pytest.mark.skipif(
    "openmp" not in torch.__config__.parallel_info().lower() or sys.platform != "linux",
    reason="this torch has no GNU OpenMP",
)
@pytest.mark.parametrize(
    ("users", "expected"),
    [({}, f"GOMP_SPINCOUNT = '{SPIN_COUNT}'"), ({"GOMP_SPINCOUNT": "7"}, "GOMP_SPINCOUNT = '7'")],
)
def test_torch_reads_how_long_threads_spin(users: dict[str, str], expected: str) -> None:
    """OpenMP itself prints the setting."""
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    run = subprocess.run(
        [sys.executable, "-c", CODE],
        env={**environment, "OMP_DISPLAY_ENV": "verbose", **users},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line.strip() for line in run.stderr.splitlines() if "GOMP_SPINCOUNT" in line]
    assert lines
    assert all(expected in line for line in lines)


@pytest.mark.parametrize("name", VARIABLES)
def test_the_users_own_setting_is_kept(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(name, "active")
    let_threads_sleep()
    assert {variable: os.environ.get(variable) for variable in VARIABLES if variable != name} == {
        variable: None for variable in VARIABLES if variable != name
    }
