"""Starts a real server for each test, and prints a line for each figure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.test_launch import Launched, launched

Start = Callable[..., Launched]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.reliability)
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as stack:

        def enter(*flags: str, **environment: str) -> Launched:
            server = stack.enter_context(launched(tmp_path / "log", *flags, **environment))
            server.read_banner()
            return server

        yield enter


def figure(promise: str, **figures: object) -> None:
    """Print what was measured."""
    shown = ", ".join(f"{name.replace('_', ' ')} {number}" for name, number in figures.items())
    print(f"\n{promise}: {shown}")


def series(server: Launched, name: str, **labels: str) -> float:
    """The sum over a metric's series with these labels."""
    total = 0.0
    for line in server.http.get("/metrics").text.splitlines():
        fits = all(f'{key}="{text}"' in line for key, text in labels.items())
        if line.startswith(f"vox_serve_{name}{{") and fits:
            total += float(line.rsplit(" ", 1)[1])
    return total
