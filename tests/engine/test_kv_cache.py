"""Each slot has a row, and reads only its own positions up to the current one."""

import torch

from vox_serve.engine.kv_cache import SlotKVCache
from vox_serve.model import KVLayout


def make_cache() -> SlotKVCache:
    cpu = torch.device("cpu")
    return SlotKVCache(
        KVLayout(2, 1, 4), num_slots=3, max_positions=8, device=cpu, dtype=torch.float32
    )


def test_rows_are_kept_apart_and_masked_by_position():
    cache = make_cache()
    slots = torch.tensor([2, 0])
    positions = torch.tensor([[0, 1], [3, 4]])
    view = cache.view(slots, positions)
    written = torch.arange(2 * 2 * 4).float().view(2, 2, 1, 4)
    keys, values = view.extend(1, written, written + 100)
    assert keys.shape == (2, 8, 1, 4)
    assert torch.equal(keys[0, :2], written[0])
    assert torch.equal(values[1, 3:5], written[1] + 100)
    assert cache.keys[1, 1].eq(0).all()
    assert cache.keys[0].eq(0).all()
    assert view.mask is not None
    assert view.mask[:, 0].sum(-1).tolist() == [[1, 2], [4, 5]]


def test_the_extent_limits_the_positions_that_are_read():
    cache = make_cache()
    cache.extent = 3
    view = cache.view(torch.tensor([1]), torch.tensor([[2]]))
    keys, _ = view.extend(0, torch.ones(1, 1, 1, 4), torch.ones(1, 1, 1, 4))
    assert keys.shape[1] == 3
    assert view.mask is not None
    assert view.mask.shape == (1, 1, 1, 3)


def test_clear_zeroes_one_slot():
    cache = make_cache()
    cache.keys.fill_(torch.nan)
    cache.values.fill_(torch.nan)
    cache.clear(1)
    assert cache.keys[:, 1].eq(0).all()
    assert cache.values[:, 1].eq(0).all()
    assert cache.keys[:, 0].isnan().all()


def test_adjacent_rows_are_read_without_a_copy():
    slots, positions = torch.tensor([1, 2]), torch.tensor([[0], [3]])
    written = torch.randn(2, 1, 1, 4)
    copied, read = make_cache(), make_cache()
    read.span = slice(1, 3)
    seen = [each.view(slots, positions).extend(1, written, -written) for each in (copied, read)]
    assert torch.equal(copied.keys, read.keys)
    for one, other in zip(*seen, strict=True):
        assert torch.equal(one, other)
    assert seen[1][0].data_ptr() == read.keys[1, 1].data_ptr()
