"""Recreates a work folder from a checkpoint, to resume training of a codec whose states are lost.

Writes the states of `codec --part encoder` and `--part decoder`, except what a checkpoint does not
contain: the optimizer's moments, the auxiliary heads, the judge.  Raise `decoder_steps` in
config.py, run this, then `codec --part codes` and `--part decoder`.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from plugins.demo_voice.training.codec_model import CodecModel
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
def restore(run: Run, checkpoint: Path, decoder_steps: int) -> None:
    """Write `codec/encoder.pt` and `codec/decoder.pt`.  Exits if they already exist."""
    paths = {part: run.path("codec", f"{part}.pt") for part in ("encoder", "decoder")}
    for path in paths.values():
        if path.exists():
            raise SystemExit(f"{path} already exists; nothing was written")
    torch.manual_seed(run.recipe.codec.seed)
    model = CodecModel(run.recipe.codec)
    read_codec(model, checkpoint)
    steps = {"encoder": run.recipe.codec.encoder_steps, "decoder": decoder_steps}
    for part, path in paths.items():
        save(path, {"model": model.state_dict(), "step": steps[part]})
        print(f"{path}: after {steps[part]} steps, without its optimizer")


if __name__ == "__main__":
    flags = parser(__doc__)
    flags.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    flags.add_argument("--decoder-steps", type=int, required=True, help="that it has had")
    options = flags.parse_args()
    restore(begin(options), options.checkpoint, options.decoder_steps)
