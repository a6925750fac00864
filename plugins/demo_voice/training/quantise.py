"""Codebooks that learn by moving averages, with revival of unused entries.

van den Oord et al., "Neural Discrete Representation Learning" (2017), appendix A.1, for the
averages; residual stages as in SoundStream (2107.03312).
"""

from __future__ import annotations

import torch
from torch import nn

from plugins.demo_voice.training.run import gather

DECAY = 0.99
DEAD = 0.02
"""An entry is revived once its average count falls under this share of an even one."""


class Codebook(nn.Module):
    """Entries `[N, D]`.  The first `reserved` ones are never chosen."""

    entries: torch.Tensor
    counts: torch.Tensor
    sums: torch.Tensor

    def __init__(self, size: int, dim: int, reserved: int = 0) -> None:
        super().__init__()
        self.reserved = reserved
        self.register_buffer("entries", torch.zeros(size, dim))
        self.register_buffer("counts", torch.ones(size))
        self.register_buffer("sums", torch.zeros(size, dim))

    @torch.no_grad()
    def nearest(self, x: torch.Tensor) -> torch.Tensor:
        """Codes `[M]` of vectors `[M, D]`."""
        open_entries = self.entries[self.reserved :]
        # |x|^2 is the same for all entries.
        distance = open_entries.square().sum(1) - 2 * x @ open_entries.T
        return distance.argmin(1) + self.reserved

    @torch.no_grad()
    def k_means(self, x: torch.Tensor, rounds: int = 20) -> None:
        """Start from vectors `[M, D]`; empty clusters restart at random ones."""
        size = len(self.entries)
        chosen = torch.randint(len(x), (size,), device=x.device)
        self.entries.copy_(x[chosen])
        for _ in range(rounds):
            codes = self.nearest(x)
            counts, sums = self._totals(x, codes)
            again = x[torch.randint(len(x), (size,), device=x.device)]
            mean = sums / counts.clamp(min=1)[:, None]
            self.entries.copy_(torch.where(counts[:, None] > 0, mean, again))
        # Initialize averages as if a batch of ordinary size had been seen.
        self.counts.copy_(counts.clamp(min=1) * (8 / counts.mean()))
        self.sums.copy_(self.entries * self.counts[:, None])
        self._reserve()

    @torch.no_grad()
    def learn(self, x: torch.Tensor, codes: torch.Tensor) -> None:
        """Move the averages towards what `nearest` chose, in all processes alike."""
        x, codes = gather(x), gather(codes)
        counts, sums = self._totals(x, codes)
        self.counts.lerp_(counts, 1 - DECAY)
        self.sums.lerp_(sums, 1 - DECAY)
        even = self.counts.sum() / len(self.counts)
        dead = self.counts < DEAD * even
        again = x[torch.randint(len(x), (len(dead),), device=x.device)]
        self.sums[dead] = again[dead] * even
        self.counts[dead] = even
        self.entries.copy_(self.sums / self.counts[:, None])
        self._reserve()

    def _totals(self, x: torch.Tensor, codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        counts = torch.bincount(codes, minlength=len(self.entries)).to(x.dtype)
        return counts, torch.zeros_like(self.entries).index_add_(0, codes, x)

    def _reserve(self) -> None:
        """Put the reserved entries where there are no latents: opposite to the mean, far away."""
        if self.reserved:
            others = self.entries[self.reserved :]
            away = -others.mean(0)
            away = away / away.norm().clamp(min=1e-6) * 6 * others.norm(dim=1).max()
            self.entries[: self.reserved] = away


def quantise(
    books: nn.ModuleList, x: torch.Tensor, learn: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Residual quantisation of `[B, D, T]` to the sum of entries and codes `[B, K, T]`.

    The sum carries x's gradient straight through.
    """
    flat = x.transpose(1, 2).reshape(-1, x.shape[1])
    residual = flat.detach()
    codes: list[torch.Tensor] = []
    for book in books:
        assert isinstance(book, Codebook)
        code = book.nearest(residual)
        chosen = book.entries[code]
        if learn:
            book.learn(residual, code)
        residual = residual - chosen
        codes.append(code)
    total = (flat.detach() - residual).view(x.shape[0], x.shape[2], -1).transpose(1, 2)
    stacked = torch.stack(codes).view(len(codes), x.shape[0], x.shape[2]).transpose(0, 1)
    return x + (total - x).detach(), stacked
