"""The teacher's reading of ten unseen sentences as cepstra, so that a test needs no flite.

Writes an `.npz` of some 40 kB: `texts`, and an array `[frames, 13]`, float16, every 20 ms, under
`0` to `9`; sentence i is read by speaker i % 2.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from plugins.demo_voice.training.evaluate import COARSE, unseen
from plugins.demo_voice.training.measure import cepstra
from plugins.demo_voice.training.teacher import render

SENTENCES = 10


def write(path: Path, most_characters: int = 60, most_words: int = 10) -> None:
    """Render the sentences and keep their cepstra."""
    texts = unseen(SENTENCES, most_characters, most_words)
    arrays = {
        str(i): cepstra(render(text, i % 2).pcm.astype(np.float32) / 32768)[::COARSE]
        for i, text in enumerate(texts)
    }
    small = {name: array.astype(np.float16) for name, array in arrays.items()}
    np.savez_compressed(path, allow_pickle=False, texts=np.array(texts), **small)


if __name__ == "__main__":
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("path", type=Path)
    write(flags.parse_args().path)
