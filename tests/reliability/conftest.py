"""Collects the figures of each promise, and prints them in one table at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import pytest

from tests.launched import Launched, Start

NAMES = (
    "overload",
    "a client leaves",
    "SIGTERM",
    "worker killed",
    "worker hung",
    "a request that fails",
    "slow reader",
    "slow headers, slow body, silence",
    "soak",
    "fuzz",
    "names and keys",
    "uploads",
    "determinism",
)
"""The promises of docs/operations.md, in the order of their numbers."""


@attrs.define
class Promises:
    """Measured figures: rows of (what, limit, figure) by promise."""

    rows: dict[str, list[tuple[str, str, str]]] = attrs.field(factory=dict)

    def note(self, promise: str, what: str, limit: object, figure: object) -> None:
        """Record a figure beside its limit."""
        self.rows.setdefault(promise, []).append((what, str(limit), str(figure)))

    @contextmanager
    def fails(self, promise: str, fault: str, reason: str) -> Iterator[None]:
        """Record that the check in this block fails for this reason; otherwise, fail the test."""
        kept = list(self.rows.get(promise, ()))
        with pytest.raises(AssertionError, match=reason) as caught:
            yield
        self.rows[promise] = kept
        self.note(promise, f"control: {fault}", "fails", str(caught.value).splitlines()[0][:70])

    def table(self) -> Iterator[str]:
        """The lines of the printed table."""
        others = [name for name in self.rows if name not in NAMES]
        for number, name in enumerate([*NAMES, *others], 1):
            title = f"{number if name in NAMES else '-':>2} {name}"
            for row, (what, limit, figure) in enumerate(self.rows.get(name, [("not run", "", "")])):
                yield f"{'' if row else title:36}{what:45}{limit:>15}  {figure}".rstrip()


FOUND = pytest.StashKey[Promises]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[FOUND] = Promises()


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    found = config.stash.get(FOUND, Promises())
    if found.rows:
        terminalreporter.section("promises: what, limit, measured")
        for line in found.table():
            terminalreporter.write_line(line)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.reliability)
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session")
def promises(pytestconfig: pytest.Config) -> Promises:
    return pytestconfig.stash.setdefault(FOUND, Promises())


@pytest.fixture
def broken(start: Start) -> Callable[[str], Start]:
    """Start servers with a fault of `faults.py`."""

    def of(fault: str) -> Start:
        def enter(*flags: str, **environment: str) -> Launched:
            return start(
                *flags, "--plugins", "tests.reliability.faults", FAULT=fault, **environment
            )

        return enter

    return of


def series(server: Launched, name: str, **labels: str) -> float:
    """The sum over a metric's series with these labels."""
    total = 0.0
    for line in server.http.get("/metrics").text.splitlines():
        fits = all(f'{key}="{text}"' in line for key, text in labels.items())
        if line.startswith(f"vox_serve_{name}{{") and fits:
            total += float(line.rsplit(" ", 1)[1])
    return total
