"""Keeps the keys and values of prompt prefixes, which then need not be computed again.

All prompts of a voice or a conversation begin the same way.  Prefixes are found by comparing
prompts row by row, and a prompt may use part of a prefix, because position n of the cache depends
only on positions 0 .. n.
"""

from __future__ import annotations

from functools import cached_property

import attrs
import torch

from vox_serve.engine.kv_cache import SlotKVCache
from vox_serve.model import Inputs

MAX_PREFIXES = 128
"""Limits the work, because each new prompt is compared with all of them."""
GLANCE = 32


@attrs.define(eq=False)
class Prefix:
    """`inputs` `[T, ...]` on the host; keys and values `[layer, T, head, dim]` on the device."""

    inputs: Inputs
    keys: torch.Tensor
    values: torch.Tensor
    adapter: int
    """Which one computed them; 0: none."""

    def shared(self, inputs: Inputs, adapter: int) -> int:
        """The number of leading rows in common with a prompt for this adapter."""
        return shared_rows(self.inputs, inputs) if adapter == self.adapter else 0

    def __len__(self) -> int:
        return self.keys.shape[1]

    @cached_property
    def num_bytes(self) -> int:
        """Memory on the device."""
        return self.keys.nbytes + self.values.nbytes


class PrefixCache:
    """Args: max_bytes of keys and values; the least recently used prefix is dropped first."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._prefixes: list[Prefix] = []  # the most recently used is last

    def __len__(self) -> int:
        return len(self._prefixes)

    @property
    def num_bytes(self) -> int:
        return sum(prefix.num_bytes for prefix in self._prefixes)

    def restore(self, inputs: Inputs, slot: int, kv: SlotKVCache, adapter: int = 0) -> int:
        """Fill `slot` with the longest cached prefix of a prompt; returns its length.

        Only what the same adapter computed is used.

        At least the prompt's last position is left to run, because it gives the hidden state.
        """
        best, length = None, 0
        for prefix in self._prefixes:
            common = prefix.shared(inputs, adapter)
            if common > length:
                best, length = prefix, common
        length = min(length, _rows(inputs) - 1)
        if best is None or length <= 0:
            return 0
        self._prefixes.remove(best)
        self._prefixes.append(best)
        return kv.fill(slot, best.keys[:, :length], best.values[:, :length])

    def keep(self, inputs: Inputs, slot: int, kv: SlotKVCache, adapter: int = 0) -> None:
        """Cache the slot's keys and values of these rows, in place of shorter prefixes of them."""
        length = _rows(inputs)
        if length == 0 or length * kv.position_bytes > self.max_bytes:
            return
        rest = []
        for prefix in self._prefixes:
            common = prefix.shared(inputs, adapter)
            if common == length:  # already cached as part of a longer one
                return
            if common < len(prefix):
                rest.append(prefix)
        inputs = {name: tensor.cpu().clone() for name, tensor in inputs.items()}
        keys, values = kv.keys[:, slot, :length].clone(), kv.values[:, slot, :length].clone()
        self._prefixes = [*rest, Prefix(inputs, keys, values, adapter)]
        while self.num_bytes > self.max_bytes or len(self) > MAX_PREFIXES:
            del self._prefixes[0]


def shared_rows(one: Inputs, other: Inputs) -> int:
    """The number of leading rows that two prompts have in common."""
    if one.keys() != other.keys():
        return 0
    length = min(_rows(one), _rows(other))
    for name, tensor in one.items():
        if length == 0 or tensor.shape[1:] != other[name].shape[1:]:
            return 0
        # Most prompts differ early, so compare a few rows before all of them.
        for end in (min(length, GLANCE), length):
            differs = (tensor[:end] != other[name][:end]).reshape(end, -1).any(1)
            if bool(differs.any()):
                length = int(differs.int().argmax())
                break
    return length


def _rows(inputs: Inputs) -> int:
    return min((len(tensor) for tensor in inputs.values()), default=0)
