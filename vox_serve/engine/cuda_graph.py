"""A step function over slots: called plainly on a CPU, captured and replayed on CUDA.

It is one function either way.  A graph has a fixed batch, so batches are filled up to a bucket
with the spare slot.
"""

from __future__ import annotations

import gc
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from vox_serve.errors import EngineError

Step = Callable[[torch.Tensor, Sequence[int] | None], None]


def bucket_sizes(num_slots: int, device: torch.device, deterministic: bool) -> list[int]:
    """Batch sizes that occur, ascending: on a CPU all, on a GPU powers of two, then steps of 64.

    Args:
        deterministic: one batch size, because a row's rounding depends on the height of its matrix.
    """
    if deterministic:
        return [num_slots]
    if device.type != "cuda":
        return list(range(1, num_slots + 1))
    sizes = [1, 2, 4, 8, 16, 32, *range(64, num_slots, 64)]
    return [*[size for size in sizes if size < num_slots], num_slots]


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


class Stream:
    """What is done on a device in order, and beside other such streams; a CPU does all at once.

    Graphs that are replayed on it are captured for it: they share its memory, which is free again
    after each of them, and never that of another stream.
    """

    def __init__(self, device: torch.device, main: bool = False) -> None:
        """`main` is the stream that torch uses anyway."""
        self._cuda = device.type == "cuda"
        if self._cuda:
            self._device = device
            make = torch.cuda.Stream
            # Nothing can be captured on torch's default stream: the main one captures on another.
            # What it captures goes first where both streams have something to run.
            priority = -1 if main else 0
            self._capturing = make(device, priority)  # type: ignore[no-untyped-call]  # torch ships no types for it
            self._own = None if main else make(device)  # type: ignore[no-untyped-call]
            self._pool = torch.cuda.graph_pool_handle()
            # Any: torch 2.9 has no types for its methods, torch 2.14 has.
            self._mark: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]

    @contextmanager
    def beside(self) -> Iterator[None]:
        """What is launched inside begins when all that was launched before has ended."""
        if not self._cuda or self._own is None:
            yield
            return
        self._own.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._own):
            yield

    def join(self) -> None:
        """What is launched from here on waits for what was launched beside it."""
        if self._cuda and self._own is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._own)

    def mark(self) -> None:
        """Remember how far this stream has got, for `join_mark`."""
        if self._cuda and self._own is not None:
            self._mark.record(self._own)

    def join_mark(self) -> None:
        """As `join`, but for what was launched beside it before the last `mark` alone."""
        if self._cuda and self._own is not None:
            torch.cuda.current_stream(self._device).wait_event(self._mark)

    def capture(self, run: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """A graph of what `run` launches, which it does twice first: what is made on its first
        call must not be captured.

        Raises:
            EngineError: the capture failed, which leaves torch's streams in disorder.
        """
        current = torch.cuda.current_stream(self._device)
        self._capturing.wait_stream(current)
        with torch.cuda.stream(self._capturing):
            for _ in range(2):
                run()
        current.wait_stream(self._capturing)
        graph = torch.cuda.CUDAGraph()
        # The same stream as before: what cuBLAS works in belongs to the stream that it ran on.
        # Other threads may use the device meanwhile (they encode).
        capturing = torch.cuda.graph(
            graph, pool=self._pool, stream=self._capturing, capture_error_mode="thread_local"
        )
        try:
            with _no_collection(), capturing:
                run()
        except Exception as error:
            raise EngineError(f"a step cannot be captured as a CUDA graph: {error!r}") from error
        return graph


@contextmanager
def _no_collection() -> Iterator[None]:
    """What the collector would free, old graphs above all, may not be freed during a capture."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class StepFunction:
    """A function that reads and writes the rows of some slots, and returns nothing.

    Args:
        run: takes slots `[B]` on the device and the same numbers on the host; in a captured step
            the numbers are None, because they will be others when it is replayed.
        sizes: buckets, ascending.
        idle: the spare slot.
        stream: where it is called; None: call it plainly, replay no CUDA graphs.
    """

    def __init__(
        self,
        run: Step,
        sizes: Sequence[int],
        idle: int,
        device: torch.device,
        stream: Stream | None,
    ) -> None:
        self._run = run
        self._sizes = sizes
        self._idle = idle
        self._device = device
        self._stream = stream
        self._graphs: dict[int, _Graph] = {}
        self._upload = SlotNumbers(device)

    def __call__(self, numbers: Sequence[int]) -> None:
        """Run over these slots."""
        size = self._sizes[bisect_left(self._sizes, len(numbers))]
        padded = (*numbers, *[self._idle] * (size - len(numbers)))
        if self._stream is None:
            self._run(self._upload(padded), padded)
            return
        if size not in self._graphs:
            self._graphs[size] = _Graph(self._run, size, self._idle, self._device, self._stream)
        self._graphs[size].replay(padded)

    def warm_up(self) -> None:
        """Capture every bucket, or the first request of each size would wait for it.

        The largest first: the others then find all the memory that they need.
        """
        for size in reversed(self._sizes) if self._stream is not None else ():
            self([self._idle] * size)


class _Graph:
    """One bucket's graph, captured over the idle slot, and its slot numbers on the device."""

    def __init__(
        self, run: Step, size: int, idle: int, device: torch.device, stream: Stream
    ) -> None:
        self._numbers = (idle,) * size
        self._slots = torch.full((size,), idle, device=device)
        self._graph = stream.capture(lambda: run(self._slots, None))

    def replay(self, numbers: tuple[int, ...]) -> None:
        if numbers != self._numbers:
            sent = torch.tensor(numbers).pin_memory()
            self._slots.copy_(sent, non_blocking=True)
            self._numbers = numbers
        self._graph.replay()
