"""Counts what a captured step launches: kernels, their bytes and their products, without a device.

The full-size model is on the meta device, which has shapes but no numbers.  A step runs once, as it
would be captured, and all operations and all launches of Triton kernels are counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import attrs
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vox_serve.engine.runner import ModelRunner
from vox_serve.model import Model
from vox_serve.nn import kernels

aten = torch.ops.aten
PRODUCTS = {
    aten.linear,
    aten.mm,
    aten.addmm,
    aten.bmm,
    aten.baddbmm,
    aten._scaled_mm,
    aten.convolution,
}
LOOKUPS = {aten.embedding, aten.index, aten.index_select, aten.gather}
WRITES = {aten.index_put_, aten.index_copy_, aten.index_fill_, aten.scatter_}
NOTHING = {
    *(aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.lift_fresh),
    *(aten._unsafe_view, aten._reshape_alias, aten.detach, aten.alias, aten.set_),
}
HIDDEN = {aten.scaled_dot_product_attention: 3}
"""Operations that launch several kernels on a device; the numbers are estimates."""
STEPS = ("advance", "emit", "take", "codec")


@attrs.define
class Nodes:
    """What one step launches, by name."""

    launches: Counter[str] = attrs.Factory(Counter)
    overlapped_products: int = 0
    products: int = 0
    """Launches that are matrix products."""
    overlapped: int = 0
    """Launches that may start before the previous one has ended."""
    bytes: int = 0
    flops: int = 0
    float32_flops: int = 0
    """Operations of float32 products, which tensor cores do not support."""

    @property
    def count(self) -> int:
        return self.launches.total()


class _Counting(TorchDispatchMode):
    def __init__(self, nodes: Nodes) -> None:
        super().__init__()
        self._nodes = nodes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        kind, made = func.overloadpacket, _tensors(result)
        given = {tensor.untyped_storage()._cdata for tensor in _tensors((args, kwargs))}
        views = func.is_view and all(t.untyped_storage()._cdata in given for t in made)
        if views or kind in NOTHING:
            return result
        nodes = self._nodes
        nodes.launches[str(kind).removeprefix("aten.")] += HIDDEN.get(kind, 1)
        if kind in LOOKUPS:
            nodes.bytes += 2 * _bytes(made)
        elif kind in WRITES:
            nodes.bytes += 2 * _bytes(_tensors(args[1:]))
        else:
            nodes.bytes += _bytes({id(t): t for t in [*_tensors((args, kwargs)), *made]}.values())
        if kind in PRODUCTS:
            nodes.products += 1
            flops = 2 * made[0].numel() * _summed(kind, args)
            nodes.flops += flops
            if made[0].dtype == torch.float32:
                nodes.float32_flops += flops
        return result


def _summed(kind: Any, args: Any) -> int:
    """The number of products that are summed for one number of the result."""
    if kind is aten.convolution:
        return int(args[1][0].numel())
    added = kind in (aten.addmm, aten.baddbmm)  # the first argument is added to the product
    return int(args[1 if added else 0].shape[-1])


def _tensors(values: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def _bytes(tensors: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


@contextmanager
def counting(context: int) -> Iterator[Nodes]:
    """Count launches inside the block.

    Args:
        context: positions of each row that attention over a long cache reads.
    """
    from triton.runtime.jit import JITFunction

    nodes = Nodes()

    def launch(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        given = dict(zip((p.name for p in self.params), args, strict=False)) | options
        nodes.launches[self.fn.__name__] += 1
        nodes.overlapped += bool(options.get("launch_pdl"))
        for name, value in given.items():
            if isinstance(value, torch.Tensor):
                nodes.bytes += _kernel_bytes(name, value, given, context)
        weight = given.get("weight_ptr")
        if weight is not None and weight.dim() == 2:
            nodes.products += 1
            nodes.overlapped_products += bool(options.get("launch_pdl"))
            nodes.flops += 2 * weight.numel() * given["rows"]

    with (
        patch.object(JITFunction, "run", launch),
        patch.object(kernels, "DEVICES", ("cuda", "meta")),
        _Counting(nodes),
    ):
        yield nodes


def _kernel_bytes(name: str, tensor: torch.Tensor, given: dict[str, Any], context: int) -> int:
    slots, item = given.get("slots_ptr"), tensor.element_size()
    rows = given.get("rows", 0) if slots is None else len(slots)
    if name in ("keys_ptr", "values_ptr"):  # [slots, positions, heads, dim]
        read = min(context, tensor.shape[1])
        return rows * read * tensor.shape[2] * tensor.shape[3] * item
    if name == "ring_ptr":  # [slots, 2, heads, positions, dim]
        return rows * tensor[0].numel() * item
    if name in ("cos_ptr", "sin_ptr"):
        return rows * tensor.shape[1] * item
    if name == "x_ptr" and given.get("gathers"):
        return len(given["ids_ptr"]) * tensor.shape[1] * item
    return tensor.numel() * item


def steps(model: Model, batch: int, context: int = 500) -> dict[str, Nodes]:
    """What each of the runner's steps launches for a full batch, as captured."""
    runner = ModelRunner(model, batch)
    slots = torch.zeros(batch, dtype=torch.int64, device=model.device)
    found = {}
    runs: dict[str, Callable[..., None]] = {
        "advance": runner._advance,
        "emit": runner._emit,
        "take": runner._take,
        "codec": runner._sound,
    }
    with torch.inference_mode():
        for name, run in runs.items():
            with counting(context):  # values that are computed only once
                run(slots, None)
            with counting(context) as nodes:
                run(slots, None)
            found[name] = nodes
    return found


def prompt(model: Model, widths: Mapping[str, tuple[int, ...]], length: int) -> Nodes:
    """What a prompt that runs alone launches, as captured.

    Args:
        widths: shapes of a position's inputs.
        length: positions, padding included.
    """
    runner = ModelRunner(model, 1)
    runner.kv.extent = model.max_positions
    place = torch.zeros(1, dtype=torch.int64, device=model.device)
    inputs = {
        name: torch.zeros(1, length, *width, dtype=torch.int64, device=model.device)
        for name, width in widths.items()
    }
    with torch.inference_mode():
        with counting(length):  # values that are computed only once
            runner._prompt(inputs, place, place, None)
        with counting(length) as nodes:
            runner._prompt(inputs, place, place, None)
    return nodes
