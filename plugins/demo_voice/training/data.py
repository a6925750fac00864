"""Stage 1: sentences, read by the teachers, as shards of sound with phonemes and pitch.

A shard is `data/NNNNN.npy` (int16, its utterances end to end), `data/NNNNN.pitch.npy` (F0 in Hz
every 10 ms, 0 where unvoiced) and `data/NNNNN.json`.  Existing shards are kept, so an
interrupted run resumes.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from tqdm import tqdm

from plugins.demo_voice.training.ask import pitch
from plugins.demo_voice.training.config import SAMPLE_RATE, TEACHERS, Array, DataConfig
from plugins.demo_voice.training.corpus import Utterance, pitch_count
from plugins.demo_voice.training.run import Run, begin, parser
from plugins.demo_voice.training.sentences import held_out, sentence
from plugins.demo_voice.training.teacher import render_all
from vox_serve_demo_voice.text import normalise


def make_shard(shard: int, config: DataConfig, folder: Path) -> float:
    """Render one shard if it does not exist; returns its seconds of sound."""
    index = folder / f"{shard:05d}.json"
    if index.is_file():
        return sum(int(e["samples"]) for e in json.loads(index.read_text("utf-8"))) / SAMPLE_RATE
    first = shard * config.shard_sentences
    numbers = range(first, min(first + config.shard_sentences, config.sentences))
    written = ((n, sentence(n, config.seed)) for n in numbers)
    kept = [(n, normalise(s)) for n, s in written if not held_out(s, config.held_out_one_in)]
    entries: list[dict[str, Any]] = []
    sounds: list[Array] = []
    at = 0
    for speaker, teacher in enumerate(TEACHERS):
        texts = [text for n, text in kept if n % len(TEACHERS) == speaker]
        for text, read in zip(texts, render_all(texts, teacher), strict=True):
            entries.append(attrs.asdict(Utterance(text, speaker, at, len(read.pcm), read.phones)))
            sounds.append(read.pcm)
            at += len(read.pcm)
    pitches = [pitch(x / 32768)[: pitch_count(len(x))].astype(np.float16) for x in sounds]
    np.save(index.with_suffix(".npy"), np.concatenate(sounds))
    np.save(index.with_suffix(".pitch.npy"), np.concatenate(pitches))
    partial_index = index.with_suffix(".partial")
    partial_index.write_text(json.dumps(entries), encoding="utf-8")
    os.replace(partial_index, index)  # noqa: PTH105
    return at / SAMPLE_RATE


def make(run: Run, jobs: int) -> None:
    config = run.recipe.data
    folder = run.path("data", "x").parent
    shards = -(-config.sentences // config.shard_sentences)
    task = partial(make_shard, config=config, folder=folder)
    seconds = 0.0
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        bar = tqdm(pool.imap_unordered(task, range(shards)), total=shards, desc="shards")
        for made in bar:
            seconds += made
            bar.set_postfix(hours=f"{seconds / 3600:.2f}")
    print(f"{seconds / 3600:.2f} hours of speech in {folder}")


if __name__ == "__main__":
    flags = parser(__doc__)
    flags.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="renderers at a time")
    options = flags.parse_args()
    make(begin(options), options.jobs)
