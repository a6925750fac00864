"""docs/performance.png: seconds per frame by batch, and the split of our frame."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.titles import COLUMNS, FRAME_SECONDS, SETTINGS

SPLIT = {"advance": "tab:blue", "emit": "tab:orange", "codec": "tab:green"}


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Draw a row of two charts for each setting; the file's extension selects the format."""
    results = found["results"]
    figure = Figure(figsize=(11, 3.8 * len(results)), layout="constrained")
    rows = figure.subplots(len(results), 2, squeeze=False)
    for (name, result), (by_batch, split) in zip(results.items(), rows, strict=True):
        _by_batch(by_batch, result, SETTINGS[name])
        _split(split, result)
    machine = found["machine"]
    figure.suptitle(f"{machine['processor']}, {machine['cores']} cores, {machine['date']}")
    figure.savefig(path, dpi=120)


def _by_batch(axes: Axes, result: Mapping[str, Any], title: str) -> None:
    batches = result["batches"]
    for key, label in COLUMNS.items():
        points = [
            (int(b), columns[key]["frame"]) for b, columns in batches.items() if key in columns
        ]
        if not points:
            continue
        middle = [values[0] for _, values in points]
        below = [values[0] - values[1] for _, values in points]
        above = [values[2] - values[0] for _, values in points]
        where = [batch for batch, _ in points]
        axes.errorbar(where, middle, yerr=(below, above), marker="o", capsize=3, label=label)
    where = [int(batch) for batch in batches]
    pace = [FRAME_SECONDS * batch for batch in where]
    axes.plot(where, pace, color="grey", linestyle=":", label="real time in aggregate")
    axes.set(xlabel="batch", ylabel="s per frame", xscale="log", yscale="log", title=title)
    axes.set_xticks(where, [str(batch) for batch in where], minor=False)
    axes.legend(fontsize="small")


def _split(axes: Axes, result: Mapping[str, Any]) -> None:
    bars = [
        (f"{batch}\n{key.removeprefix('vox_serve_')}", columns[key])
        for batch, columns in result["batches"].items()
        for key in result["floor"]
    ]
    bottom = [0.0] * len(bars)
    names = [name for name, _ in bars]
    for phase, colour in SPLIT.items():
        heights = [column[f"{phase}_per_frame"][0] for _, column in bars]
        axes.bar(names, heights, bottom=bottom, label=phase, color=colour)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    axes.set(xlabel="batch and form", ylabel="s per frame", title="vox_serve, split of a frame")
    axes.tick_params(axis="x", labelsize="small")
    axes.legend(fontsize="small")
