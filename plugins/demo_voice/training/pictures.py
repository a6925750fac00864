"""Pictures for the README: curves of the losses, and spectrograms of teacher and voice.

Needs matplotlib (the extra `voice`).  Writes `curves.png` from the existing logs and,
given a checkpoint, `spectrograms.png` of one unseen sentence by both speakers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from plugins.demo_voice.training.config import SAMPLE_RATE, TEACHERS, Array
from plugins.demo_voice.training.evaluate import BATCH, SYSTEMS, sentences
from plugins.demo_voice.training.run import Run, begin, parser
from plugins.demo_voice.training.speaking import speak, through_codec
from plugins.demo_voice.training.spectra import magnitudes
from plugins.demo_voice.training.teacher import GAINS, render
from vox_serve import LoadOptions
from vox_serve.config import EngineConfig
from vox_serve.engine.engine import Engine
from vox_serve.engine.load import number_formats
from vox_serve_csm.checkpoint import load_model
from vox_serve_demo_voice.text import normalise

PANELS = (
    ("codec/encoder.jsonl", ("mel", "phone", "phone_error", "semitones")),
    ("codec/decoder.jsonl", ("spectral", "judge", "features")),
    ("lm/lm.jsonl", ("first", "rest", "phone")),
    ("lm/validation.jsonl", ("validation_first", "validation_rest", "validation_phone")),
)


def curves(plot: Any, work: Path, target: Path) -> None:
    """A panel for each log; names are the keys of its lines."""
    figure, axes = plot.subplots(2, 2, figsize=(11, 7))
    for axis, (name, keys) in zip(axes.flat, PANELS, strict=True):
        axis.set_title(name)
        path = work / name
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        rows = [json.loads(line) for line in lines]
        for key in keys:
            points = [(row["step"], row[key]) for row in rows if key in row]
            if points:
                axis.plot(*zip(*points, strict=True), label=key)
                axis.legend()
        axis.set_xlabel("steps")
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(target, dpi=110)


def spectrograms(plot: Any, checkpoint: Path, teachers: Sequence[str], target: Path) -> None:
    """Draw teacher, codec and voice side by side up to 8 kHz, a row for each speaker."""
    config = EngineConfig(str(checkpoint), device="cpu", max_batch_size=BATCH)
    model = load_model(LoadOptions(checkpoint, "cpu", *number_formats(config, "cpu")))
    engine = Engine(model, config)
    engine.warm_up()
    text = normalise(next(s.text for s in sentences() if s.kind == "yesno"))
    spoken = speak(engine, [(text, 0), (text, 1)], 0.0, 1)
    figure, axes = plot.subplots(2, 3, figsize=(15, 7), sharey=True)
    for speaker, utterance in enumerate(spoken):
        read = render(text, teachers[speaker]).pcm.astype(np.float32) / 32768
        sounds = (read, through_codec(model.codec, read), utterance.sound)
        for axis, sound, who in zip(axes[speaker], sounds, SYSTEMS, strict=True):
            where = (0, len(sound) / SAMPLE_RATE, 0, SAMPLE_RATE / 2000)
            axis.imshow(
                _decibels(sound), origin="lower", aspect="auto", vmin=-95, vmax=-30, extent=where
            )
            axis.set_ylim(0, 8)
            axis.set_title(f"{who}, speaker {speaker}: {text}", fontsize=9)
            axis.set_xlabel("s")
            axis.set_ylabel("kHz")
    figure.tight_layout()
    figure.savefig(target, dpi=90)


def _decibels(sound: Array) -> Array:
    bins = magnitudes(torch.from_numpy(sound)[None], 1024, SAMPLE_RATE // 200)[0]
    found: Array = 20 * np.log10(bins.numpy() + 1e-6)
    return found


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--checkpoint", type=Path, help="draw spectrograms of it too")
    flags.add_argument(
        "--teachers", nargs=2, choices=sorted(GAINS), default=list(TEACHERS), metavar="NAME"
    )
    flags.add_argument("--out", type=Path, help="folder of the pictures (the work folder)")
    options = flags.parse_args()
    run: Run = begin(options)
    try:
        import_module("matplotlib").use("Agg")
    except ImportError:
        raise SystemExit("matplotlib is missing; pip install -e '.[dev,voice]'") from None
    plot = import_module("matplotlib.pyplot")
    out = options.out or run.work
    curves(plot, run.work, out / "curves.png")
    print(out / "curves.png")
    if options.checkpoint:
        spectrograms(plot, options.checkpoint, options.teachers, out / "spectrograms.png")
        print(out / "spectrograms.png")


if __name__ == "__main__":
    main()
