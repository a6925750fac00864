"""Tools that check deploy/.  Tests are skipped, with a reason, if their tool is missing."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DEPLOY = Path(__file__).parents[2] / "deploy"
needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason="the programs of Debian's package `prometheus` are not installed",
)
needs_nginx = pytest.mark.skipif(
    not (shutil.which("nginx") and shutil.which("openssl")),
    reason="the programs of Debian's packages `nginx-light` and `openssl` are not installed",
)


def tool(name: str) -> str:
    """A checker that the extra `dev` installs.  Fails the test if it is missing."""
    found = shutil.which(name, path=Path(sys.executable).parent) or shutil.which(name)
    assert found, f"{name} is missing: make setup"
    return found


def run(*command: str | Path, text: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a checker; its standard output and error are both in `stdout`."""
    return subprocess.run(
        command,
        input=text,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )


def passes(*command: str | Path, text: str | None = None) -> str:
    """Run a checker that must find nothing; returns what it printed."""
    done = run(*command, text=text)
    assert done.returncode == 0, done.stdout
    return done.stdout
