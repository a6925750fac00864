"""Recreates a work folder from a checkpoint, to resume a training whose states are lost.

Writes the states of `codec --part encoder`, `codec --part decoder` and `lm`, except what a
checkpoint does not contain: the optimizers' moments, the auxiliary heads, the judge.  Raise
`decoder_steps` and the language model's `steps` in config.py, run `data`, this, then `codec`, which
teaches the heads of the fixed encoder, makes codes and goes on with the decoder, then `lm`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from plugins.demo_voice.training.codec_model import CodecModel
from plugins.demo_voice.training.export import DEPTH_HEADS, language_tensors, shipped_language
from plugins.demo_voice.training.lm import Learner
from plugins.demo_voice.training.run import Run, begin, parser, save
from vox_serve_csm.checkpoint import CODEC_PREFIX
from vox_serve_demo_voice.plugin import CHECKPOINT


def read_codec(model: CodecModel, checkpoint: Path) -> None:
    """Fill the codec from a checkpoint of the same size; the inverse of `export`.

    Exits if it has another size.
    """
    theirs = json.loads((checkpoint / "config.json").read_text("utf-8"))["codec_config"]
    for key, ours in model.config.mimi().items():
        if theirs.get(key) != ours:
            raise SystemExit(f"{checkpoint}: its codec has {key} {theirs.get(key)}, not {ours}")
    tensors = load_file(checkpoint / "model.safetensors")
    model.mimi.load_state_dict(
        {
            name.removeprefix(CODEC_PREFIX): tensor.float()
            for name, tensor in tensors.items()
            if name.startswith(CODEC_PREFIX)
        }
    )
    model.read_back()


@torch.no_grad()
def read_language(learner: Learner, checkpoint: Path) -> None:
    """Fill the language model likewise."""
    tensors = shipped_language(checkpoint)
    books = tensors[DEPTH_HEADS]
    for head, theirs in zip(learner.network.depth_heads, books, strict=True):
        head.weight.copy_(theirs.t())
    for name, ours in language_tensors(learner).items():
        if name != DEPTH_HEADS:
            ours.copy_(tensors[name])  # a view of a parameter


def restore(run: Run, checkpoint: Path, decoder_steps: int, lm_steps: int) -> None:
    """Write `codec/encoder.pt`, `codec/decoder.pt` and `lm/lm.pt`.  Exits if they already exist."""
    paths = {part: run.path("codec", f"{part}.pt") for part in ("encoder", "decoder")}
    paths["lm"] = run.path("lm", "lm.pt")
    for path in paths.values():
        if path.exists():
            raise SystemExit(f"{path} already exists; nothing was written")
    torch.manual_seed(run.recipe.codec.seed)
    model, learner = CodecModel(run.recipe.codec), Learner(run.recipe)
    read_codec(model, checkpoint)
    read_language(learner, checkpoint)
    codec = {"model": model.state_dict()}
    states: dict[str, dict[str, Any]] = {
        "encoder": codec | {"step": run.recipe.codec.encoder_steps},
        "decoder": codec | {"step": decoder_steps},
        "lm": {"learner": learner.state_dict(), "step": lm_steps},
    }
    for part, path in paths.items():
        save(path, states[part])
        print(f"{path}: after {states[part]['step']} steps, without its optimizer")


if __name__ == "__main__":
    flags = parser(__doc__)
    flags.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    flags.add_argument("--decoder-steps", type=int, required=True, help="that it has had")
    flags.add_argument("--lm-steps", type=int, required=True, help="that it has had")
    options = flags.parse_args()
    restore(begin(options), options.checkpoint, options.decoder_steps, options.lm_steps)
