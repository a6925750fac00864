"""Draws the documentation's pictures: performance.png and replicas.png."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.titles import COLUMNS, FRAME_SECONDS, SETTINGS

SPLIT = {"advance": "tab:blue", "emit": "tab:orange", "codec": "tab:green"}


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Draw the seconds per frame by batch size and the parts of our frame, one row per setting.

    The file's extension selects the format.
    """
    results = found["results"]
    figure = Figure(figsize=(11, 3.8 * len(results)), layout="constrained")
    rows = figure.subplots(len(results), 2, squeeze=False)
    for (name, result), (by_batch, split) in zip(results.items(), rows, strict=True):
        _by_batch(by_batch, result, SETTINGS[name])
        _split(split, result)
    _write(figure, found, path)


def draw_replicas(found: Mapping[str, Any], path: Path) -> None:
    """Draw first audio and real-time factor at each rate, one bar per number of replicas."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    first, factor = figure.subplots(1, 2)
    rates = sorted({run["load"] for run in found["load"]})
    numbers = sorted({run["replicas"] for run in found["load"]})
    width = 0.8 / len(numbers)
    for index, number in enumerate(numbers):
        runs = [run for run in found["load"] if run["replicas"] == number]
        middle = (index - (len(numbers) - 1) / 2) * width
        where = [rates.index(run["load"]) + middle for run in runs]
        style = {"width": width, "color": f"C{index}", "edgecolor": "white"}
        name = f"{number} replica{'s' if number > 1 else ''}"
        for percentile, alpha in (("p95", 0.4), ("p50", 1.0)):
            heights = [1000 * run["first_audio"][percentile] for run in runs]
            bars = first.bar(where, heights, alpha=alpha, label=f"{name}, {percentile}", **style)
            first.bar_label(bars, fmt="%.0f", fontsize="small")
        bars = factor.bar(where, [run["real_time_factor"]["p50"] for run in runs], **style)
        factor.bar_label(bars, fmt="%.2f", fontsize="small")
    first.set(ylabel="first audio, ms")
    factor.set(ylabel="real-time factor, p50")
    for axes in (first, factor):
        axes.set_xlabel("requests/s")
        axes.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates])
        axes.margins(y=0.15)
    first.legend(fontsize="small")
    _write(figure, found, path)


def _write(figure: Figure, found: Mapping[str, Any], path: Path) -> None:
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
