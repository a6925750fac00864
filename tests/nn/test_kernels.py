"""The small operations: plain versions against definitions, Triton kernels against plain ones."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from tests.triton_device import (
    HAS_TRITON,
    INTERPRETED,
    INTERPRETER_WARNINGS,
    needs_triton,
    on_device,
    run_interpreted,
)
from vox_serve.engine.kv_cache import SlotKVCache
from vox_serve.model import KVLayout
from vox_serve.nn import kernels
from vox_serve.nn.rope import RopeConfig, rotate, signed

if HAS_TRITON:
    from vox_serve.nn import triton_attention, triton_kernels

pytestmark = INTERPRETER_WARNINGS

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
# One rounding step in bfloat16 (8 bits), a few in float32 (24 bits).
TOLERANCE = {
    torch.float32: {"rtol": 2e-6, "atol": 2e-6},
    torch.bfloat16: {"rtol": 2**-7, "atol": 1e-5},
}
# These sum over positions, and the plain version has 16-bit weights.
ATTENTION_TOLERANCE = {
    torch.float32: {"rtol": 1e-5, "atol": 1e-5},
    torch.bfloat16: {"rtol": 2e-2, "atol": 2e-2},
}


def assert_close(ours: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal within the dtype's rounding; in bfloat16, nearly all of many numbers to the bit.

    If the kernel left out one rounding of the plain version, a fifth of them would differ.
    """
    torch.testing.assert_close(ours, expected, **TOLERANCE[ours.dtype])
    if ours.dtype == torch.bfloat16 and ours.numel() > 1000:
        assert (ours != expected).float().mean() < 0.02


def noise(*shape: int, dtype: torch.dtype, device: torch.device, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(device=device, dtype=dtype)


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="this is the process that it starts")
@pytest.mark.timeout(300)
def test_the_tests_pass_in_the_interpreter():
    run_interpreted("tests/nn/test_kernels.py", "tests/nn/test_triton_ring.py")


@on_device
@DTYPES
@pytest.mark.parametrize("shape", [(1, 256), (3, 2048), (2, 3, 100), (5, 1)])
def test_norms_follow_their_definition(
    device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]
):
    x, residual = (noise(*shape, dtype=dtype, device=device, seed=s) for s in (1, 2))
    weight = noise(shape[-1], dtype=dtype, device=device, seed=3)
    normed = triton_kernels.rms_norm(x, weight, 1e-5)
    assert_close(normed, kernels.plain_rms_norm(x, weight, 1e-5))
    normed, total = triton_kernels.add_rms_norm(x, residual, weight, 1e-5)
    expected, expected_total = kernels.plain_add_rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(total, expected_total)
    assert_close(normed, expected)


@on_device
@DTYPES
@pytest.mark.parametrize("shape", [(1, 4, 1, 128), (3, 6, 2, 100), (2, 5, 3, 2, 32)])
def test_norms_of_heads_follow_their_definition(
    device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]
):
    *rows, heads, kv_heads, dim = shape
    qkv = noise(*rows, (heads + 2 * kv_heads) * dim, dtype=dtype, device=device, seed=1)
    weight = noise(2 * dim, dtype=dtype, device=device, seed=2)
    expected = kernels.plain_head_norms(qkv, weight, 1e-5, heads, kv_heads)
    ours = triton_kernels.head_norms(qkv, weight, 1e-5, heads, kv_heads)
    assert_close(ours, expected)
    assert torch.equal(ours[..., -kv_heads * dim :], expected[..., -kv_heads * dim :])


@on_device
def test_a_norm_reads_rows_with_gaps_and_small_numbers(device: torch.device):
    x = noise(4, 300, dtype=torch.float32, device=device)[:, :200] * 1e-4
    weight = torch.ones(200, device=device)
    expected = kernels.plain_rms_norm(x, weight, 1e-5)  # eps is larger than the squares
    torch.testing.assert_close(triton_kernels.rms_norm(x, weight, 1e-5), expected)
    expected = kernels.plain_add_rms_norm(x, x * 2, weight, 1e-5)[0]
    torch.testing.assert_close(triton_kernels.add_rms_norm(x, x * 2, weight, 1e-5)[0], expected)


@on_device
@DTYPES
@pytest.mark.parametrize("shape", [(1, 2048), (3, 1030), (5, 2)])
def test_fp8_rows_are_scaled_and_rounded(
    device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]
):
    x = noise(*shape, dtype=dtype, device=device)
    x[0] *= 1000
    x[-1, 0] = 0.0
    held, scale = triton_kernels.fp8_rows(x)
    expected, expected_scale = kernels.plain_fp8_rows(x)
    torch.testing.assert_close(scale, expected_scale, rtol=1e-6, atol=0)
    # A number halfway between two others may be rounded either way.
    steps = held.view(torch.uint8).int() - expected.view(torch.uint8).int()
    assert steps.abs().max() <= 1
    assert (steps != 0).float().mean() < 0.02
    assert not triton_kernels.fp8_rows(torch.zeros_like(x))[0].float().any()


