"""A plugin that marks sound inaudibly, and postprocessors that fail; `marked` finds the mark.

The mark is noise generated from a key, about 50 dB below full scale, in blocks of 480 samples.  An
unmarked recording does not correlate with it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import numpy as np

from vox_serve import Postprocessor, SoundFacts, SoundProcess, hookimpl

BLOCK = 480
LOUDNESS = 0.004


def noise(key: str, block: int) -> np.ndarray:
    seed = [*key.encode(), block]
    return np.random.default_rng(seed).choice([-LOUDNESS, LOUDNESS], BLOCK).astype(np.float32)


@attrs.define
class Mark:
    """Holds back the samples of an incomplete block, so samples remain at the end."""

    key: str
    block: int = 0
    held: np.ndarray = attrs.field(factory=lambda: np.zeros(0, np.float32))

    def process(self, sound: np.ndarray) -> np.ndarray:
        self.held = np.concatenate([self.held, sound])
        return self._take(len(self.held) // BLOCK)

    def finish(self) -> np.ndarray:
        missing = -len(self.held) % BLOCK
        self.held = np.pad(self.held, (0, missing))
        marked = self._take(len(self.held) // BLOCK)
        return marked[: len(marked) - missing]

    def _take(self, blocks: int) -> np.ndarray:
        out = [np.zeros(0, np.float32)]
        for number in range(blocks):
            whole = self.held[number * BLOCK : (number + 1) * BLOCK]
            out.append(whole + noise(self.key, self.block + number))
        self.block += blocks
        self.held = self.held[blocks * BLOCK :]
        return np.concatenate(out)


def marked(sound: np.ndarray, key: str) -> bool:
    """Whether a recording has this key's mark, starting at its first sample."""
    blocks = len(sound) // BLOCK
    expected = np.concatenate([noise(key, block) for block in range(blocks)])
    heard = sound[: len(expected)]
    # Speech changes little from sample to sample, but the mark changes a lot.
    share = np.dot(np.diff(heard), np.diff(expected)) / np.dot(np.diff(expected), np.diff(expected))
    return bool(0.7 < share < 1.3)


def mark(facts: SoundFacts) -> Mark:
    return Mark(f"{facts.model} {facts.sample_rate}")


@attrs.define
class Fails:
    """Passes on two pieces, then fails."""

    fail: Callable[[], Any]
    pieces: int = 0

    def process(self, sound: np.ndarray) -> Any:
        self.pieces += 1
        return sound if self.pieces < 3 else self.fail()

    def finish(self) -> np.ndarray:
        return np.zeros(0, np.float32)


def raises(facts: SoundFacts) -> Fails:
    return Fails(_raise)


def crashes(facts: SoundFacts) -> Fails:
    return Fails(_crash)


def hangs(facts: SoundFacts) -> Fails:
    return Fails(_hang)


def silent(facts: SoundFacts) -> Fails:
    return Fails(_nan)


def _raise() -> None:
    raise ZeroDivisionError("the private text")


def _crash() -> None:
    os._exit(7)


def _hang() -> None:
    time.sleep(60)


def _nan() -> np.ndarray:
    return np.full(5, np.nan, np.float32)


@hookimpl
def vox_serve_postprocess() -> Sequence[Postprocessor]:
    made: list[tuple[str, Callable[[SoundFacts], SoundProcess]]]
    made = [("mark", mark), ("raises", raises), ("crashes", crashes), ("silent", silent)]
    return [Postprocessor(name, "for tests", begin) for name, begin in made]
