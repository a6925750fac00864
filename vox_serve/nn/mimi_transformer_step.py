"""Mimi's decoder transformer over one frame of each row, as one call of compiled C, on a CPU.

In a small codec, dispatching some 60 torch operations takes longer than their arithmetic.
`mimi_transformer_step.c` does all of them in one call; `compiled.py` builds it.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import nn

from vox_serve.nn.compiled import UNIT, Blocks, blocks, library, operator, register
from vox_serve.nn.mimi_transformer import Rings, StreamingLayer, StreamingTransformer

MAX_WEIGHTS = 4 * 2**20
"""With more, arithmetic takes most of the time, and torch divides it among the cores."""
SCHEMA = "Tensor x, Tensor(a!)[] rings, Tensor slots, Tensor first) -> Tensor"


class _Layer(ctypes.Structure):
    _fields_ = (
        ("weight1", ctypes.c_void_p),
        ("bias1", ctypes.c_void_p),
        ("weight2", ctypes.c_void_p),
        ("bias2", ctypes.c_void_p),
        ("qkv", Blocks),
        ("output", Blocks),
        ("up", Blocks),
        ("down", Blocks),
    )


class _Stack(ctypes.Structure):
    _fields_ = (
        ("layers", ctypes.c_int64),
        ("heads", ctypes.c_int64),
        ("head_dim", ctypes.c_int64),
        ("window", ctypes.c_int64),
        ("capacity", ctypes.c_int64),
        ("eps", ctypes.c_float),
        ("frequencies", ctypes.c_void_p),
        ("layer", ctypes.POINTER(_Layer)),
    )


class TransformerStep(nn.Module):
    """A stack in the form that the C code reads; `transformer_step` makes it.

    It holds its own copy of the weights.
    """

    def __init__(self, stack: StreamingTransformer, found: ctypes.CDLL) -> None:
        super().__init__()
        self._run = found.mimi_transformer_step
        self._held: list[torch.Tensor] = []  # C has only their addresses
        layers = [self._layer(layer) for layer in stack.layers]
        self.nbytes = sum(tensor.nbytes for tensor in self._held)
        first: Any = stack.layers[0]
        frequencies = stack.frequencies
        self._held.append(frequencies)
        self._stack = _Stack(
            len(layers),
            stack.num_heads,
            stack.head_dim,
            stack.window,
            0,
            first.norm1.eps,
            frequencies.data_ptr(),
            (_Layer * len(layers))(*layers),
        )
        self._pointers = ctypes.c_void_p * len(layers)
        inner, size = layers[0].qkv.out, layers[0].qkv.in_
        self._vector_work = 2 * size + inner // 3 + max(inner, layers[0].up.out)
        self._number = register(self)

    def forward(
        self, x: torch.Tensor, rings: Rings, slots: torch.Tensor, first: torch.Tensor
    ) -> torch.Tensor:
        """Like `StreamingTransformer.forward`."""
        run = operator("mimi_transformer_step", SCHEMA)
        out: torch.Tensor = run(self._number, x, rings.layers, slots, first)
        return out

    def run(
        self, x: torch.Tensor, rings: list[torch.Tensor], slots: torch.Tensor, first: torch.Tensor
    ) -> torch.Tensor:
        """Run the C code."""
        rows, time, _ = x.shape
        stack = self._stack
        stack.capacity = rings[0].shape[3]
        out = x.clone(memory_format=torch.contiguous_format)
        room = stack.capacity + UNIT + stack.head_dim
        work = x.new_empty(rows * time * self._vector_work + room)
        self._run(
            ctypes.byref(stack),
            self._pointers(*[ring.data_ptr() for ring in rings]),
            ctypes.c_void_p(slots.data_ptr()),
            ctypes.c_void_p(first.data_ptr()),
            ctypes.c_int64(rows),
            ctypes.c_int64(time),
            ctypes.c_void_p(out.data_ptr()),
            ctypes.c_void_p(work.data_ptr()),
        )
        return out

    def _layer(self, layer: Any) -> _Layer:
        norms = [
            tensor.detach()
            for norm in (layer.norm1, layer.norm2)
            for tensor in (norm.weight, norm.bias)
        ]
        self._held += norms
        matrices = [
            blocks(matrix.plain_weight, matrix.bias, self._held)
            for matrix in (layer.qkv, layer.out, layer.up, layer.down)
        ]
        return _Layer(*[norm.data_ptr() for norm in norms], *matrices)


def transformer_step(stack: StreamingTransformer) -> TransformerStep | None:
    """The stack's compiled step; None if plain torch must be used."""
    layers: list[Any] = list(stack.layers)
    if stack.frequencies.device.type != "cpu" or stack.head_dim % UNIT:
        return None
    if any(type(layer) is not StreamingLayer or layer.gelu != "none" for layer in layers):
        return None
    weights = sum(
        matrix.in_features * matrix.out_features
        for layer in layers
        for matrix in (layer.qkv, layer.out, layer.up, layer.down)
    )
    sizes = [size for layer in layers for size in (layer.qkv.in_features, layer.down.in_features)]
    if weights > MAX_WEIGHTS or any(size % UNIT for size in sizes):
        return None
    found = library()
    return None if found is None else TransformerStep(stack, found)
