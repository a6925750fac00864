"""A step function over slots: called plainly on a CPU, captured and replayed on CUDA.

It is one function either way.  A graph has a fixed batch, so batches are filled up to a bucket
with the slot that is nobody's.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

Step = Callable[[torch.Tensor, Sequence[int] | None], None]


def bucket_sizes(num_slots: int, device: torch.device, deterministic: bool) -> list[int]:
    """Batch sizes that occur, ascending: on a GPU powers of two, on a CPU all.

    Args:
        deterministic: one size alone, because a row's rounding hangs on its matrix's height.
    """
    if deterministic:
        return [num_slots]
    if device.type != "cuda":
        return list(range(1, num_slots + 1))
    powers = [2**n for n in range(num_slots.bit_length()) if 2**n < num_slots]
    return [*powers, num_slots]


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A host tensor on the device, without waiting for what the device does."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class SlotNumbers:
    """Slot numbers on the device, sent only when the batch has changed."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._last: tuple[tuple[int, ...], torch.Tensor] = ((), torch.empty(0))

    def __call__(self, numbers: Sequence[int]) -> torch.Tensor:
        """int64 `[B]`."""
        if self._last[0] != tuple(numbers):
            self._last = (tuple(numbers), to_device(torch.tensor(numbers), self._device))
        return self._last[1]


class Side:
    """A second CUDA stream, for work that may run beside what follows; a CPU does all at once."""

    def __init__(self, device: torch.device) -> None:
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # as below

    @contextmanager
    def beside(self) -> Iterator[None]:
        """What is launched inside begins when all that was launched before has ended."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            yield

    def join(self) -> None:
        """What is launched from here on waits for what was launched beside it."""
        if self._stream is not None:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)


class StepFunction:
    """A function that reads and writes the rows of some slots, and returns nothing.

    Args:
        run: takes slots `[B]` on the device and the same numbers on the host; in a captured step
            the numbers are None, because they will be others when it is replayed.
        sizes: buckets, ascending.
        idle: the slot that is nobody's.
        capture: replay CUDA graphs.
    """

    def __init__(
        self, run: Step, sizes: Sequence[int], idle: int, device: torch.device, capture: bool
    ) -> None:
        self._run = run
        self._sizes = sizes
        self._idle = idle
        self._device = device
        self._capture = capture
        self._graphs: dict[int, _Graph] = {}
        self._upload = SlotNumbers(device)

    def __call__(self, numbers: Sequence[int]) -> None:
        """Run over these slots."""
        size = self._sizes[bisect_left(self._sizes, len(numbers))]
        padded = (*numbers, *[self._idle] * (size - len(numbers)))
        if not self._capture:
            self._run(self._upload(padded), padded)
            return
        if size not in self._graphs:
            self._graphs[size] = _Graph(self._run, size, self._idle, self._device)
        self._graphs[size].replay(padded)

    def warm_up(self) -> None:
        """Capture every bucket, or the first request of each size would wait for it."""
        for size in self._sizes if self._capture else ():
            self([self._idle] * size)


class _Graph:
    """One bucket's graph, captured over the idle slot, and its slot numbers on the device."""

    def __init__(self, run: Step, size: int, idle: int, device: torch.device) -> None:
        self._numbers = (idle,) * size
        self._slots = torch.full((size,), idle, device=device)
        side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch's own has no types
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):  # what is made on the first call must not be captured
            for _ in range(2):
                run(self._slots, None)
        torch.cuda.current_stream(device).wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            run(self._slots, None)

    def replay(self, numbers: tuple[int, ...]) -> None:
        if numbers != self._numbers:
            sent = torch.tensor(numbers).pin_memory()
            self._slots.copy_(sent, non_blocking=True)
            self._numbers = numbers
        self._graph.replay()
