"""Runs the programs of examples/ as a user would, against a real server."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example(tmp_path: Path) -> Callable[..., str]:
    """Run a program in an empty folder; returns its output, or fails the test with it."""

    def run(name: str, *arguments: str, **settings: Any) -> str:
        done = subprocess.run(
            [sys.executable, str(EXAMPLES / name), *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            **settings,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="session")
def probe() -> Callable[[Path], dict[str, Any]]:
    """ffprobe's description of a file."""
    if shutil.which("ffprobe") is None:
        pytest.skip("ffprobe is not installed")

    def run(path: Path) -> dict[str, Any]:
        shown = ["-show_format", "-show_streams", "-show_chapters", "-show_packets"]
        command = ["ffprobe", "-v", "error", "-of", "json", *shown, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert not done.stderr, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    return run


@pytest.fixture(scope="session")
def decode() -> Callable[..., bytes]:
    """Signed 16-bit samples of a file at 8 kHz, decoded by ffmpeg."""
    if shutil.which("ffmpeg") is None:
        pytest.skip("ffmpeg is not installed")

    def run(path: Path, *options: str) -> bytes:
        output = ["-f", "s16le", "-ac", "1", "-ar", "8000", "-"]
        command = ["ffmpeg", "-v", "error", *options, "-i", str(path), *output]
        return subprocess.run(command, capture_output=True, check=True).stdout

    return run
