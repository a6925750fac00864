"""Writes the GPU suite's results as Markdown, with targets, from its JSON.  Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

FRAME_TARGETS = {1: 5.0, 64: 7.0, 256: 13.0}
"""Milliseconds per frame by batch: bfloat16, an NVIDIA H200."""
TARGETS = {
    "first_audio_cached_p50_ms": 12.0,
    "http_first_audio_p95_ms": 30.0,
    "streams": 800,
}
CELL = ("advance", "emit", "codec", "frame", "engine_step")


def report(document: dict[str, Any]) -> str:
    """All sections, with reasons for those that did not run."""
    sections = document["sections"]
    results = {name: section.get("result", {}) for name, section in sections.items()}
    parts = [
        f"# CSM on {document['device']}",
        _table(["machine", ""], document["machine"].items()),
        _table(["section", "outcome", "s", ""], map(_outcome, sections.items())),
        _frames(results.get("frames", {})),
        _latency(results.get("first_audio", {}), results.get("http", {})),
        _streams(results.get("streams", {})),
        _peers(results.get("peers", {})),
        _profile(results.get("profile", {})),
        _not_run(results),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _outcome(item: tuple[str, dict[str, Any]]) -> list[Any]:
    name, section = item
    said = [section.get("reason", ""), *section.get("result", {}).get("failures", [])]
    return [name, section["outcome"], section.get("seconds", ""), "; ".join(filter(None, said))]


def _frames(result: dict[str, Any]) -> str:
    rows = []
    for name, cell in result.items():
        if not (isinstance(cell, dict) and "frame" in cell):
            continue
        batch = int(name.split("batch ")[1].split(",", maxsplit=1)[0])
        share = cell["frame"].get("share_of_floor")
        target = FRAME_TARGETS.get(batch, "") if name.startswith("bfloat16") else ""
        rows.append([name, *(_spread(cell[key]) for key in CELL), _percent(share), target])
    heads = ["ms per frame", *CELL, "share of floor", "target (H200)"]
    return _section("Frames: median (least to most)", heads, rows)


def _latency(first: dict[str, Any], http: dict[str, Any]) -> str:
    rows = [
        [f"in process, {name}", cell["p50"], cell["p95"], cell["p99"], _target_of(name)]
        for name, cell in first.items()
        if isinstance(cell, dict) and "p50" in cell
    ]
    poisson = http.get("poisson", {})
    if "seconds" in poisson:
        found = poisson["seconds"]["first_audio"]
        times = [round(1000 * found[f"p{p}"], 1) for p in (50, 95, 99) if found[f"p{p}"]]
        target = f"p95 {TARGETS['http_first_audio_p95_ms']}"
        rows.append([f"HTTP, {poisson['load']:g} requests/s", *times, target])
    return _section("First audio, ms", ["", "p50", "p95", "p99", "target"], rows)


def _target_of(name: str) -> str:
    return f"p50 {TARGETS['first_audio_cached_p50_ms']}" if name == "voice, cached" else ""


def _streams(result: dict[str, Any]) -> str:
    rows = [
        [
            count,
            trial["real_time"],
            trial.get("gap", {}).get("p99", ""),
            trial.get("latest_ms", trial.get("failed", "")),
        ]
        for count, trial in result.get("trials", {}).items()
    ]
    found = result.get("largest", {}).get("streams", "?")
    title = f"Streams in real time: {found} (target {TARGETS['streams']})"
    return _section(title, ["streams", "in time", "gap p99, ms", "latest frame, ms"], rows)


def _peers(result: dict[str, Any]) -> str:
    rows = [
        [
            name,
            *(f"{1000 * cell[key][0]:.2f}" for key in ("first_audio", "frame")),
            f"{cell['real_time_factor'][0]:.4f}",
        ]
        for name, cell in result.items()
        if isinstance(cell, dict) and "frame" in cell
    ]
    heads = ["", "first audio, ms", "frame, ms", "time over audio"]
    return _section("Beside peers: medians", heads, rows)


def _profile(result: dict[str, Any]) -> str:
    parts = []
    for name, cell in result.items():
        if not (isinstance(cell, dict) and "top" in cell):
            continue
        title = (
            f"Kernels, {name}: {cell['kernels_per_frame']} per frame, "
            f"{cell['ms_per_frame']} ms, idle {_percent(cell['idle_share'])}"
        )
        rows = [[row["kernel"][:80], row["ms_per_frame"], row["per_frame"]] for row in cell["top"]]
        parts.append(_section(title, ["kernel", "ms per frame", "per frame"], rows[:12]))
    return "\n\n".join(parts)


def _not_run(results: dict[str, dict[str, Any]]) -> str:
    rows = [
        [section, name, part.get("skipped") or part.get("failed")]
        for section, result in results.items()
        for name, part in result.items()
        if isinstance(part, dict) and ("skipped" in part or "failed" in part)
    ]
    return _section("Not run, or failed", ["section", "part", "why"], rows)


def _spread(cell: dict[str, float]) -> str:
    return f"{cell['median']:.2f} ({cell['least']:.2f} to {cell['most']:.2f})"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"


def _section(title: str, heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    table = _table(heads, rows)
    return f"## {title}\n\n{table}" if table else ""


def _table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table; empty if there are no rows."""
    lines = ["| " + " | ".join(str(cell).replace("|", "/") for cell in row) + " |" for row in rows]
    if not lines:
        return ""
    return "\n".join(["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads), *lines])
