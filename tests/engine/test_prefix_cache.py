"""Cached prefixes: found by their rows, limited in bytes, evicted least recently used first."""

from __future__ import annotations

import torch

from vox_serve.engine.kv_cache import SlotKVCache
from vox_serve.engine.prefix_cache import PrefixCache, shared_rows
from vox_serve.model import KVLayout

POSITION = 2 * 3 * 2 * 4 * 4  # bytes: keys and values, layers, heads, dim, float32


def cache_of(slots: int = 2) -> SlotKVCache:
    kv = SlotKVCache(KVLayout(3, 2, 4), slots, 20, torch.device("cpu"), torch.float32)
    kv.keys.normal_()
    kv.values.normal_()
    return kv


def inputs(*rows: int) -> dict[str, torch.Tensor]:
    numbers = torch.tensor(rows, dtype=torch.int64)
    return {"tokens": numbers[:, None].repeat(1, 2), "weight": numbers.float()}


def test_the_size_of_a_position_is_right() -> None:
    assert cache_of().position_bytes == POSITION


def test_shared_rows_are_counted() -> None:
    assert shared_rows(inputs(1, 2, 3), inputs(1, 2, 4, 5)) == 2
    assert shared_rows(inputs(1, 2), inputs(1, 2, 3)) == 2
    assert shared_rows(inputs(1), inputs(2)) == 0
    assert shared_rows(inputs(1), {"tokens": inputs(1)["tokens"]}) == 0
    assert shared_rows(inputs(), inputs(1)) == 0
    other = inputs(1, 2, 3)
    other["weight"][1] = 0  # one tensor of several differs
    assert shared_rows(inputs(1, 2, 3), other) == 1
    wide = {"tokens": torch.ones(1, 3, dtype=torch.int64), "weight": torch.ones(1)}
    assert shared_rows(inputs(1), wide) == 0


def test_a_cached_prefix_is_restored_into_another_slot() -> None:
    kv = cache_of()
    cache = PrefixCache(1 << 20)
    kept = kv.keys[:, 0, :3].clone(), kv.values[:, 0, :3].clone()
    cache.keep(inputs(1, 2, 3), 0, kv)
    kv.keys[:, 0] = 7  # the slot is reused
    beyond = kv.keys[:, 1, 3:].clone()
    assert cache.restore(inputs(1, 2, 3, 4), 1, kv) == 3
    assert torch.equal(kv.keys[:, 1, :3], kept[0])
    assert torch.equal(kv.values[:, 1, :3], kept[1])
    assert torch.equal(kv.keys[:, 1, 3:], beyond)


def test_part_of_a_prefix_may_be_restored_but_never_the_last_position() -> None:
    kv = cache_of()
    cache = PrefixCache(1 << 20)
    cache.keep(inputs(1, 2, 3, 4), 0, kv)
    assert cache.restore(inputs(1, 2, 9), 1, kv) == 2
    assert cache.restore(inputs(1, 2, 3, 4), 1, kv) == 3
    assert cache.restore(inputs(1), 1, kv) == 0
    assert cache.restore(inputs(8, 2), 1, kv) == 0


def test_the_longest_match_is_restored() -> None:
    kv = cache_of()
    cache = PrefixCache(1 << 20)
    cache.keep(inputs(1, 2, 5, 6), 0, kv)
    cache.keep(inputs(1, 2, 3, 4), 1, kv)
    assert len(cache) == 2
    assert cache.restore(inputs(1, 2, 3, 4, 5), 0, kv) == 4
    assert cache.restore(inputs(1, 2, 5, 6, 7), 0, kv) == 4


def test_a_longer_prefix_replaces_its_own_beginning() -> None:
    kv = cache_of()
    cache = PrefixCache(1 << 20)
    cache.keep(inputs(1, 2), 0, kv)
    cache.keep(inputs(1, 2, 3), 0, kv)
    assert (len(cache), cache.num_bytes) == (1, 3 * POSITION)
    cache.keep(inputs(1, 2), 0, kv)  # already cached
    assert (len(cache), cache.num_bytes) == (1, 3 * POSITION)


def test_the_least_recently_used_prefix_is_evicted() -> None:
    kv = cache_of()
    cache = PrefixCache(4 * POSITION)
    cache.keep(inputs(1, 1), 0, kv)
    cache.keep(inputs(2, 2), 0, kv)
    assert cache.restore(inputs(1, 1, 1), 1, kv) == 2
    cache.keep(inputs(3, 3), 0, kv)
    assert cache.num_bytes == 4 * POSITION
    assert cache.restore(inputs(2, 2, 2), 1, kv) == 0
    assert cache.restore(inputs(1, 1, 1), 1, kv) == 2


def test_a_prefix_larger_than_the_cache_is_not_kept() -> None:
    kv = cache_of()
    cache = PrefixCache(2 * POSITION)
    cache.keep(inputs(1, 1), 0, kv)
    cache.keep(inputs(2, 2, 2), 0, kv)
    assert cache.restore(inputs(1, 1, 1), 1, kv) == 2
    nothing = PrefixCache(0)
    nothing.keep(inputs(1), 0, kv)
    nothing.keep(inputs(), 0, kv)
    assert len(nothing) == 0


def test_an_adapter_gets_only_what_it_computed_itself() -> None:
    kv = cache_of()
    cache = PrefixCache(1 << 20)
    cache.keep(inputs(1, 2, 3), 0, kv, adapter=1)
    assert cache.restore(inputs(1, 2, 3, 4), 1, kv) == 0
    assert cache.restore(inputs(1, 2, 3, 4), 1, kv, adapter=2) == 0
    cache.keep(inputs(1, 2, 3), 0, kv, adapter=2)
    assert len(cache) == 2  # neither is a prefix of the other
    assert cache.restore(inputs(1, 2, 3, 4), 1, kv, adapter=1) == 3
