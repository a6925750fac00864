"""Weights in other formats compute the same as plain ones, row by row."""

import ctypes
import platform
import subprocess
from pathlib import Path

import pytest
import torch

from vox_serve.errors import ConfigError
from vox_serve.nn import compiled, linear
from vox_serve.nn.linear import (
    Embedding,
    Fp8Linear,
    HalfLinear,
    Int8Linear,
    Linear,
    PackedLinear,
    PaddedLinear,
    fast_bfloat16,
    held_bytes,
    holds_halves,
    pack,
)

needs_bfloat16 = pytest.mark.skipif(not fast_bfloat16(), reason="this CPU has no bfloat16 products")
needs_compiler = pytest.mark.skipif(compiled.c_compiler() is None, reason="needs a C compiler")
needs_fbgemm = pytest.mark.skipif(not holds_halves(), reason="this CPU's torch has no FBGEMM")


def filled(rows: int, columns: int) -> Linear:
    layer = Linear(columns, rows).requires_grad_(False)
    torch.nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(1))
    return layer


def inputs(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


def error(layer: torch.nn.Module, plain: Linear, x: torch.Tensor) -> float:
    """The RMS of the difference, relative to that of the result."""
    got, wanted = layer(x), plain(x)
    assert got.shape == wanted.shape
    assert got.dtype == wanted.dtype
    return float((got - wanted).square().mean().sqrt() / wanted.square().mean().sqrt())


@needs_fbgemm
@pytest.mark.parametrize("shape", [(1, 64), (5, 64), (2, 3, 64)])
def test_float16_is_close_and_exact_for_bfloat16_weights(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "fast_bfloat16", lambda: False)
    plain = filled(50, 64)
    x = inputs(*shape)
    assert 1e-6 < error(pack(filled(50, 64), "float16"), plain, x) < 5e-4
    plain.weight.copy_(plain.weight.bfloat16())
    assert error(HalfLinear(plain.weight), plain, x) < 1e-6


@needs_fbgemm
@needs_bfloat16
@pytest.mark.parametrize("shape", [(3, 64), (1, 3, 64), (2, 3, 64)])
def test_more_than_a_few_rows_are_multiplied_in_bfloat16(shape: tuple[int, ...]) -> None:
    plain, held = filled(50, 64), pack(filled(50, 64), "float16")
    assert error(held, plain, inputs(1, 2, 64)) < 5e-4
    assert 1e-3 < error(held, plain, inputs(*shape)) < 1e-2


@needs_fbgemm
@needs_bfloat16
def test_the_number_of_further_rows_does_not_change_a_row() -> None:
    layer, x = HalfLinear(filled(192, 256).weight), inputs(70, 256)
    for rows in (3, 4, 16, 33):
        assert torch.equal(layer(x[:rows]), layer(x)[:rows])


@needs_fbgemm
@pytest.mark.parametrize("fast", [pytest.param(True, marks=needs_bfloat16), False])
def test_a_plan_counts_what_the_layer_will_hold(
    fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "fast_bfloat16", lambda: fast)
    with torch.device("meta"):
        planned = pack(Linear(64, 50), "float16")
    held = pack(filled(50, 64), "float16")
    assert held_bytes(planned) == held_bytes(held) == (4 if fast else 2) * 50 * 64


@needs_compiler
@pytest.mark.parametrize("shape", [(1, 64), (5, 64), (2, 3, 64)])
def test_int8_is_close(shape: tuple[int, ...]) -> None:
    assert 1e-3 < error(pack(filled(50, 64), "int8"), filled(50, 64), inputs(*shape)) < 0.03


def int8_product(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The arithmetic of `Int8Linear` in torch's float64, in which the sums are exact."""
    scale, largest = weight.abs().amax(1) / 127, x.abs().amax(1, keepdim=True)
    rows = (weight / scale[:, None]).round().double()
    rounded = (x * (127 / largest) + 0.5).floor().double()
    return (rounded @ rows.t() * (largest / 127) * scale).float()


@needs_compiler
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 6, 7, 13, 64])
@pytest.mark.parametrize(("outputs", "width"), [(64, 64), (1, 1), (50, 70), (130, 1027)])
def test_int8_sums_are_exact(rows: int, outputs: int, width: int) -> None:
    weight, x = inputs(outputs, width), inputs(rows, width) * 3
    # All products have the largest size and one sign: a 16-bit sum would overflow.
    weight[0], x[0] = 1.0, -1.0
    got = Int8Linear(weight)(x)
    # An input halfway between two steps may be rounded to either.
    step = x.abs().amax(1, keepdim=True) / 127 * weight.abs().amax(1) * 2
    assert ((got - int8_product(weight, x)).abs() <= step).all()
    off = (got - int8_product(weight, x)).abs() > 1e-5 * got.abs().max()
    assert off.float().mean() < 0.05
    assert got[0, 0].item() == pytest.approx(-width, rel=1e-6)


@needs_compiler
def test_neither_threads_nor_other_rows_change_an_int8_product() -> None:
    layer, x = Int8Linear(inputs(300, 96)), inputs(9, 96)
    found = layer(x)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            assert torch.equal(layer(x), found)
    finally:
        torch.set_num_threads(threads)
    for rows in range(1, 9):
        assert torch.equal(layer(x[:rows]), found[:rows])


