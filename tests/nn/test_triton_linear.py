"""The layers around the residual: one kernel for a few rows, compared with separate operations."""

from __future__ import annotations

import pytest
import torch

from tests.triton_device import (
    HAS_TRITON,
    INTERPRETED,
    INTERPRETER_WARNINGS,
    needs_triton,
    on_device,
    run_interpreted,
)
from vox_serve.nn import kernels
from vox_serve.nn.linear import Fp8Linear, Linear, PaddedLinear, held
from vox_serve.nn.llama import FrameCache, Llama, LlamaConfig
from vox_serve.nn.residual import RMSNorm, Rows, left_by, read
from vox_serve.nn.rope import RopeConfig

pytestmark = INTERPRETER_WARNINGS

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
TOLERANCE = {
    torch.float32: {"rtol": 1e-5, "atol": 1e-5},
    # The separate operations round three results that the kernel does not.
    torch.bfloat16: {"rtol": 2**-6, "atol": 2**-6},
}
FORMS = {"plain": Linear, "padded": PaddedLinear, "fp8": Fp8Linear}


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="this is the process that it starts")
@pytest.mark.timeout(300)
def test_the_tests_pass_in_the_interpreter():
    run_interpreted("tests/nn/test_triton_linear.py")


@pytest.fixture(autouse=True)
def kernels_everywhere(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kernels, "DEVICES", ("cuda", "cpu"))


@pytest.fixture
def without_kernels(monkeypatch: pytest.MonkeyPatch):
    """Run a function as separate operations, without kernels."""

    def run(function):
        with monkeypatch.context() as here:
            here.setattr(kernels, "DEVICES", ())
            return function()

    return run


def noise(*shape: int, like: tuple[torch.dtype, torch.device], seed: int) -> torch.Tensor:
    dtype, device = like
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def layer(width: int, size: int, like: tuple[torch.dtype, torch.device], form: str = "plain"):
    filled = Linear(size, width).requires_grad_(False).to(like[1], like[0])
    filled.weight.copy_(noise(width, size, like=like, seed=9) / size**0.5)
    if form == "plain":
        return filled
    return FORMS[form](filled.weight)


def norm(size: int, like: tuple[torch.dtype, torch.device]) -> RMSNorm:
    made = RMSNorm(size, 1e-5).requires_grad_(False).to(like[1], like[0])
    made.weight.copy_(1 + 0.1 * noise(size, like=like, seed=8))
    return made


def assert_close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    assert got.shape == wanted.shape
    assert got.dtype == wanted.dtype
    torch.testing.assert_close(got, wanted, **TOLERANCE[wanted.dtype])


@on_device
@DTYPES
@pytest.mark.parametrize("form", ["plain", "padded"])
@pytest.mark.parametrize(
    ("rows", "size", "width", "gates"),
    [(1, 256, 80, False), (3, 160, 51, False), (16, 64, 64, True), (2, 300, 70, True)],
)
def test_reading_the_residual_equals_separate_operations(
    device, dtype, form, rows, size, width, gates, without_kernels
):
    like = dtype, device
    x = noise(rows, 1, size, like=like, seed=1)
    parts = noise(2, rows, 1, size, like=(torch.float32, device), seed=2)
    reader, normed = layer(width, size, like, form), norm(size, like)
    product, total = read(normed, reader, x, parts, gates)
    summed = (x.float() + parts[0] + parts[1]).to(dtype)
    assert torch.equal(total, summed)
    assert_close(product, without_kernels(lambda: read(normed, reader, summed, None, gates))[0])
    product, total = read(normed, reader, x, None, gates)
    assert total is x
    assert_close(product, without_kernels(lambda: read(normed, reader, x, None, gates))[0])


@on_device
@DTYPES
def test_rows_of_a_table_are_read_without_a_copy(device, dtype, without_kernels):
    like = dtype, device
    table, ids = noise(40, 96, like=like, seed=1), torch.tensor([39, 0, 7], device=device)
    reader, normed = layer(64, 96, like), norm(96, like)
    product, total = read(normed, reader, Rows(table[4:], ids - 4 * (ids > 4)))
    rows = table[torch.tensor([39, 4, 7])]
    assert torch.equal(total, rows[:, None])
    assert_close(product, without_kernels(lambda: read(normed, reader, rows[:, None]))[0])


@on_device
@DTYPES
@pytest.mark.parametrize(("rows", "size", "width"), [(1, 512, 64), (5, 96, 40), (2, 65, 33)])
def test_the_parts_that_are_left_sum_to_the_product(
    device, dtype, rows, size, width, without_kernels
):
    like = dtype, device
    x, writer = noise(rows, 1, size, like=like, seed=1), layer(width, size, like)
    parts = left_by(writer, x)
    assert parts.dtype is torch.float32
    assert parts.shape == (1 if size % 32 else 2, rows, 1, width)
    assert_close(parts.sum(0).to(dtype), without_kernels(lambda: left_by(writer, x)))
    last = noise(rows, 3, size, like=like, seed=1)[:, -1]  # rows with gaps
    assert_close(writer(last), without_kernels(lambda: writer(last)))


