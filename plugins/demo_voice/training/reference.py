"""The teachers' reading of ten unseen sentences as cepstra, so that a test needs no teacher.

Writes an `.npz` of some 40 kB: `texts`, and an array `[frames, 13]`, float16, every 20 ms, under
`0` to `9`; sentence i is read by speaker i % 2.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from plugins.demo_voice.training.config import TEACHERS
from plugins.demo_voice.training.evaluate import sentences
from plugins.demo_voice.training.measure import cepstra
from plugins.demo_voice.training.teacher import render
from vox_serve_demo_voice.text import normalise

SENTENCES, MOST_CHARACTERS = 10, 50
COARSE = 2
"""Every second frame, 20 ms, is enough to tell which sentence was said."""


def write(path: Path) -> None:
    """Render the first short sentences of the evaluation and keep their cepstra."""
    texts = [normalise(s.text) for s in sentences() if len(s.text) <= MOST_CHARACTERS][:SENTENCES]
    arrays = {
        str(i): cepstra(render(text, TEACHERS[i % 2]).pcm.astype(np.float32) / 32768)[::COARSE]
        for i, text in enumerate(texts)
    }
    small = {name: array.astype(np.float16) for name, array in arrays.items()}
    np.savez_compressed(path, allow_pickle=False, texts=np.array(texts), **small)


if __name__ == "__main__":
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("path", type=Path)
    write(flags.parse_args().path)