@on_device
@DTYPES
@pytest.mark.parametrize("shape", [(1, 2048), (3, 1030), (2, 3, 100), (5, 2)])
def test_silu_mul_follows_its_definition(
    device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]
):
    gate_up = 4 * noise(*shape, dtype=dtype, device=device)
    gate_up.view(-1)[0] = -200.0  # its exponential overflows
    expected = kernels.plain_silu_mul(gate_up)
    assert_close(triton_kernels.silu_mul(gate_up), expected)


class Case:
    """A two-layer cache filled with noise, and rows that attend to its second layer."""

    def __init__(
        self,
        heads: int,
        kv_heads: int,
        head_dim: int,
        capacity: int,
        positions: list[int],
        dtype: torch.dtype,
        device: torch.device,
        slots: list[int] | None = None,
    ) -> None:
        batch = len(positions)
        self.heads, self.kv_heads = heads, kv_heads
        width = (heads + 2 * kv_heads) * head_dim
        self.qkv = noise(batch, width, dtype=dtype, device=device, seed=1)
        tables = RopeConfig(500.0).table(head_dim, capacity)
        self.cos, self.sin = (table.to(device=device, dtype=dtype) for table in tables)
        shape = (2, batch + 2, capacity, kv_heads, head_dim)
        self.keys = noise(*shape, dtype=dtype, device=device, seed=2)
        self.values = noise(*shape, dtype=dtype, device=device, seed=3)
        slots = slots or [batch - row for row in range(batch)]
        self.slots = torch.tensor(slots, dtype=torch.int64, device=device)
        self.positions = torch.tensor(positions, dtype=torch.int64, device=device)

    def run(self, attention, rows: slice = slice(None), **options: int):
        """Run `attention` on some rows; returns its result and the cache's keys and values."""
        keys, values = self.keys.clone(), self.values.clone()
        out = attention(
            self.qkv[rows],
            self.cos,
            self.sin,
            keys[1],
            values[1],
            self.slots[rows],
            self.positions[rows],
            self.heads,
            self.kv_heads,
            **options,
        )
        return out, keys, values


