"""Mimi's split residual vector quantizer: converts latents to codes, and codes to latents.

A latent is projected twice, for the semantic codebooks and for the acoustic ones.  In each part, a
codebook chooses the vector nearest to the residual of the previous codebooks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from vox_serve.nn.seanet import Read

EPSILON = 1e-5
"""A vector is a sum over training vectors divided by their count; this is the least divisor."""


class Quantizer(nn.Module):
    """Latents `[T, hidden_size]` to codes, int64 `[K, T]`."""

    def __init__(self, c: Mapping[str, Any], num_codebooks: int, read: Read) -> None:
        super().__init__()
        parts = _parts(c, num_codebooks)
        self.parts = nn.ModuleList(_Part(c, name, number, read) for name, number in parts)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([part(x) for part in self.parts])


class _Part(nn.Module):
    books: torch.Tensor  # [number, codebook_size, C]
    halves: torch.Tensor  # half the squared length of each vector: [number, codebook_size]
    projection: torch.Tensor | None  # [C, hidden_size]

    def __init__(self, c: Mapping[str, Any], name: str, number: int, read: Read) -> None:
        super().__init__()
        books = torch.stack(_books(c, name, number, read))
        self.register_buffer("books", books)
        self.register_buffer("halves", books.square().sum(2) / 2)
        self.register_buffer("projection", _projection(c, f"{name}input_proj", read))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.projection is not None:
            x = F.linear(x, self.projection)
        codes = []
        for book, half in zip(self.books, self.halves, strict=True):
            # |x - v|^2 is least where x v - |v|^2 / 2 is greatest; the first of equals is taken.
            code = torch.addmm(half, x, book.t(), beta=-1).argmax(1)
            x = x - F.embedding(code, book)
            codes.append(code)
        return torch.stack(codes)


class CodeTable(nn.Module):
    """Codes `[B, K]` to latents `[B, hidden_size]`."""

    table: torch.Tensor  # [K * codebook_size, hidden_size]
    starts: torch.Tensor  # of each codebook in it

    def __init__(self, c: Mapping[str, Any], num_codebooks: int, read: Read) -> None:
        super().__init__()
        table = code_table(c, num_codebooks, read)
        self.register_buffer("table", table)
        starts = torch.arange(num_codebooks, device=table.device) * c["codebook_size"]
        self.register_buffer("starts", starts)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        return F.embedding(codes + self.starts, self.table).sum(1)


def code_table(c: Mapping[str, Any], num_codebooks: int, read: Read) -> torch.Tensor:
    """The vector that each code adds to the latent, `[K * codebook_size, hidden_size]`."""
    tables = []
    for name, number in _parts(c, num_codebooks):
        table = torch.cat(_books(c, name, number, read))
        projection = _projection(c, f"{name}output_proj", read)
        tables.append(table if projection is None else table @ projection.t())
    return torch.cat(tables)


def quantizer_tensors(c: Mapping[str, Any]) -> Iterator[str]:
    """The names of all tensors that a checkpoint may have; not all codebooks are used."""
    for name, number in _parts(c, c["num_quantizers"]):
        for layer in range(number):
            for kind in ("embed_sum", "cluster_usage", "initialized"):
                yield f"{name}layers.{layer}.codebook.{kind}"
        if _projects(c):
            yield from (f"{name}input_proj.weight", f"{name}output_proj.weight")


def _parts(c: Mapping[str, Any], num_codebooks: int) -> list[tuple[str, int]]:
    """The prefix of each part's tensors, and the number of its codebooks in use."""
    semantic = c["num_semantic_quantizers"]
    counts = {"semantic": semantic, "acoustic": num_codebooks - semantic}
    names = "quantizer.{}_residual_vector_quantizer."
    return [(names.format(part), count) for part, count in counts.items() if count]


def _books(c: Mapping[str, Any], name: str, number: int, read: Read) -> list[torch.Tensor]:
    """`[codebook_size, C]` each."""
    books = []
    for layer in range(number):
        codebook = f"{name}layers.{layer}.codebook"
        sums = read(f"{codebook}.embed_sum", c["codebook_size"], _width(c))
        count = read(f"{codebook}.cluster_usage", c["codebook_size"])
        books.append(sums / count.clamp(min=EPSILON)[:, None])
    return books


def _projection(c: Mapping[str, Any], name: str, read: Read) -> torch.Tensor | None:
    """A matrix `[out, in]`; transformers omits it between equal sizes."""
    if not _projects(c):
        return None
    sizes = (_width(c), c["hidden_size"])
    outputs, inputs = sizes if name.endswith("input_proj") else sizes[::-1]
    return read(f"{name}.weight", outputs, inputs, 1)[..., 0]


def _projects(c: Mapping[str, Any]) -> bool:
    return bool(_width(c) != c["hidden_size"])


def _width(c: Mapping[str, Any]) -> int:
    width: int = c["vector_quantization_hidden_dimension"]
    return width
