"""Streaming state with a row per slot, for moshi's modules.

moshi keeps a module's state in attributes whose batch dimension is the batch that runs.  Here all
of it lies in flat rows, one per slot; a step copies the rows of its slots together, lets moshi
work on views of the copy, and writes them back.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch


class _Field(NamedTuple):
    """A tensor of moshi's streaming state: an attribute, and its place in a row."""

    owner: Any
    name: str
    batch_dim: int
    start: int
    shape: torch.Size  # without the batch dimension

    def bind(self, flat: torch.Tensor) -> None:
        """Make the attribute a view of `flat`, `[B, width]`; moshi then updates it in place."""
        part = flat.narrow(1, self.start, self.shape.numel())
        view = part.view(flat.shape[0], *self.shape)
        setattr(self.owner, self.name, view.movedim(0, self.batch_dim))


class StateRows:
    """The streaming state of one dtype: all its fields side by side, in a flat row per slot.

    A last row stays zero, as moshi's state begins: a reset is a read from that row.
    """

    def __init__(
        self, attributes: Iterable[tuple[Any, str, int]], num_slots: int, like: torch.Tensor
    ) -> None:
        self.fields: list[_Field] = []
        width = 0
        for owner, name, batch_dim in attributes:
            shape = getattr(owner, name).select(batch_dim, 0).shape
            self.fields.append(_Field(owner, name, batch_dim, width, shape))
            width += -(-shape.numel() // 64) * 64  # CUDA's attention wants aligned rings
        self.rows = like.new_zeros(num_slots + 1, width)
        # Kept, because fresh pages for it in every step cost a CPU more than the copy does.
        self.batch = like.new_empty(num_slots, width)

    def gather(self, slots: torch.Tensor, reset: torch.Tensor) -> None:
        """Make copies of the slots' rows (where reset, of the initial row) moshi's state."""
        flat = self.batch[: len(slots)]
        initial = self.rows.shape[0] - 1
        torch.index_select(self.rows, 0, slots.masked_fill(reset, initial), out=flat)
        for field in self.fields:
            field.bind(flat)

    def scatter(self, slots: torch.Tensor) -> None:
        """Write back what moshi updated in place."""
        self.rows.index_copy_(0, slots, self.batch[: len(slots)])
