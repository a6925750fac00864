"""Prefixes of prompts whose keys and values are kept, so that they are not run again.

What a voice or a conversation begins with comes again with every text.  A prefix is found by
comparing prompts row by row, so it serves whoever begins alike, and a part of it serves too:
position n of the cache depends on positions 0 .. n alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import attrs
import torch

from vox_serve.engine.kv_cache import SlotKVCache

MAX_PREFIXES = 128
"""Each new prompt is compared with all of them."""
GLANCE = 32
Inputs = Mapping[str, torch.Tensor]


@attrs.define(eq=False)
class Prefix:
    """`inputs` `[T, ...]` on the host; keys and values `[layer, T, head, dim]` on the device."""

    inputs: Inputs
    keys: torch.Tensor
    values: torch.Tensor

    def __len__(self) -> int:
        return self.keys.shape[1]

    @cached_property
    def num_bytes(self) -> int:
        """Memory on the device."""
        return self.keys.nbytes + self.values.nbytes


class PrefixCache:
    """Args: max_bytes, of keys and values; the least recently used prefix goes first."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._prefixes: list[Prefix] = []  # the most recently used is last

    def __len__(self) -> int:
        return len(self._prefixes)

    @property
    def num_bytes(self) -> int:
        return sum(prefix.num_bytes for prefix in self._prefixes)

    def restore(self, inputs: Inputs, slot: int, kv: SlotKVCache) -> int:
        """Fill `slot` with the longest prefix of a prompt that is known; returns its length.

        At least the prompt's last position is left to be run: the hidden state comes from there.
        """
        best, length = None, 0
        for prefix in self._prefixes:
            common = shared_rows(prefix.inputs, inputs)
            if common > length:
                best, length = prefix, common
        length = min(length, _rows(inputs) - 1)
        if best is None or length <= 0:
            return 0
        self._prefixes.remove(best)
        self._prefixes.append(best)
        kv.keys[:, slot, :length] = best.keys[:, :length]
        kv.values[:, slot, :length] = best.values[:, :length]
        return length

    def keep(self, inputs: Inputs, slot: int, kv: SlotKVCache) -> None:
        """Copy what `slot` holds for these rows.  Prefixes that begin it are replaced by it."""
        length = _rows(inputs)
        if length == 0 or length * kv.position_bytes > self.max_bytes:
            return
        rest = []
        for prefix in self._prefixes:
            common = shared_rows(prefix.inputs, inputs)
            if common == length:  # all of it is there already
                return
            if common < len(prefix):
                rest.append(prefix)
        inputs = {name: tensor.cpu().clone() for name, tensor in inputs.items()}
        keys, values = kv.keys[:, slot, :length].clone(), kv.values[:, slot, :length].clone()
        self._prefixes = [*rest, Prefix(inputs, keys, values)]
        while self.num_bytes > self.max_bytes or len(self) > MAX_PREFIXES:
            del self._prefixes[0]


def shared_rows(one: Inputs, other: Inputs) -> int:
    """How many leading rows two prompts have in common."""
    if one.keys() != other.keys():
        return 0
    length = min(_rows(one), _rows(other))
    for name, tensor in one.items():
        if length == 0 or tensor.shape[1:] != other[name].shape[1:]:
            return 0
        # Most differ early: a short look spares a long one.
        for end in (min(length, GLANCE), length):
            differs = (tensor[:end] != other[name][:end]).reshape(end, -1).any(1)
            if bool(differs.any()):
                length = int(differs.int().argmax())
                break
    return length


def _rows(inputs: Inputs) -> int:
    return min((len(tensor) for tensor in inputs.values()), default=0)
