"""Replays and guards step functions, to show on a CPU that a CUDA graph can capture them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

Step = Callable[[], tuple[torch.Tensor, ...]]


class _Recorder(TorchDispatchMode):
    """Records every operation with its arguments and results."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch ships no types for it
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result


def recorded(function: Step) -> Step:
    """Do what a CUDA graph does, without CUDA: repeat the same operations on the same tensors.

    Whatever the host decided or counted in the first run is not repeated.
    """
    with _Recorder() as recorder:
        outputs = function()

    def replay() -> tuple[torch.Tensor, ...]:
        made: dict[int, torch.Tensor] = {}  # keyed by the tensor of the first run

        def now(tensor: torch.Tensor) -> torch.Tensor:
            return made.get(id(tensor), tensor)

        for func, args, kwargs, result in recorder.calls:
            given, named = tree_map_only(torch.Tensor, now, (args, kwargs))
            again = func(*given, **named)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor):
                    made[id(old)] = new
        return tuple(now(output) for output in outputs)

    return replay


def created(function: Callable[[], Any]) -> list[torch.Tensor]:
    """Every tensor that a function creates."""
    with _Recorder() as recorder:
        function()
    results = tree_leaves([result for *_, result in recorder.calls])
    return [result for result in results if isinstance(result, torch.Tensor)]


def cuda_graph(function: Step) -> Step:
    """Capture a function of static tensors; returns one that replays it into the same outputs."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch ships no types for it
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # what the first call allocates must not be captured
        function()
        function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = function()

    def replay() -> tuple[torch.Tensor, ...]:
        graph.replay()
        return outputs

    return replay


class HostRead(AssertionError):
    """An operation read a value from the device on the host."""


_INDEXING = {torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_}
_READS = {
    torch.ops.aten._local_scalar_dense.default,  # .item(), int(), bool(), if
    torch.ops.aten.equal.default,
    torch.ops.aten.is_nonzero.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten._unique2.default,
    torch.ops.aten.repeat_interleave.Tensor,
}
_COPIES = {
    torch.Tensor.item,
    torch.Tensor.tolist,
    torch.Tensor.numpy,
    torch.Tensor.cpu,
    torch.Tensor.__bool__,
    torch.Tensor.__int__,
    torch.Tensor.__float__,
    torch.Tensor.__index__,
}


class _NoRead(TorchDispatchMode):
    """Rejects operations for whose result, or its shape, the host must wait."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch ships no types for it

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        indices = args[1] if func.overloadpacket in _INDEXING else ()
        if func in _READS or any(i is not None and i.dtype is torch.bool for i in indices):
            raise HostRead(f"{func} reads the device")
        return func(*args, **(kwargs or {}))


class _NoCopy(TorchFunctionMode):
    """Rejects reads that a CPU tensor performs without a dispatched operation, mainly in inference
    mode, and numbers that would be copied to the device."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _COPIES:
            raise HostRead(f"{func} reads the device")
        if func is torch.Tensor.__setitem__ and not isinstance(args[2], torch.Tensor):
            raise HostRead(f"[...] = {args[2]!r} copies a number from the host; use fill_")
        return func(*args, **(kwargs or {}))


def no_host_read(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, but it raises HostRead where a CUDA graph could not capture it.

    On a CPU, such a read costs nothing and would go unnoticed.
    """

    def run(*args: Any, **kwargs: Any) -> Any:
        with _NoRead(), _NoCopy():
            return function(*args, **kwargs)

    return run
