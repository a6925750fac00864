"""Draws the dashboard's panels from Prometheus's answers, for anyone without Grafana."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

Series = tuple[dict[str, str], list[tuple[float, float]]]
COLUMNS = 4


def draw(board: dict[str, Any], ask: Callable[[str], list[Series]], file: Path) -> None:
    """Draw all panels into a PNG.

    Args:
        board: the dashboard's JSON.
        ask: evaluates an expression; returns series of labels and (seconds, value) points.
    """
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    rows = math.ceil(len(panels) / COLUMNS)
    with mpl.rc_context({"font.size": 6}):
        figure = Figure((4 * COLUMNS, 2.1 * rows), layout="constrained")
        axes = list(figure.subplots(rows, COLUMNS).flat)
        for panel, place in zip(panels, axes, strict=False):
            unit = panel["fieldConfig"]["defaults"]["unit"]
            place.set_title(f"{panel['title']} ({unit})", fontsize=7)
            for target in panel["targets"]:
                for labels, points in ask(target["expr"]):
                    legend = target["legendFormat"]
                    for name, value in labels.items():
                        legend = legend.replace(f"{{{{{name}}}}}", value)
                    legend = re.sub(
                        r"\{\{\w+\}\}", "", legend
                    )  # drop placeholders of missing labels
                    place.plot(*zip(*points, strict=True), linewidth=0.8, label=legend)
            place.set_ylim(bottom=-0.02 * place.get_ylim()[1])  # so that a line at 0 is visible
            place.tick_params(labelbottom=False)
            if place.get_lines():
                place.legend(fontsize=5, loc="upper left")
        for place in axes[len(panels) :]:
            place.set_visible(False)
        figure.savefig(file, dpi=110)