@on_device
@DTYPES
def test_fp8_weights_are_not_converted_first_and_inputs_keep_their_format(device, dtype):
    like = dtype, device
    x, packed = noise(3, 1, 128, like=like, seed=1), layer(70, 128, like, "fp8")
    exact = packed.weight.float() * packed.scale[:, None]
    wanted = (x.float() @ exact[:70].t()).to(dtype)
    assert_close(packed(x), wanted)
    gate, up = (x.float() @ exact[:70].t()).chunk(2, -1)
    unscaled = RMSNorm(128, 1e-5).requires_grad_(False).to(device, dtype)
    unscaled.weight.fill_(1.0)
    length = (x.float().square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    wanted = torch.nn.functional.silu(gate * length) * (up * length)
    assert_close(read(unscaled, packed, x, None, gates=True)[0], wanted.to(dtype))


@on_device
@DTYPES
def test_a_row_depends_on_no_other(device, dtype):
    like = dtype, device
    x = noise(16, 1, 192, like=like, seed=1)
    parts = noise(2, 16, 1, 192, like=(torch.float32, device), seed=2)
    reader, normed = layer(96, 192, like), norm(192, like)
    together = read(normed, reader, x, parts, gates=True)[0]
    alone = read(normed, reader, x[5:6], parts[:, 5:6], gates=True)[0]
    assert torch.equal(together[5:6], alone)
    x[4] = torch.nan
    assert torch.equal(read(normed, reader, x, parts, gates=True)[0][5:6], alone)


@on_device
@DTYPES
@pytest.mark.parametrize("form", ["plain", "padded", "fp8"])
@pytest.mark.parametrize(("rows", "heads", "kv_heads", "width"), [(1, 8, 2, 64), (3, 3, 1, 50)])
def test_attention_of_a_frame_and_its_product_are_one_kernel(
    device, dtype, form, rows, heads, kv_heads, width
):
    from vox_serve.nn import triton_attention, triton_frame

    like = dtype, device
    cos, sin = (t.to(device, dtype) for t in RopeConfig(500.0).table(32, 8))
    qkv = noise(rows, (heads + 2 * kv_heads) * 32, like=like, seed=1)
    keys, values = (noise(rows, 6, kv_heads, 32, like=like, seed=n) for n in (2, 3))
    writer = layer(width, heads * 32, like, form)
    for position in (1, 2, 5):
        apart, together = [keys.clone(), values.clone()], [keys.clone(), values.clone()]
        where = torch.arange(rows, device=device), torch.full((rows,), position, device=device)
        seen = triton_attention.decode_attention(qkv, cos, sin, *apart, *where, heads, kv_heads)
        sizes = held(writer), heads, kv_heads
        parts = triton_frame.frame_parts(qkv, cos, sin, *together, position, *sizes)
        assert parts.shape == (kv_heads, rows, width)
        torch.testing.assert_close(
            parts.sum(0), left_by(writer, seen[:, None]).sum(0)[:, 0], rtol=1e-4, atol=1e-4
        )
        assert torch.equal(apart[0], together[0])
        assert torch.equal(apart[1], together[1])


@on_device
@DTYPES
@pytest.mark.parametrize("rows", [2, 9])
def test_a_frame_through_a_stack_equals_separate_operations(device, dtype, rows, without_kernels):
    """Two positions at once, then one by one, each with its head.

    With nine rows, the first pass has eighteen, which are too many for the kernel.
    """
    like = dtype, device
    config = LlamaConfig(2, 64, 96, 4, 2, 32, 1e-5, 8, RopeConfig(500.0))
    stack = Llama(config).requires_grad_(False).to(device, dtype)
    for number, weight in enumerate(stack.parameters()):
        drawn = noise(*weight.shape, like=like, seed=number)
        weight.copy_(1 + 0.1 * drawn if weight.dim() == 1 else drawn / weight.shape[1] ** 0.5)
    stack.prepare(device, dtype)
    head, table = layer(51, 64, like), noise(20, 64, like=like, seed=5)
    first = noise(rows, 2, 64, like=like, seed=6)
    ids = torch.arange(rows, device=device)

    def frame() -> list[torch.Tensor]:
        cache = FrameCache(config.kv_layout, rows, 5, device, dtype)
        said = [stack(first, torch.arange(2, device=device)[None], cache.append(range(2)), head)]
        for place in range(2, 5):
            at = torch.tensor([[place]], device=device)
            said.append(stack(Rows(table, ids), at, cache.append(range(place, place + 1)), head))
        last = noise(rows, 1, 64, like=like, seed=7)
        return [*said, stack(last, torch.tensor([[4]], device=device), cache.append(range(4, 5)))]

    loose = {"rtol": 0.1, "atol": 0.06} if dtype == torch.bfloat16 else TOLERANCE[dtype]
    for got, wanted in zip(frame(), without_kernels(frame), strict=True):
        assert got.shape == wanted.shape
        torch.testing.assert_close(got, wanted, **loose)


def test_more_rows_and_layers_of_a_library_do_not_use_the_kernel():
    few, more = torch.zeros(1, 16, 8), torch.zeros(1, 17, 8)
    assert kernels.few_rows(few) == HAS_TRITON
    assert not kernels.few_rows(more)
    assert kernels.few_rows(torch.zeros(99, 8), torch.zeros(3)) == HAS_TRITON
    assert held(torch.nn.Identity()) is None
