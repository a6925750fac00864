"""Reads the data of stage 1 for the later stages."""

from __future__ import annotations

import json
from pathlib import Path

import attrs
import numpy as np
import torch

from plugins.demo_voice.training.config import (
    FRAME_SIZE,
    LABELS_PER_FRAME,
    PHONES,
    PITCHES_PER_FRAME,
    SAMPLE_RATE,
    Array,
)

_PHONE_IDS = {name: i for i, name in enumerate(PHONES)}
IGNORED = -100
"""The label for everything after the teacher's last phoneme; torch's cross entropy skips it."""


@attrs.frozen
class Utterance:
    """A training utterance: its place in its shard, and its text."""

    text: str
    speaker: int
    start: int
    samples: int
    phones: list[tuple[str, float]]

    @property
    def frames(self) -> int:
        return -(-self.samples // FRAME_SIZE)


class Corpus:
    """The rendered shards, memory-mapped."""

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
            counts = [pitch_count(entry["samples"]) for entry in entries]
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
        """Float32 `[frames * 1920]` from a frame on; padded with silence."""
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
        end = start + pitch_count(self.utterances[number].samples)
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


def pitch_count(samples: int) -> int:
    """The number of pitch values for this number of samples."""
    return samples * PITCHES_PER_FRAME // FRAME_SIZE + 1
