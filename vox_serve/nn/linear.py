"""Linear layers, and the forms in which their weights can be stored.

A decode step with a small batch mostly reads weights, so its time depends on their size.  A plugin
builds its network from `Linear` and `Embedding`; `WeightLoader.build` replaces them with other
layers as it fills them.  Nothing else in the model changes.

float16 on a CPU: FBGEMM's packed matrices with float32 sums.  They store a checkpoint's bfloat16
    weights exactly, except those below 6e-5, which lose digits.  They are read at the speed of
    memory.  If the CPU multiplies bfloat16 (AVX512_BF16, AMX), products of more than a few rows
    are faster in bfloat16, so a layer also holds its weights in bfloat16 for these products, which
    doubles the memory.
int8 on a CPU: symmetric, with a scale per output channel; inputs are rounded with a scale per row,
    so that a row does not depend on its neighbours (LLM.int8(), Dettmers et al. 2022, section 3,
    without its outlier columns).
padded on CUDA: the default.
fp8 on CUDA: e4m3 with the same two kinds of scales, on tensor cores (Micikevicius et al., "FP8
    formats for deep learning", 2022); in a step with few rows, inputs keep their format.
"""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from vox_serve.errors import ConfigError
from vox_serve.nn.compiled import library
from vox_serve.nn.kernels import few_rows, fp8_rows, plain_fp8_rows

HALF_ROWS = 2
"""Up to this many rows, float16 weights are multiplied faster than bfloat16 ones."""