@DTYPES
def test_plain_attention_equals_its_parts(dtype: torch.dtype):
    device = torch.device("cpu")
    case = Case(6, 2, 8, 64, [0, 5, 31, 17], dtype, device)
    batch, heads, kv_heads, head_dim, extent = 4, 6, 2, 8, 32
    cache = SlotKVCache(KVLayout(2, kv_heads, head_dim), 6, 64, device, dtype)
    cache.keys.copy_(case.keys)
    cache.values.copy_(case.values)
    cache.extent = extent
    view = cache.view(case.slots, case.positions[:, None])
    qkv = case.qkv.view(batch, 1, heads + 2 * kv_heads, head_dim)
    cos, sin = (table[case.positions][:, None, None] for table in (case.cos, case.sin))
    rotated = rotate(qkv[:, :, : heads + kv_heads], cos, signed(sin))
    keys, values = view.extend(1, rotated[:, :, heads:], qkv[:, :, heads + kv_heads :])
    expected = F.scaled_dot_product_attention(
        rotated[:, 0, :heads].view(batch, kv_heads, heads // kv_heads, head_dim),
        keys.transpose(1, 2),
        values.transpose(1, 2),
        attn_mask=view.mask,
    )
    out, keys, values = case.run(kernels.plain_decode_attention, extent=extent)
    assert torch.equal(out, expected.reshape(batch, -1))
    assert torch.equal(keys, cache.keys)
    assert torch.equal(values, cache.values)


SHAPES = [
    (8, 2, 128, 33, [0, 31, 32]),  # CSM's depth decoder
    (32, 8, 64, 600, [599]),  # CSM's backbone, in three splits
    (4, 2, 64, 300, [0, 255, 256, 299]),  # on both sides of a split's edge
    (3, 1, 64, 65, [63, 64, 1]),  # a group of three; the edge of a block
    (2, 2, 32, 513, [512, 511, 64]),
    (5, 1, 32, 1, [0]),
]


@on_device
@DTYPES
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim", "capacity", "positions"), SHAPES)
def test_attention_equals_the_plain_version(
    device: torch.device,
    dtype: torch.dtype,
    heads: int,
    kv_heads: int,
    head_dim: int,
    capacity: int,
    positions: list[int],
):
    sizes = heads, kv_heads, head_dim, capacity
    oracle = Case(*sizes, positions, dtype, torch.device("cpu")).run(kernels.plain_decode_attention)
    expected, expected_keys, expected_values = (tensor.to(device) for tensor in oracle)
    case = Case(*sizes, positions, dtype, device)
    out, keys, values = case.run(triton_attention.decode_attention)
    torch.testing.assert_close(out, expected, **ATTENTION_TOLERANCE[dtype])
    assert torch.equal(values, expected_values)
    if dtype == torch.bfloat16:
        assert torch.equal(keys, expected_keys)  # each step is rounded as in the plain version
    else:
        assert_close(keys, expected_keys)
    written = torch.zeros(keys.shape[:3], dtype=torch.bool, device=device)
    written[1, case.slots, case.positions] = True
    assert torch.equal(keys[~written], case.keys[~written])
    assert not torch.equal(keys[written], case.keys[written])


@on_device
@DTYPES
def test_a_row_depends_on_no_other(device: torch.device, dtype: torch.dtype):
    case = Case(4, 2, 64, 600, [10, 599, 300], dtype, device)
    together = case.run(triton_attention.decode_attention)[0]
    for row in range(3):
        alone = case.run(triton_attention.decode_attention, slice(row, row + 1))[0]
        assert torch.equal(together[row : row + 1], alone)


@on_device
@pytest.mark.parametrize("capacity", [100, 300])
def test_values_that_are_not_finite_stay_in_their_row(device: torch.device, capacity: int):
    case = Case(4, 2, 32, capacity, [40, 50, 60], torch.float32, device)
    clean = case.run(triton_attention.decode_attention)[0]
    case.qkv[1, 0] = torch.nan  # a query
    case.keys[:, case.slots[0], 41:] = torch.nan  # past the first row's end
    case.values[:, case.slots[0], 40:] = torch.inf  # its own position is written first
    case.values[:, case.slots[2], 7] = torch.nan  # before the third row's end
    out = case.run(triton_attention.decode_attention)[0]
    assert torch.equal(out[0], clean[0])
    assert out[1].view(4, 32)[0].isnan().all()
    assert torch.equal(out[1].view(4, 32)[1:], clean[1].view(4, 32)[1:])
    assert out[2].isnan().all()


@on_device
def test_padding_changes_no_result(device: torch.device):
    spare = 4
    case = Case(4, 2, 32, 300, [299, 7, 0, 300, 5000], torch.float32, device, [0, 1] + [spare] * 3)
    alone = case.run(triton_attention.decode_attention, slice(2))
    out, keys, values = case.run(triton_attention.decode_attention)
    assert torch.equal(out[:2], alone[0])
    others = [slot for slot in range(keys.shape[1]) if slot != spare]
    assert torch.equal(keys[:, others], alone[1][:, others])
    assert torch.equal(values[:, others], alone[2][:, others])
    kept = slice(1, 299)  # positions past the end become the last one
    assert torch.equal(keys[:, spare, kept], case.keys[:, spare, kept])


@on_device
def test_rope_tables_may_be_shorter_or_longer_than_the_cache(device: torch.device):
    for size in (20, 80):
        case = Case(2, 1, 32, 64, [63, 64], torch.float32, device)
        tables = RopeConfig(500.0).table(32, size)
        case.cos, case.sin = (table.to(device) for table in tables)
        out = case.run(triton_attention.decode_attention)[0]
        expected = case.run(kernels.plain_decode_attention)[0]
        torch.testing.assert_close(out[0], expected[0], **ATTENTION_TOLERANCE[torch.float32])


@on_device
@pytest.mark.parametrize("batch", [0, 2])
def test_the_predicate_chooses_the_version(
    device: torch.device, batch: int, monkeypatch: pytest.MonkeyPatch
):
    """Both versions return the same shapes, even for an empty batch."""
    case = Case(4, 2, 32, 300, [4] * batch, torch.float32, device)
    weight = torch.ones(case.qkv.shape[1], device=device)

    def results() -> list[torch.Tensor]:
        return [
            kernels.rms_norm(case.qkv, weight, 1e-5),
            *kernels.add_rms_norm(case.qkv, case.qkv, weight, 1e-5),
            kernels.silu_mul(case.qkv),
            case.run(kernels.decode_attention, extent=64)[0],
        ]

    launched = []
    for name in ("rms_norm", "add_rms_norm", "silu_mul", "decode_attention"):
        module = triton_attention if name == "decode_attention" else triton_kernels
        kernel = getattr(module, name)
        monkeypatch.setattr(
            module,
            name,
            lambda *args, kernel=kernel: launched.append(kernel.__name__) or kernel(*args),
        )
    monkeypatch.setattr(kernels, "use_triton", lambda x: False)
    plain = results()
    assert not launched
    monkeypatch.setattr(kernels, "use_triton", lambda x: True)
    for ours, expected in zip(results(), plain, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    assert launched == ["rms_norm", "add_rms_norm", "silu_mul", "decode_attention"]


def test_a_cpu_uses_the_plain_version():
    assert not kernels.use_triton(torch.zeros(1))
