"""SEANet's decoder over one frame of each row, as one call of compiled C, on a CPU.

In a small codec, dispatching some 200 torch operations takes longer than their arithmetic.
`seanet_step.c` does all of them in one call; `compiled.py` builds it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from vox_serve.nn.compiled import UNIT, Blocks, blocks, library, operator, register
from vox_serve.nn.seanet import Elu, Residual
from vox_serve.nn.streaming import CausalConv, Past, TransposedConv

MAX_WEIGHTS = 4 * 2**20
"""With more, arithmetic takes most of the time, and torch divides it among the cores."""
SCHEMA = "Tensor x, Tensor before) -> (Tensor, Tensor)"


class _Conv(ctypes.Structure):
    _fields_ = (
        ("matrix", Blocks),
        ("channels", ctypes.c_int64),
        ("stride", ctypes.c_int64),
        ("inputs", ctypes.c_int64),
        ("before", ctypes.c_int64),
        ("elu", ctypes.c_int64),
        ("adds", ctypes.c_int64),
    )


class SeanetStep(nn.Module):
    """The stages in the form that the C code reads; `seanet_step` makes it.

    It holds its own copy of the weights.

    Args:
        convs: the convolutions in order; for each, whether it applies ELU to its input, and whether
            it adds the input of the previous convolution.
        time: time steps of a frame.
    """

    def __init__(
        self,
        convs: list[tuple[CausalConv | TransposedConv, bool, bool]],
        time: int,
        found: ctypes.CDLL,
    ) -> None:
        super().__init__()
        self._run = found.seanet_step
        self._held: list[torch.Tensor] = []  # C has only their addresses
        self._convs = (_Conv * len(convs))(*[self._conv(*each) for each in convs])
        self.nbytes = sum(tensor.nbytes for tensor in self._held)
        self.width = sum(conv.width for conv, _, _ in convs)
        self._time = time
        self._room = self._windows = 0
        """Per row: the most outputs of a convolution, and the most numbers in its windows."""
        for conv, _, _ in convs:
            self._windows = max(self._windows, conv.width + time * conv.inputs)
            time = time // conv.stride * conv.outputs // conv.channels
            self._room = max(self._room, time * conv.channels)
        self._out = time, convs[-1][0].channels
        self._number = register(self)

    def forward(self, x: torch.Tensor, past: Past) -> torch.Tensor:
        """`[B, time, C]` to `[B, samples, 1]`."""
        run = operator("seanet_step", SCHEMA)
        y, after = run(self._number, x, past.take(self.width))
        past.keep(after)
        out: torch.Tensor = y
        return out

    def run(self, x: torch.Tensor, before: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the C code; `before` `[B, width]` is contiguous in each row."""
        rows, x = len(x), x.contiguous()
        out, after = x.new_empty(rows, *self._out), x.new_empty(rows, self.width)
        work = x.new_empty(rows * (3 * self._room + self._windows))
        before = before.contiguous()
        self._run(
            self._convs,
            ctypes.c_int64(len(self._convs)),
            ctypes.c_int64(rows),
            ctypes.c_int64(self._time),
            ctypes.c_void_p(x.data_ptr()),
            ctypes.c_void_p(before.data_ptr()),
            ctypes.c_void_p(after.data_ptr()),
            ctypes.c_int64(self.width),
            ctypes.c_void_p(work.data_ptr()),
            ctypes.c_int64(rows * self._room),
            ctypes.c_void_p(out.data_ptr()),
        )
        return out, after

    def _conv(self, conv: CausalConv | TransposedConv, elu: bool, adds: bool) -> _Conv:
        matrix = conv.matrix
        return _Conv(
            blocks(matrix.plain_weight, matrix.bias, self._held),
            conv.channels,
            conv.stride,
            conv.inputs,
            conv.width // conv.inputs,
            elu,
            adds,
        )


def seanet_step(stages: Iterable[nn.Module], time: int) -> SeanetStep | None:
    """The stages' compiled step for `time` latents; None if plain torch must be used."""
    convs = _flat(stages)
    if convs is None or sum(c.matrix.in_features * c.outputs for c, _, _ in convs) > MAX_WEIGHTS:
        return None
    length = time
    for conv, _, _ in convs:
        if conv.dilation != 1 or length % conv.stride or length * conv.inputs % UNIT:
            return None
        length = length // conv.stride * conv.outputs // conv.channels
    if any(conv.matrix.plain_weight.device.type != "cpu" for conv, _, _ in convs):
        return None
    found = library()
    return None if found is None else SeanetStep(convs, time, found)


def _flat(stages: Iterable[nn.Module]) -> list[tuple[Any, bool, bool]] | None:
    """The convolutions in order; None if the C code does not support one of them."""
    convs: list[tuple[Any, bool, bool]] = []
    elu = False
    for stage in stages:
        if isinstance(stage, Elu) and not elu:
            elu = True
        elif isinstance(stage, CausalConv | TransposedConv):
            convs.append((stage, elu, False))
            elu = False
        elif isinstance(stage, Residual) and stage.shortcut is None and not elu:
            convs += [(stage.first, True, False), (stage.second, True, True)]
        else:
            return None
    return None if elu else convs
