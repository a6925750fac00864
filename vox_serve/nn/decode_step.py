"""One position of each row through a small Llama stack, as one call of compiled C, on a CPU.

In a small model, dispatching some 25 torch operations per layer takes several times as long as
their arithmetic.  `decode_step.c` does all of them in one call; `compiled.py` builds it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from vox_serve.nn.adapter import Adapted
from vox_serve.nn.compiled import BLOCK, UNIT, library, operator, register
from vox_serve.nn.linear import HalfLinear, Linear
from vox_serve.nn.residual import Rows

if TYPE_CHECKING:
    from vox_serve.model import KVView
    from vox_serve.nn.llama import Llama

MAX_WEIGHTS = 32 * 2**20
"""In a larger stack arithmetic takes most of the time, and torch divides it among the cores."""
MAX_ROWS = 32
"""With more rows torch's matrix products are faster."""
SCHEMA = "int head, Tensor x, Tensor(a!)[] caches, Tensor slots, Tensor positions) -> Tensor"


class _Matrix(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("out", ctypes.c_int64),
        ("in_", ctypes.c_int64),
        ("bfloat16", ctypes.c_int64),
    )


class _Layer(ctypes.Structure):
    _fields_ = (
        ("attention_norm", ctypes.c_void_p),
        ("feed_forward_norm", ctypes.c_void_p),
        ("qkv", _Matrix),
        ("output", _Matrix),
        ("gate_up", _Matrix),
        ("down", _Matrix),
    )


class _Stack(ctypes.Structure):
    _fields_ = (
        ("layers", ctypes.c_int64),
        ("heads", ctypes.c_int64),
        ("kv_heads", ctypes.c_int64),
        ("head_dim", ctypes.c_int64),
        ("rope_rows", ctypes.c_int64),
        ("eps", ctypes.c_float),
        ("cos", ctypes.c_void_p),
        ("sin", ctypes.c_void_p),
        ("norm", ctypes.c_void_p),
        ("layer", ctypes.POINTER(_Layer)),
    )


