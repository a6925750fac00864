"""Stage 1: sentences, read by the teachers, as shards of sound with phoneme labels.

A shard is `data/NNNNN.npy` (int16, its utterances end to end) and `data/NNNNN.json`.  Shards
that are there are left alone, so a run that was broken off goes on where it was.
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
import torch
from tqdm import tqdm

from plugins.demo_voice.training.config import (
    FRAME_SIZE,
    LABELS_PER_FRAME,
    SAMPLE_RATE,
    TEACHERS,
    Array,
    DataConfig,
)
from plugins.demo_voice.training.run import Run, begin, parser
from plugins.demo_voice.training.sentences import held_out, sentence
from plugins.demo_voice.training.teacher import PHONES, render
from vox_serve_demo_voice.text import normalise

_PHONE_IDS = {name: i for i, name in enumerate(PHONES)}
IGNORED = -100
"""The label of what lies after the teacher's last phoneme; torch's cross entropy skips it."""


@attrs.frozen
class Utterance:
    """Where a training utterance lies in its shard, and what it says."""

    text: str
    speaker: int
    start: int
    samples: int
    phones: list[tuple[str, float]]

    @property
    def frames(self) -> int:
        return -(-self.samples // FRAME_SIZE)


class Corpus:
    """The rendered shards, mapped, not read."""

    def __init__(self, folder: Path) -> None:
        self.utterances: list[Utterance] = []
        self._shards: list[Array] = []
        self._shard_of: list[int] = []
        for index in sorted(folder.glob("*.json")):
            entries = json.loads(index.read_text(encoding="utf-8"))
            self.utterances += [Utterance(**entry) for entry in entries]
            self._shard_of += [len(self._shards)] * len(entries)
            self._shards.append(np.load(index.with_suffix(".npy"), mmap_mode="r"))
        if not self.utterances:
            raise SystemExit(f"{folder}: no data; run plugins.demo_voice.training.data first")

    def __len__(self) -> int:
        return len(self.utterances)

    @property
    def hours(self) -> float:
        return sum(u.samples for u in self.utterances) / SAMPLE_RATE / 3600

    def sound(self, number: int, first: int = 0, frames: int | None = None) -> torch.Tensor:
        """Float32 `[frames * 1920]` from a frame on; silence fills what is missing."""
        u = self.utterances[number]
        count = u.frames - first if frames is None else frames
        begin_at, wanted = first * FRAME_SIZE, count * FRAME_SIZE
        stop = min(u.samples, begin_at + wanted)
        pcm = self._shards[self._shard_of[number]][u.start + begin_at : u.start + stop]
        sound = torch.from_numpy(pcm.astype(np.float32) / 32768)
        return torch.nn.functional.pad(sound, (0, wanted - len(sound)))

    def labels(self, number: int) -> torch.Tensor:
        """Phoneme ids `[frames, 4]`, one for each 20 ms."""
        u = self.utterances[number]
        ends = np.array([end for _, end in u.phones])
        names = [_PHONE_IDS[name] for name, _ in u.phones]
        times = (np.arange(u.frames * LABELS_PER_FRAME) + 0.5) * FRAME_SIZE / LABELS_PER_FRAME
        found = np.searchsorted(ends, times / SAMPLE_RATE)
        labels = np.array([*names, IGNORED])[found]
        return torch.from_numpy(labels).view(u.frames, LABELS_PER_FRAME)


def make_shard(shard: int, config: DataConfig, folder: Path) -> float:
    """Render one shard if it is not there; returns its seconds of sound."""
    index = folder / f"{shard:05d}.json"
    if index.is_file():
        return sum(int(e["samples"]) for e in json.loads(index.read_text("utf-8"))) / SAMPLE_RATE
    entries: list[dict[str, Any]] = []
    parts: list[Array] = []
    at = 0
    first = shard * config.shard_sentences
    for number in range(first, min(first + config.shard_sentences, config.sentences)):
        written = sentence(number, config.seed)
        if held_out(written, config.held_out_one_in):
            continue
        text, speaker = normalise(written), number % len(TEACHERS)
        rendering = render(text, speaker)
        entries.append(
            attrs.asdict(Utterance(text, speaker, at, len(rendering.pcm), rendering.phones))
        )
        parts.append(rendering.pcm)
        at += len(rendering.pcm)
    np.save(index.with_suffix(".npy"), np.concatenate(parts))
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
