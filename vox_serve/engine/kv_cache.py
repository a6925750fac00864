"""The key/value cache: a row per slot, positions in order, no pages.

Layout `[layer, slot, position, head, dim]`.  A position is written before it is
read, so a reused slot need not be cleared.  Only a row with non-finite numbers is cleared, because
0 x NaN is NaN even under a mask.
"""

from __future__ import annotations

from functools import cached_property

import torch

from vox_serve.model import KVLayout, KVView, Place


class SlotKVCache:
    """Implements `vox_serve.model.KVCache`.

    Args:
        layout: shape of one row.
        num_slots: S.
        max_positions: P, the model's context.
    """

    def __init__(
        self,
        layout: KVLayout,
        num_slots: int,
        max_positions: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        shape = (layout.num_layers, num_slots, max_positions, layout.num_kv_heads, layout.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.lengths = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self.extent = max_positions
        """E: attention reads positions 0 .. E - 1.  The runner sets it from lengths on the host,
        to cover the longest row of the batch."""
        self.span: slice | None = None
        """The batch's rows as a slice, if they are consecutive: attention then reads them in place
        instead of from a copy."""

    @property
    def max_positions(self) -> int:
        return self.keys.shape[2]

    @property
    def num_bytes(self) -> int:
        return 2 * self.keys.numel() * self.keys.element_size()

    @property
    def position_bytes(self) -> int:
        """Memory of one position of one slot."""
        return self.num_bytes // (self.keys.shape[1] * self.keys.shape[2])

    def view(self, slots: torch.Tensor, positions: torch.Tensor) -> KVView:
        return SlotView(self, slots, positions)

    def fill(self, slot: int, keys: torch.Tensor, values: torch.Tensor) -> int:
        """Copy keys and values `[layer, P, head, dim]` to a slot's first positions; returns P."""
        length = keys.shape[1]
        self.keys[:, slot, :length] = keys
        self.values[:, slot, :length] = values
        return length

    def clear(self, slot: int) -> None:
        """Zero a slot's row."""
        self.keys[:, slot] = 0
        self.values[:, slot] = 0


class SlotView:
    """Implements `vox_serve.model.KVView` for the rows of one batch."""

    def __init__(self, cache: SlotKVCache, slots: torch.Tensor, positions: torch.Tensor) -> None:
        self._cache = cache
        self._positions = positions
        self._slots = slots

    @cached_property
    def _index(self) -> tuple[torch.Tensor, torch.Tensor]:
        # Padding may point past the end of the cache; it is written where nothing is read yet.
        return self._slots[:, None], self._positions.clamp(max=self._cache.max_positions - 1)

    @cached_property
    def mask(self) -> torch.Tensor | None:
        """`[B, 1, T, E]`; made at first use, because the attention kernel does not need it."""
        reach = torch.arange(self._cache.extent, device=self._positions.device)
        return (reach <= self._positions[..., None])[:, None]

    def place(self, layer: int) -> Place:
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        return keys, values, self._slots, self._positions[:, 0]

    def extend(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        cached_keys, cached_values = self._cache.keys[layer], self._cache.values[layer]
        cached_keys[self._index] = keys
        cached_values[self._index] = values
        extent, span = self._cache.extent, self._cache.span
        if span is not None:
            return cached_keys[span, :extent], cached_values[span, :extent]
        return (
            cached_keys[:, :extent].index_select(0, self._slots),
            cached_values[:, :extent].index_select(0, self._slots),
        )