class DecodeStep(nn.Module):
    """A loaded stack in the form that the C code reads; `decode_step` makes it.

    It holds its own copy of the matrices, as bfloat16 if that loses no precision.
    """

    def __init__(self, stack: Llama, heads: Iterable[nn.Module], found: ctypes.CDLL) -> None:
        super().__init__()
        config = stack.config
        self._run = found.decode_step
        self._held: list[torch.Tensor] = []  # because the C code has only their addresses
        self.nbytes = 0
        layers = [self._layer(layer) for layer in stack.layers]
        tables, norm = stack.tables, stack.norm.weight.detach()
        self._held += [tables.cos, tables.sin, norm]
        self._stack = _Stack(
            len(layers),
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            len(tables.cos),
            config.rms_norm_eps,
            tables.cos.data_ptr(),
            tables.sin.data_ptr(),
            norm.data_ptr(),
            (_Layer * len(layers))(*layers),
        )
        self._by_stack = ctypes.byref(self._stack)
        self._layers = len(layers)
        self._pointers = ctypes.c_void_p * (2 * len(layers))
        self._numbers = {head: number for number, head in enumerate(heads)}
        self._heads = [self._matrix(head) for head in heads]
        self._number = register(self)
        hidden, inner = config.hidden_size, config.intermediate_size
        queries, pairs = config.num_attention_heads, config.num_key_value_heads
        attention = 2 * (queries + pairs) * config.head_dim  # including its output
        self._row_work = 2 * hidden + max(3 * inner, attention)
        self._group = queries // pairs

    def takes(self, x: torch.Tensor | Rows, head: nn.Module | None, in_order: bool) -> bool:
        """Whether the C code can run this pass.

        Args:
            in_order: all rows are at the same position, so x may span several positions if `head`
                reads the last one.
        """
        rows, time = (len(x.ids), 1) if isinstance(x, Rows) else x.shape[:2]
        known = head is None or head in self._numbers
        return known and rows <= MAX_ROWS and (time == 1 or (in_order and head is not None))

    def forward(self, x: torch.Tensor, kv: KVView, head: nn.Module | None) -> torch.Tensor:
        """`x` `[B, 1, H]` to `[B, 1, H]`, or `[B, T, H]` to the head's outputs `[B, N]`."""
        places = [kv.place(layer) for layer in range(self._layers)]
        caches = [cache for place in places for cache in place[:2]]
        number = -1 if head is None else self._numbers[head]
        out: torch.Tensor = operator("decode_step", SCHEMA)(
            self._number, number, x, caches, *places[0][2:]
        )
        return out[:, None] if head is None else out

    def run(
        self,
        number: int,
        x: torch.Tensor,
        caches: Sequence[torch.Tensor],
        slots: torch.Tensor,
        positions: torch.Tensor,
    ) -> torch.Tensor:
        """Run the C code.

        Args:
            number: of the head; -1: no head.
            caches: keys and values of each layer in turn.
        """
        rows, time, hidden = x.shape
        pointers = self._pointers(*[cache.data_ptr() for cache in caches])
        capacity = caches[0].shape[1]
        matrix = None if number < 0 else self._heads[number]
        work = x.new_empty(rows * self._row_work + self._group * (capacity + UNIT))
        out = x.new_empty(rows, hidden if matrix is None else matrix.out)
        for later in range(time):
            residual = x[:, later].clone(memory_format=torch.contiguous_format)
            self._run(
                self._by_stack,
                pointers,
                ctypes.c_int64(capacity),
                ctypes.c_void_p(slots.data_ptr()),
                ctypes.c_void_p(positions.data_ptr()),
                ctypes.c_int64(later),
                ctypes.c_int64(rows),
                ctypes.c_void_p(residual.data_ptr()),
                None if matrix is None or later < time - 1 else ctypes.byref(matrix),
                ctypes.c_void_p(out.data_ptr()),
                ctypes.c_void_p(work.data_ptr()),
            )
        return out

    def _layer(self, layer: Any) -> _Layer:
        attention, feed_forward = layer.attention, layer.feed_forward
        matrices = attention.qkv, attention.output, feed_forward.gate_up, feed_forward.down
        norms = layer.attention_norm.weight.detach(), layer.feed_forward_norm.weight.detach()
        self._held += norms
        return _Layer(*[norm.data_ptr() for norm in norms], *map(self._matrix, matrices))

    def _matrix(self, layer: nn.Module) -> _Matrix:
        assert isinstance(layer, Linear | HalfLinear)
        weight = layer.weight.detach()
        out, inputs = weight.shape
        halves = weight.bfloat16()
        short = torch.equal(halves.float(), weight)
        padded = F.pad(halves if short else weight, (0, 0, 0, -out % BLOCK))
        blocks = padded.view(-1, BLOCK, inputs).transpose(1, 2).contiguous()
        self._held.append(blocks)
        self.nbytes += blocks.nbytes
        return _Matrix(blocks.data_ptr(), out, inputs, short)


def decode_step(stack: Llama, heads: Iterable[nn.Module] = ()) -> DecodeStep | None:
    """The stack's compiled step; None if plain torch has to do the work.

    Args:
        heads: all layers that a pass may end with.
    """
    config, cos = stack.config, stack.tables.cos
    heads = list(heads)
    layers = [*stack.layers.modules(), *heads]
    linear = [layer for layer in layers if isinstance(layer, Linear | HalfLinear)]
    adapted = any(isinstance(layer, Adapted) for layer in layers)
    sizes = (config.hidden_size, config.intermediate_size, config.head_dim)
    if (
        cos.device.type != "cpu"
        or config.head_norms
        or adapted
        or cos.dtype is not torch.float32
        or len(linear)
        != 4 * config.num_hidden_layers + len(heads)  # some weights are stored in another form
        or sum(layer.in_features * layer.out_features for layer in linear) > MAX_WEIGHTS
        or any(size % UNIT for size in sizes)
        or any(p.requires_grad for layer in layers for p in layer.parameters())
    ):
        return None
    found = library()
    return None if found is None else DecodeStep(stack, heads, found)
