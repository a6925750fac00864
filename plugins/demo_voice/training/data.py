"""Stage 1: sentences, read by the teachers, as shards of sound with phonemes and pitch.

A shard is `data/NNNNN.npy` (int16, its utterances end to end), `data/NNNNN.pitch.npy` (F0 in Hz
every 10 ms, 0 where unvoiced) and `data/NNNNN.json`.  Shards that are there are left alone, so a
run that was broken off goes on where it was.
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
    PITCHES_PER_FRAME,
    SAMPLE_RATE,
    TEACHERS,
    Array,
    DataConfig,
)
from plugins.demo_voice.training.ask import pitch
from plugins.demo_voice.training.run import Run, begin, parser
from plugins.demo_voice.training.sentences import held_out, sentence
from plugins.demo_voice.training.teacher import PHONES, render_all
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
        self.shards: list[range] = []
        """The numbers of each shard's utterances."""
        self._sounds: list[Array] = []
        self._pitches: list[Array] = []
        self._pitch_starts: list[int] = []
        self._shard_of: list[int] = []
        for index in sorted(folder.glob("*.json")):
            entries = json.loads(index.read_text(encoding="utf-8"))
            self.shards.append(range(len(self), len(self) + len(entries)))
            self.utterances += [Utterance(**entry) for entry in entries]
            self._shard_of += [len(self._sounds)] * len(entries)
            counts = [_pitch_count(entry["samples"]) for entry in entries]
            self._pitch_starts += np.cumsum([0, *counts])[:-1].tolist()
            self._sounds.append(np.load(index.with_suffix(".npy"), mmap_mode="r"))
            self._pitches.append(np.load(index.with_suffix(".pitch.npy"), mmap_mode="r"))
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
        pcm = self._sounds[self._shard_of[number]][u.start + begin_at : u.start + stop]
        sound = torch.from_numpy(pcm.astype(np.float32) / 32768)
        return torch.nn.functional.pad(sound, (0, wanted - len(sound)))

    def pitch(self, number: int, first: int, frames: int) -> torch.Tensor:
        """F0 in Hz, 0 where unvoiced, `[frames * 8]` from a frame on."""
        start = self._pitch_starts[number]
        end = start + _pitch_count(self.utterances[number].samples)
        begin_at, wanted = start + first * PITCHES_PER_FRAME, frames * PITCHES_PER_FRAME
        hertz = self._pitches[self._shard_of[number]][begin_at : min(end, begin_at + wanted)]
        found = torch.from_numpy(hertz.astype(np.float32))
        return torch.nn.functional.pad(found, (0, wanted - len(found)))

    def labels(self, number: int) -> torch.Tensor:
        """Phoneme ids `[frames, 4]`, one for each 20 ms."""
        u = self.utterances[number]
        ends = np.array([end for _, end in u.phones])
        names = [_PHONE_IDS[name] for name, _ in u.phones]
        times = (np.arange(u.frames * LABELS_PER_FRAME) + 0.5) * FRAME_SIZE / LABELS_PER_FRAME
        found = np.searchsorted(ends, times / SAMPLE_RATE)
        labels = np.array([*names, IGNORED])[found]
        return torch.from_numpy(labels).view(u.frames, LABELS_PER_FRAME)


def _pitch_count(samples: int) -> int:
    return samples * PITCHES_PER_FRAME // FRAME_SIZE + 1


def make_shard(shard: int, config: DataConfig, folder: Path) -> float:
    """Render one shard if it is not there; returns its seconds of sound."""
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
    pitches = [pitch(x / 32768)[: _pitch_count(len(x))].astype(np.float16) for x in sounds]
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
