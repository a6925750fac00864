"""First audio and viable share by load, drawn with matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vox_serve.bench.figures import Figures
from vox_serve.errors import ConfigError


def check_picture(path: Path) -> None:
    """Check early that matplotlib is installed and supports the extension.  Raises ConfigError."""
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError:
        raise ConfigError("picture needs matplotlib: pip install 'vox-serve-core[bench]'") from None
    endings = FigureCanvasBase.get_supported_filetypes()
    if path.suffix.removeprefix(".") not in endings:
        raise ConfigError(f"picture: {path} must end in one of .{', .'.join(sorted(endings))}")


def draw(runs: Sequence[Figures], unit: str, title: str, path: Path) -> None:
    """Write the picture; the file's extension selects its format."""
    from matplotlib.figure import Figure

    runs = sorted(runs, key=lambda run: run.load)
    loads = [run.load for run in runs]
    drawing = Figure(figsize=(9, 3.6), layout="constrained")
    first, viable = drawing.subplots(1, 2)
    for name in ("p50", "p95", "p99"):
        values = [getattr(run.first_audio, name) for run in runs]
        shown = [float("nan") if value is None else 1000 * value for value in values]
        first.plot(loads, shown, marker="o", label=name)
    first.set(xlabel=unit, ylabel="first audio, ms", yscale="log")
    first.legend()
    shares = [100 * (run.viable_share or 0.0) for run in runs]
    viable.plot(loads, shares, marker="o", color="black")
    viable.set(xlabel=unit, ylabel="viable, % of requests", ylim=(0, 105))
    drawing.suptitle(title, fontsize="medium")
    drawing.savefig(path, dpi=120)
