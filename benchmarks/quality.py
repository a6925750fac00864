"""Compares smaller weight formats with float32: the share of equal codes, teacher-forced.

The float32 form speaks texts greedily.  Every other form then gets that form's codes at every
position, in the backbone and in the depth decoder, and its choices are compared with them.  So one
different code does not change all later ones.

    python -m benchmarks.quality MODEL [--device cuda] [--frames 40]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

import attrs
import torch

from benchmarks.ours import TEXT
from vox_serve.engine.kv_cache import SlotKVCache
from vox_serve.model import LoadOptions, Model
from vox_serve.plugins import load_plugins

FORMS = {
    "cpu": {
        "float16": ("float32", "float16", 1),
        "float16, 4 rows": ("float32", "float16", 4),
        "bfloat16": ("bfloat16", None, 1),
        "int8": ("float32", "int8", 1),
    },
    "cuda": {"bfloat16": ("bfloat16", None, 1), "fp8": ("bfloat16", "fp8", 1)},
}
"""By device and name: number format of the computation, form of linear layers' weights, and the
number of copies of a text spoken together, because that may change the products' format."""
TEXTS = (
    TEXT,
    "your table for two is ready.",
    "it will rain in the evening, so take a coat.",
    "could you tell me a little more about the problem?",
    "we walked along the river until the lights were far behind us.",
    "there is a letter for you on the kitchen table.",
    "turn left at the church, then drive on for about two miles.",
    "the old clock in the hall has not been wound for years.",
    "she found the key under a stone beside the gate.",
    "please leave your name and number after the tone.",
)


class Recorder:
    """A `vox_serve.sampling.Sampler` that returns given codes and keeps the logits.

    Args:
        forced: int64 `[K]`, the codes of one frame; None: the most likely ones.
    """

    def __init__(self, forced: torch.Tensor | None) -> None:
        self._forced = forced
        self.logits: list[torch.Tensor] = []

    def __call__(self, logits: torch.Tensor, codebook: int) -> torch.Tensor:
        self.logits.append(logits[0].float())
        if self._forced is None:
            return logits.argmax(dim=-1)
        return self._forced[codebook].expand(len(logits))


@attrs.frozen(eq=False)
class Spoken:
    """Results of one text: codes `[F, K]` that were fed back, and host logits `[F, K, V]`."""

    codes: torch.Tensor
    logits: torch.Tensor


def load_form(model: str, device: str, dtype: str, weights: str | None) -> Model:
    """Runs a model without an engine."""
    resolved = load_plugins().resolve(model)
    return resolved.spec.load(LoadOptions(resolved.directory(), device, dtype, weights))


@torch.inference_mode()
def speak(
    model: Model, text: str, frames: int, forced: torch.Tensor | None = None, rows: int = 1
) -> Spoken:
    """Speak one text for at most `frames` frames; if `forced` `[F, K]` is given, speak those.

    Args:
        rows: speak this many copies in one batch, and return the first.
    """
    device = model.device
    slots = torch.arange(rows, device=device)
    kv = SlotKVCache(model.kv_layout, rows, model.max_positions, device, model.dtype)
    prompt = model.prompt(text, model.voices[0], context=())
    length = len(prompt)
    kv.extent = min(length + frames, model.max_positions)
    inputs = {
        name: torch.stack([tensor] * rows).to(device) for name, tensor in prompt.inputs.items()
    }
    hidden = model.prefill(inputs, torch.full((rows,), length, device=device), slots, kv)
    kv.lengths[slots] = length
    codes, logits = [], []
    for number in range(frames if forced is None else len(forced)):
        recorder = Recorder(None if forced is None else forced[number].to(device))
        frame, end = model.emit(hidden, recorder)
        codes.append(frame[0].cpu())
        logits.append(torch.stack(recorder.logits).cpu())
        if forced is None and bool(end[0]):
            break
        hidden = model.advance(frame, slots, kv)
        kv.lengths[slots] += 1
    return Spoken(torch.stack(codes), torch.stack(logits))


def compare(reference: Sequence[Spoken], form: Sequence[Spoken]) -> dict[str, float]:
    """Shares of equal choices, and the error of the logits relative to the reference's spread.

    The spread is the standard deviation of the reference's logits over the vocabulary.

    Returns:
        `equal_first`: share of equal choices for codebook 0; `equal`: for all codebooks;
        `worst_error` and `mean_error`: largest and mean difference of a logit, over the spread;
        `margin`: the median distance of the reference's two most likely codes, over the spread.
    """
    equal, worst, mean, margins = [], 0.0, [], []
    for one, other in zip(reference, form, strict=True):
        spread = one.logits.std(dim=-1, keepdim=True)
        error = (one.logits - other.logits).abs() / spread
        worst = max(worst, float(error.max()))
        mean.append(error.mean(dim=(1, 2)))
        equal.append(one.logits.argmax(-1) == other.logits.argmax(-1))
        best = one.logits.topk(2, dim=-1).values
        margins.append((best[..., 0] - best[..., 1]) / spread[..., 0])
    choices = torch.cat(equal).float()
    return {
        "equal_first": float(choices[:, 0].mean()),
        "equal": float(choices.mean()),
        "worst_error": worst,
        "mean_error": float(torch.cat(mean).mean()),
        "margin": float(torch.cat(margins).median()),
    }


def measure(model: str, device: str, texts: Sequence[str], frames: int) -> dict[str, Any]:
    """Compare every form of a device with float32, one at a time in memory.

    Args:
        device: `cpu` or a CUDA device.
        frames: the most frames of each text.

    Returns:
        the numbers of `texts`, `frames` and `codes` compared, and the result of `compare` by form.
    """
    reference_model = load_form(model, device, "float32", None)
    reference = [speak(reference_model, text, frames) for text in texts]
    del reference_model
    forms = {}
    for name, (dtype, weights, rows) in FORMS[torch.device(device).type].items():
        loaded = load_form(model, device, dtype, weights)
        spoken = [
            speak(loaded, text, frames, said.codes, rows)
            for text, said in zip(texts, reference, strict=True)
        ]
        del loaded
        forms[name] = compare(reference, spoken)
    return {
        "texts": len(texts),
        "frames": sum(len(said.codes) for said in reference),
        "codes": sum(said.codes.numel() for said in reference),
        "forms": forms,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", help="alias or directory")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--texts", type=int, default=len(TEXTS), help="how many of the built-in texts"
    )
    parser.add_argument("--frames", type=int, default=40, help="the most of each text")
    asked = parser.parse_args()
    print(json.dumps(measure(asked.model, asked.device, TEXTS[: asked.texts], asked.frames)))


if __name__ == "__main__":
    main()
