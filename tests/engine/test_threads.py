"""The engine's OpenMP threads sleep where they wait, unless the user wants it otherwise."""

import os
import subprocess
import sys

import pytest
import torch

CODE = """
from vox_serve.engine.threads import let_threads_sleep
import sys
assert "torch" not in sys.modules
let_threads_sleep()
import torch
torch.ones(2)
"""


@pytest.mark.skipif(
    "openmp" not in torch.__config__.parallel_info().lower(), reason="this torch has no OpenMP"
)
@pytest.mark.parametrize(("users", "expected"), [(None, "PASSIVE"), ("active", "ACTIVE")])
def test_torch_reads_the_policy(users: str | None, expected: str) -> None:
    """What OpenMP itself says that it has read."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {"OMP_DISPLAY_ENV": "true"} | ({"OMP_WAIT_POLICY": users} if users else {})
    run = subprocess.run(
        [sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=True
    )
    lines = [line for line in run.stderr.splitlines() if "OMP_WAIT_POLICY" in line]
    assert lines
    assert all(expected in line for line in lines)
