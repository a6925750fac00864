"""Stage 2: the codec, in three consecutive parts.

encoder   Encoder and codebooks (`train_encoder.py`).
codes     Encodes all utterances into `codes/`, which is all that the language model needs.
decoder   The waveform decoder on the frozen codes (`train_decoder.py`).

Each part saves its state and resumes from it.  Processes that `torchrun` starts share the work.
"""

from __future__ import annotations

import torch

from plugins.demo_voice.training.codec_model import CodecModel
from plugins.demo_voice.training.codes import make_codes
from plugins.demo_voice.training.corpus import Corpus
from plugins.demo_voice.training.run import begin, parser, wait_for_all
from plugins.demo_voice.training.train_decoder import train_decoder
from plugins.demo_voice.training.train_encoder import train_encoder


def main() -> None:
    flags = parser(__doc__)
    parts = {"encoder": train_encoder, "codes": make_codes, "decoder": train_decoder}
    flags.add_argument("--part", choices=[*parts, "all"], default="all")
    options = flags.parse_args()
    run = begin(options)
    if run.recipe.codec.batch % run.world:
        raise SystemExit(
            f"{run.world} processes cannot share a batch of {run.recipe.codec.batch} evenly"
        )
    corpus = Corpus(run.path("data", "x").parent)
    for name, part in parts.items():
        if options.part in (name, "all"):
            torch.manual_seed(run.recipe.codec.seed)
            part(run, corpus, CodecModel(run.recipe.codec, run.half).to(run.device))
            wait_for_all()


if __name__ == "__main__":
    main()