class Linear(nn.Linear):
    """`[..., in]` to `[..., out]`, without a bias."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _over_few_rows(self, x) if few_rows(x) else super().forward(x)


class Held(NamedTuple):
    """A layer's weights as a kernel reads them: `[N, in]`; only the first `width` rows count.

    For fp8, `scale` `[N]` has each row's factor.
    """

    weight: torch.Tensor
    scale: torch.Tensor | None
    width: int


def held(layer: nn.Module) -> Held | None:
    """A layer's weights, or None if they are in a library's private format."""
    if isinstance(layer, Linear):
        return Held(layer.weight, None, layer.out_features)
    if isinstance(layer, PaddedLinear | Fp8Linear):
        return Held(layer.weight, getattr(layer, "scale", None), layer.width)
    return None


def _over_few_rows(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    from vox_serve.nn import triton_linear

    weights = held(layer)
    assert weights is not None  # the caller is a layer that `held` supports
    return triton_linear.product(x, weights)


class Biased(nn.Module):
    """A linear layer with a bias, whose weights may be packed."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = Linear(inputs, outputs)
        self.bias = nn.Parameter(torch.empty(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.linear(x) + self.bias
        return y


class HalfLinear(nn.Module):
    """float16 weights, float32 sums, on a CPU; for more than HALF_ROWS rows bfloat16, if faster.

    A row's result depends on whether there are more than HALF_ROWS rows, but not on how many.
    """

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.nbytes = 2 * weight.numel()
        self._packed = _quantized().linear_prepack_fp16(weight.float(), None)
        self._run = _quantized().linear_dynamic_fp16
        self._many = PackedLinear(weight.bfloat16(), rows=16) if fast_bfloat16() else None

    @property
    def weight(self) -> torch.Tensor:
        """float32 `[out, in]`: a copy."""
        weight: torch.Tensor = _quantized().linear_unpack_fp16(self._packed)[0]
        return weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self._many is None or x.numel() <= HALF_ROWS * self.in_features:
            y: torch.Tensor = self._run(x, self._packed)
            return y
        many: torch.Tensor = self._many(x.reshape(-1, self.in_features).bfloat16())
        return many.float().view(*x.shape[:-1], self.out_features)


class Int8Linear(nn.Module):
    """int8 weights and inputs, float32 in and out, on a CPU, in compiled C.

    Raises:
        ConfigError: the C code cannot be compiled.
    """

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        found = library()
        if found is None:
            raise ConfigError("int8 weights need a C compiler: install gcc, or set CC")
        self._run = found.int8_product
        self.out_features, self.in_features = weight.shape
        # Processors add up a group of inputs at a time, and compute a block of outputs together.
        sizes = (ctypes.c_int64.in_dll(found, f"int8_{name}").value for name in ("block", "group"))
        block, group = sizes
        self._padded = self.in_features + -self.in_features % group
        weight = F.pad(
            weight.float(), (0, self._padded - self.in_features, 0, -len(weight) % block)
        )
        scale = weight.abs().amax(1).clamp(min=1e-12) / 127
        rows = (weight / scale[:, None]).round().to(torch.int8)
        self._rows = rows.view(-1, block, self._padded // group, group).transpose(1, 2).contiguous()
        self._scale = scale
        # The C code adds 128 to each rounded input.
        self._offset = 128 * rows.sum(1, dtype=torch.float32)
        self.nbytes = self._rows.nbytes + scale.nbytes + self._offset.nbytes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.float().contiguous()
        rows = x.numel() // self.in_features
        y = x.new_empty(*x.shape[:-1], self.out_features)
        # An input is a byte or two, depending on the processor.
        rounded, scales = x.new_empty(rows, self._padded, dtype=torch.int16), x.new_empty(rows)
        self._run(
            ctypes.c_void_p(x.data_ptr()),
            ctypes.c_int64(rows),
            ctypes.c_int64(self.in_features),
            ctypes.c_int64(self._padded),
            ctypes.c_void_p(self._rows.data_ptr()),
            ctypes.c_void_p(self._scale.data_ptr()),
            ctypes.c_void_p(self._offset.data_ptr()),
            ctypes.c_int64(self.out_features),
            ctypes.c_void_p(rounded.data_ptr()),
            ctypes.c_void_p(scales.data_ptr()),
            ctypes.c_void_p(y.data_ptr()),
            ctypes.c_int64(torch.get_num_threads()),
        )
        return y


class Fp8Linear(nn.Module):
    """fp8 weights and inputs on CUDA; the same arithmetic in float32 elsewhere, for tests."""

    weight: torch.Tensor
    scale: torch.Tensor

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        # Tensor cores need sizes that are multiples of 16.
        self.width = len(weight)
        rows, scale = plain_fp8_rows(F.pad(weight.float(), (0, 0, 0, -self.width % 16)))
        self.register_buffer("weight", rows)
        self.register_buffer("scale", scale.flatten())
        if (
            weight.is_cuda
        ):  # fail now rather than in the first long prompt: not every device supports it
            self._of_fp8(weight.new_zeros(1, weight.shape[1], dtype=torch.bfloat16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if few_rows(x):
            return _over_few_rows(self, x)
        return self._of_fp8(x)

    def _of_fp8(self, x: torch.Tensor) -> torch.Tensor:
        rows, scale = fp8_rows(x.flatten(0, -2))
        if x.device.type == "cpu":
            y = (rows.float() @ self.weight.float().t() * scale * self.scale).to(x.dtype)
        else:
            # torch's only fp8 product; it takes a scale per row of both operands.
            scales = scale, self.scale[None]
            y = torch._scaled_mm(rows, self.weight.t(), *scales, out_dtype=x.dtype)
        return y[:, : self.width].reshape(*x.shape[:-1], self.width)


class PaddedLinear(nn.Module):
    """A layer whose outputs are padded with zero rows to a multiple of 64.

    cuBLAS uses slower kernels if the rows of a result do not start at aligned addresses.
    """

    weight: torch.Tensor

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.width = len(weight)
        self.register_buffer("weight", F.pad(weight, (0, 0, 0, -self.width % 64)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if few_rows(x):
            return _over_few_rows(self, x)
        return F.linear(x, self.weight)[..., : self.width]


class PackedLinear(nn.Module):
    """`[N, in]` to `[N, out]` in the weights' dtype, for the many small products of a codec.

    On a CPU the weights are stored in oneDNN's packed order, which its products read in about half
    the time that `addmm` takes; elsewhere, or if torch lacks oneDNN, they are stored unchanged.

    Args:
        weight: `[out, in]`.
        bias: `[out]`.
        rows: the usual N; affects the order in memory, not the result.
    """

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None = None, rows: int = 1
    ) -> None:
        super().__init__()
        self.bias: torch.Tensor | None
        self.out_features, self.in_features = weight.shape
        self.packed = weight.device.type == "cpu" and _has_onednn()
        self.nbytes = weight.nbytes if self.packed else 0
        weight = weight.detach().contiguous()
        self.register_buffer("bias", bias)
        if self.packed:
            # No public layer offers these operations; torch's compiler uses these names.
            self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
            self._run = torch.ops.mkldnn._linear_pointwise
        else:
            self.register_buffer("weight", weight)

    @property
    def plain_weight(self) -> torch.Tensor:
        """The weights `[out, in]`; a copy if they are packed."""
        weight: torch.Tensor = self._weight.to_dense() if self.packed else self.get_buffer("weight")
        return weight

    def forward(self, x: torch.Tensor, plus: torch.Tensor | None = None) -> torch.Tensor:
        """The product plus the bias, plus `plus` `[N, out]`."""
        y: torch.Tensor
        if not self.packed:
            y = F.linear(x, self.get_buffer("weight"), self.bias)
            return y if plus is None else y.add_(plus)
        if plus is None:
            y = self._run(x, self._weight, self.bias, "none", [], "")
        else:
            y = self._run.binary(x, plus, self._weight, self.bias, "add")
        return y


class Embedding(nn.Embedding):
    """Ids `[...]` to rows `[..., width]`.  The table may be stored in a smaller dtype.

    Args:
        dtype: of the output; the table's by default.
    """

    def __init__(self, count: int, width: int) -> None:
        super().__init__(count, width)
        self.dtype: torch.dtype | None = None

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        rows = F.embedding(ids, self.weight)
        return rows if self.dtype is None else rows.to(self.dtype)


_FORMS: dict[str, tuple[str, type[HalfLinear | Int8Linear | Fp8Linear | PaddedLinear]]] = {
    "float16": ("cpu", HalfLinear),
    "int8": ("cpu", Int8Linear),
    "fp8": ("cuda", Fp8Linear),
    "padded": ("cuda", PaddedLinear),
}

META_DTYPES = {"float16": torch.float16, "int8": torch.float8_e4m3fn, "fp8": torch.float8_e4m3fn}
"""Number formats of the same size, for a network without memory."""


def pack(layer: nn.Module, form: str) -> nn.Module:
    """Convert a filled layer to this form; only `Linear` and `Embedding` change.

    Args:
        form: `float16`, `int8` or `fp8`; or `padded`, which aligns outputs and keeps the dtype.

    Raises:
        ConfigError: the weights' device or this machine does not support this form.
    """
    device, make = _FORMS[form]
    weight = getattr(layer, "weight", None)
    if weight is not None and weight.is_meta:  # only its size is needed
        if form == "float16" and isinstance(layer, Linear) and fast_bfloat16():
            return layer.float()  # as large as both copies
        packed = isinstance(layer, Linear | Embedding) and form in META_DTYPES
        return layer.to(META_DTYPES[form]) if packed else layer
    if isinstance(layer, Embedding) and device == "cpu":
        layer.dtype = layer.weight.dtype
        return layer.half()
    if not isinstance(layer, Linear) or (form == "padded" and layer.out_features % 64 == 0):
        return layer
    if layer.weight.device.type != device:
        raise ConfigError(f"{form} weights need a {device} device")
    try:
        return make(layer.weight.detach())
    except RuntimeError as error:
        raise ConfigError(f"this machine does not support {form} weights: {error}") from None


def held_bytes(module: nn.Module) -> int:
    """Memory of a network's weights in bytes, in any form."""
    # Packed weights are not tensors of the module: its `nbytes` counts them.
    held = sum(int(getattr(m, "nbytes", 0)) for m in module.modules())
    tensors: int = sum(tensor.nbytes for tensor in module.state_dict().values())
    return held + tensors


def holds_halves() -> bool:
    """Whether this machine's CPU supports float16 weights."""
    return "fbgemm" in torch.backends.quantized.supported_engines


def fast_bfloat16() -> bool:
    """Whether this machine's CPU has instructions for products of bfloat16."""
    cpu = torch.cpu
    return _has_onednn() and (cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported())


def _has_onednn() -> bool:
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]  # torch ships no types for it


def _quantized() -> Any:
    return torch.ops.quantized
