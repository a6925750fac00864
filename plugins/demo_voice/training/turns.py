"""Batches for the language model: turns of similar length, with and without context.

The layout is that of `vox_serve_csm.prompt`: for each turn its text, its frames, a frame of
zeros; the model must also generate the frame of zeros at the end of a turn.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import attrs
import torch

from plugins.demo_voice.training.config import LABELS_PER_FRAME, LmConfig
from plugins.demo_voice.training.corpus import IGNORED, Corpus
from plugins.demo_voice.training.tokenizer import encode

EMPTY = -1
NEIGHBOURS = 400
"""The turns of a batch are drawn from this many turns of similar length."""
VALIDATION_ONE_IN = 25


@attrs.frozen(eq=False)
class Batch:
    """`tokens` `[B, T, K + 1]` with -1 where a column is empty; the frame that each
    position must predict, `targets` `[B, T, K]`, and that frame's `phones` `[B, T, 4]`, or
    `IGNORED`."""

    tokens: torch.Tensor
    targets: torch.Tensor
    phones: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        return Batch(self.tokens.to(device), self.targets.to(device), self.phones.to(device))


class Turns:
    """Draws batches; the same batch for the same step.

    Args:
        corpus: texts and labels.
        codes: `[K, F]` by utterance; it may end before the corpus does.
        config: batch size, lengths, share with context.
        validation: draw from the utterances that training leaves out.
    """

    def __init__(
        self,
        corpus: Corpus,
        codes: Sequence[torch.Tensor],
        config: LmConfig,
        validation: bool = False,
    ) -> None:
        self._corpus, self._codes, self._config = corpus, codes, config
        self._made: dict[int, Batch] = {}
        kept = [
            n
            for n in range(len(codes))
            if (n % VALIDATION_ONE_IN == VALIDATION_ONE_IN - 1) == validation
        ]
        self._ordered = sorted(kept, key=lambda n: corpus.utterances[n].frames)
        self._frames = [corpus.utterances[n].frames for n in self._ordered]
        lengths = [
            corpus.utterances[n].frames + len(corpus.utterances[n].text) for n in self._ordered
        ]
        # A batch has fewer long turns, so they must be drawn more often.
        self._reach = torch.tensor(lengths).cumsum(0)

    def batch(self, step: int) -> Batch:
        config = self._config
        rng = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        grown = step / max(1.0, config.grow * config.steps)
        longest = config.first_frames / max(1e-3, 1 - grown) if grown < 1 else 1e9
        allowed = bisect_right(self._frames, longest)
        with_context = torch.rand((), generator=rng) < config.context_share
        turns = int(torch.randint(2, 5, (), generator=rng)) if with_context else 1
        columns = [self._anchor(rng, max(1, allowed)) for _ in range(turns)]
        rows: list[Batch] = []
        widest = 0
        while True:
            row = self._sequence([self._near(at, rng, max(1, allowed)) for at in columns])
            widest = max(widest, len(row.tokens))
            if rows and widest * (len(rows) + 1) > config.tokens:
                return _stack(rows)
            rows.append(row)

    def _anchor(self, rng: torch.Generator, allowed: int) -> int:
        total = int(self._reach[allowed - 1])
        return int(torch.searchsorted(self._reach, torch.randint(total, (), generator=rng)))

    def _near(self, at: int, rng: torch.Generator, allowed: int) -> int:
        half = NEIGHBOURS // 2
        low, high = max(0, at - half), min(allowed, at + half)
        return self._ordered[int(torch.randint(low, max(high, low + 1), (), generator=rng))]

    def _sequence(self, numbers: Sequence[int]) -> Batch:
        for n in numbers:
            if n not in self._made:
                self._made[n] = self._turn(n)
        parts = [self._made[n] for n in numbers]
        return Batch(
            torch.cat([p.tokens for p in parts]),
            torch.cat([p.targets for p in parts]),
            torch.cat([p.phones for p in parts]),
        )

    def _turn(self, number: int) -> Batch:
        utterance, codes = self._corpus.utterances[number], self._codes[number].long()
        text = encode(utterance.text, utterance.speaker)
        books, frames = codes.shape
        said = torch.cat([codes.T, torch.zeros(1, books, dtype=torch.long)])
        tokens = torch.full((len(text) + frames + 1, books + 1), EMPTY)
        tokens[: len(text), -1] = torch.tensor(text)
        tokens[len(text) :, :-1] = said
        targets = torch.full((len(tokens), books), IGNORED)
        targets[len(text) - 1 : -1] = said
        phones = torch.full((len(tokens), LABELS_PER_FRAME), IGNORED)
        phones[len(text) - 1 : len(text) - 1 + frames] = self._corpus.labels(number)
        return Batch(tokens, targets, phones)


def _stack(rows: Sequence[Batch]) -> Batch:
    def pad(parts: list[torch.Tensor], value: int) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=value)

    return Batch(
        pad([r.tokens for r in rows], EMPTY),
        pad([r.targets for r in rows], IGNORED),
        pad([r.phones for r in rows], IGNORED),
    )