@needs_compiler
@pytest.mark.skipif(platform.machine() != "x86_64", reason="compiles for other x86-64 processors")
@pytest.mark.parametrize("processor", ["x86-64-v3", "x86-64-v2"])
def test_processors_without_vnni_compute_the_same(
    processor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if processor == "x86-64-v3" and not torch.cpu._is_avx2_supported():
        pytest.skip("this CPU has no AVX2")
    weight, x = inputs(50, 70), inputs(7, 70)
    weight[0], x[0] = 1.0, -1.0
    found, flags = Int8Linear(weight)(x), [f"-march={processor}", "-shared", "-fPIC"]
    command = [*(compiled.c_compiler() or ()), *flags, "-O3", "-o", str(tmp_path / "other.so")]
    subprocess.run([*command, str(compiled.FOLDER / "int8_product.c"), "-lm"], check=True)
    monkeypatch.setattr(linear, "library", lambda: ctypes.CDLL(str(tmp_path / "other.so")))
    torch.testing.assert_close(Int8Linear(weight)(x), found, rtol=0.02, atol=0.02)
    assert Int8Linear(weight)(x)[0, 0].item() == pytest.approx(-70, rel=1e-6)


@needs_compiler
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_bad_number_spoils_its_own_row_of_an_int8_product(bad: float) -> None:
    layer, x = Int8Linear(inputs(20, 64)), inputs(3, 64)
    broken = x.clone()
    broken[1, 7] = bad
    got = layer(broken)
    assert got[1].isnan().all()
    assert torch.equal(got[[0, 2]], layer(x)[[0, 2]])


def test_int8_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "library", lambda: None)
    with pytest.raises(ConfigError, match="int8 weights need a C compiler: install gcc"):
        pack(filled(4, 4), "int8")


@needs_compiler
def test_torch_warns_of_nothing_deprecated(recwarn: pytest.WarningsRecorder) -> None:
    pack(filled(50, 64), "int8")(inputs(2, 64))
    assert not recwarn.list


def test_fp8_is_close_without_kernels() -> None:
    plain = filled(50, 64)
    x = inputs(2, 3, 64)
    assert 1e-3 < error(Fp8Linear(plain.weight), plain, x) < 0.06


@pytest.mark.parametrize("rows", [1, 2, 7])
@pytest.mark.parametrize("with_onednn", [True, False])
def test_packing_changes_nothing(
    rows: int, with_onednn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not with_onednn:
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    plain, x = filled(50, 64), inputs(rows, 64)
    bias, plus = inputs(50), inputs(rows, 50)
    packed = PackedLinear(plain.weight, bias, rows=4)
    assert packed.packed == (torch.backends.mkldnn.is_available() and with_onednn)
    torch.testing.assert_close(packed(x), plain(x) + bias, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(packed(x, plus), plain(x) + bias + plus, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(PackedLinear(plain.weight)(x), plain(x), atol=1e-4, rtol=1e-4)
    assert held_bytes(packed) == 4 * (50 * 64 + 50)


@pytest.mark.parametrize("shape", [(1, 64), (2, 3, 64)])
def test_padding_changes_nothing(shape: tuple[int, ...]) -> None:
    plain, x = filled(50, 64), inputs(*shape)
    padded = PaddedLinear(plain.weight)
    assert len(padded.weight) == 64
    assert padded(x).shape == (*shape[:-1], 50)
    torch.testing.assert_close(padded(x), plain(x))


@needs_compiler
@pytest.mark.parametrize("make", [Int8Linear, Fp8Linear])
def test_each_row_has_its_own_scale(make: type[Int8Linear] | type[Fp8Linear]) -> None:
    layer, x = make(filled(40, 64).weight), inputs(3, 64)
    company = x.clone()
    company[1] *= 1000
    torch.testing.assert_close(layer(company)[0], layer(x)[0])
    assert torch.isfinite(layer(torch.zeros(1, 64))).all()
    broken = x.clone()
    broken[1] = torch.nan
    assert torch.isfinite(layer(broken)[[0, 2]]).all()


@needs_fbgemm
def test_a_table_is_stored_in_16_bits_and_read_in_32() -> None:
    table = Embedding(10, 4).requires_grad_(False)
    rows = table(torch.tensor([3, 5]))
    held = pack(table, "float16")
    assert held.weight.dtype is torch.float16
    got = held(torch.tensor([3, 5]))
    assert got.dtype is torch.float32
    torch.testing.assert_close(got, rows, atol=1e-3, rtol=1e-3)


@needs_fbgemm
def test_held_bytes_counts_what_is_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "fast_bfloat16", lambda: False)
    stack = torch.nn.Sequential(filled(64, 32), torch.nn.LayerNorm(64))
    assert held_bytes(stack) == 4 * (64 * 32 + 2 * 64)
    stack[0] = pack(stack[0], "float16")
    assert held_bytes(stack) == 2 * 64 * 32 + 4 * 2 * 64


def test_a_format_needs_its_device() -> None:
    with pytest.raises(ConfigError, match="fp8 weights need a cuda device"):
        pack(filled(4, 4), "fp8")
