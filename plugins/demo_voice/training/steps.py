"""What the trainings of encoder and decoder share: crops of the corpus, and an optimizer step."""

from __future__ import annotations

import torch

from plugins.demo_voice.training.corpus import IGNORED, Corpus
from plugins.demo_voice.training.run import average_gradients


def draw(
    lengths: list[int], step: int, seed: int, batch: int, frames: int
) -> list[tuple[int, int]]:
    """Utterances (with their numbers of frames) and first frames of a step's crops."""
    rng = torch.Generator().manual_seed(seed * 1_000_003 + step)
    chosen: list[tuple[int, int]] = []
    for number in torch.randint(len(lengths), (batch,), generator=rng).tolist():
        # A little beyond both ends, so that beginnings and ends are as frequent as the rest.
        spare = lengths[number] - frames
        first = int(torch.randint(-3, max(0, spare) + 4, (1,), generator=rng))
        chosen.append((number, min(max(first, 0), max(0, spare))))
    return chosen


def crops(corpus: Corpus, chosen: list[tuple[int, int]], frames: int) -> torch.Tensor:
    return torch.stack([corpus.sound(n, first, frames) for n, first in chosen])


def pitches(corpus: Corpus, chosen: list[tuple[int, int]], frames: int) -> torch.Tensor:
    return torch.stack([corpus.pitch(n, first, frames) for n, first in chosen])


def labels(corpus: Corpus, chosen: list[tuple[int, int]], frames: int) -> torch.Tensor:
    out = torch.full((len(chosen), frames, 4), IGNORED)
    for row, (number, first) in zip(out, chosen, strict=True):
        found = corpus.labels(number)[first : first + frames]
        row[: len(found)] = found
    return out


def follow(optimizer: torch.optim.Optimizer, loss: torch.Tensor, rate_now: float) -> None:
    """One optimizer step with a clipped gradient norm."""
    for group in optimizer.param_groups:
        group["lr"] = rate_now
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    learning = [p for g in optimizer.param_groups for p in g["params"]]
    average_gradients(learning)
    torch.nn.utils.clip_grad_norm_(learning, 1.0)
    optimizer.step()
