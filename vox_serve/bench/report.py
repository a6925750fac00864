"""Figures as a table for people and as JSON for programs."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs

from vox_serve import __version__
from vox_serve.bench.config import BenchConfig, Target
from vox_serve.bench.figures import Figures, figures
from vox_serve.bench.recording import TOLERANCE, Recording, Run

Cell = Callable[[Figures], str]


def _number(value: float | None, digits: int = 2, scale: float = 1.0) -> str:
    return "-" if value is None else f"{value * scale:.{digits}f}"


def _ms(value: float | None) -> str:
    return _number(value, 0, 1000)


ROWS: tuple[tuple[str, Cell], ...] = (
    ("requests", lambda f: str(f.requests)),
    ("ok", lambda f: str(f.ok)),
    ("refused (429, 503)", lambda f: str(f.refused)),
    ("failed", lambda f: str(f.failed)),
    ("first audio p50, ms", lambda f: _ms(f.first_audio.p50)),
    ("first audio p95, ms", lambda f: _ms(f.first_audio.p95)),
    ("first audio p99, ms", lambda f: _ms(f.first_audio.p99)),
    ("real-time factor p50", lambda f: _number(f.real_time_factor.p50)),
    ("real-time factor p95", lambda f: _number(f.real_time_factor.p95)),
    ("gap between chunks p99, ms", lambda f: _ms(f.gap.p99)),
    ("underruns", lambda f: str(f.underruns)),
    ("worst underrun, ms", lambda f: _ms(f.worst_underrun)),
    ("viable, % of requests", lambda f: _number(f.viable_share, 1, 100)),
    ("goodput, requests/s", lambda f: _number(f.goodput_requests)),
    ("goodput, audio s/s", lambda f: _number(f.goodput_audio)),
    ("client late at worst, ms", lambda f: _ms(f.client_late)),
)


def table(runs: Sequence[Figures], unit: str) -> str:
    """Figures as rows and runs as columns, with the errors below."""
    lines = [_row(f"{unit}:", [f"{run.load:g}" for run in runs])]
    lines += [_row(name, [cell(run) for run in runs]) for name, cell in ROWS]
    if any(run.unfinished for run in runs):
        lines.append(_row("stopped before their end", [str(run.unfinished) for run in runs]))
    for run in runs:
        for failure, count in run.errors.items():
            detail = f": {run.details[failure]}" if failure in run.details else ""
            lines.append(f"at {run.load:g} {unit}: {count} x {failure}{detail}")
    late = max(run.client_late for run in runs)
    if late > TOLERANCE:
        lines.append(
            f"This client was itself up to {late * 1000:.0f} ms late: its machine is busy, and "
            "figures include that."
        )
    return "\n".join(lines)


def _row(name: str, cells: Sequence[str]) -> str:
    return f"{name:<28}" + "".join(f"{cell:>10}" for cell in cells)


def heading(target: Target, config: BenchConfig, client: dict[str, Any]) -> str:
    """What was measured, from where."""
    loop = "closed loop" if config.concurrency else f"open loop, seed {config.seed}"
    load = client["load_average"]
    busy = "" if load is None else f", load average {load:.1f}"
    return (
        f"POST {target.url} ({target.api}, {config.format}), {loop}\n"
        f"client: {client['processor']}, {client['cores']} cores{busy}, {client['date']}\n"
    )


def describe_client() -> dict[str, Any]:
    """The measuring machine, as it is now."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "vox_serve": __version__,
        "python": platform.python_version(),
        "system": platform.system(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def document(
    target: Target,
    config: BenchConfig,
    texts: Sequence[str],
    runs: Sequence[Run],
) -> dict[str, Any]:
    """Settings and results for JSON.

    `chunks` are [seconds since the run began, seconds of audio]; `scheduled` is also in seconds
    since the run began.
    """
    settings = attrs.asdict(
        config, value_serializer=lambda _, __, v: str(v) if isinstance(v, Path) else v
    )
    return {
        "target": attrs.asdict(target),
        "settings": settings | {"duration": None if config.requests else config.seconds},
        "texts": list(texts),
        "unit": unit_of(config),
        "runs": [
            attrs.asdict(figures(run))
            | {"recordings": [_recording(each, run.began) for each in run.recordings]}
            for run in runs
        ],
    }


def unit_of(config: BenchConfig) -> str:
    """What `load` counts."""
    return "clients" if config.concurrency else "requests/s"


def _recording(recording: Recording, began: float) -> dict[str, Any]:
    return {
        "text": recording.text,
        "scheduled": recording.scheduled - began,
        "late": recording.late if recording.started else None,
        "outcome": recording.outcome.value,
        "viable": recording.viable,
        "status": recording.status,
        "failure": recording.failure,
        "detail": recording.detail,
        "first_audio": recording.first_audio,
        "total": recording.total,
        "audio": recording.audio,
        "real_time_factor": recording.real_time_factor,
        "underruns": recording.underruns,
        "worst_underrun": recording.worst_underrun,
        "chunks": [[chunk.at - began, chunk.seconds] for chunk in recording.chunks],
    }
