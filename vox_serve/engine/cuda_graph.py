"""Step functions and prompts over slots: called plainly on a CPU, captured and replayed on CUDA.

The function is the same in both cases.  A graph has a fixed batch size, so batches are padded to
one of a few sizes (buckets) with the spare slot.  Prompts are captured alone, at a few lengths.
"""

from __future__ import annotations

import gc
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from vox_serve.errors import EngineError
from vox_serve.model import Inputs

Step = Callable[[torch.Tensor, Sequence[int] | None], None]
PromptStep = Callable[[Inputs, torch.Tensor, torch.Tensor, Sequence[int] | None], None]


def bucket_sizes(num_slots: int, device: torch.device, deterministic: bool) -> list[int]:
    """Batch sizes in use, ascending: all on a CPU; powers of two, then multiples of 64 on a GPU.

    Args:
        deterministic: only one size, because a row's rounding depends on the batch size.
    """
    if deterministic:
        return [num_slots]
    if device.type != "cuda":
        return list(range(1, num_slots + 1))
    sizes = [1, 2, 4, 8, 16, 32, *range(64, num_slots, 64)]
    return [*[size for size in sizes if size < num_slots], num_slots]


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a host tensor to the device, without waiting for the device."""
    return _sendable(tensor, device).to(device, non_blocking=True)


def _sendable(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A host tensor in memory from which a device copies in the background."""
    return tensor.pin_memory() if device.type == "cuda" else tensor


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
    """A CUDA stream: its work runs in order, in parallel with other streams.  On a CPU, no-ops.

    Graphs replayed on a stream are captured for it.  They share one memory pool, whose memory is
    free again after each of them; streams do not share pools.
    """

    def __init__(self, device: torch.device, main: bool = False) -> None:
        """Args: the device; whether this is torch's current stream."""
        self._cuda = device.type == "cuda"
        if self._cuda:
            self._device = device
            make = torch.cuda.Stream
            # Torch's default stream cannot capture, so the main one captures on another.
            # Its graphs have priority when both streams have work.
            priority = -1 if main else 0
            self._capturing = make(device, priority)  # type: ignore[no-untyped-call]  # torch ships no types for it
            self._own = None if main else make(device)  # type: ignore[no-untyped-call]
            self._pool = torch.cuda.graph_pool_handle()
            # Any: torch 2.9 has no types for its methods, torch 2.14 has.
            self._mark: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Work launched inside starts after all work launched before has ended."""
        if not self._cuda or self._own is None:
            yield
            return
        self._own.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._own):
            yield

    def join(self) -> None:
        """Work launched from here on waits for the work launched in `beside`."""
        if self._cuda and self._own is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._own)

    def mark(self) -> None:
        """Record the current position of this stream, for `join_mark`."""
        if self._cuda and self._own is not None:
            self._mark.record(self._own)

    def join_mark(self) -> None:
        """As `join`, but only for work launched before the last `mark`."""
        if self._cuda and self._own is not None:
            torch.cuda.current_stream(self._device).wait_event(self._mark)

    def capture(self, run: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """A graph of what `run` launches.  Calls it twice first, because what it allocates or
        compiles on its first call must not be captured.

        Raises:
            EngineError: the capture failed; torch's streams are in an undefined state.
        """
        current = torch.cuda.current_stream(self._device)
        self._capturing.wait_stream(current)
        with torch.cuda.stream(self._capturing):
            for _ in range(2):
                run()
        current.wait_stream(self._capturing)
        graph = torch.cuda.CUDAGraph()
        # The stream of the first two calls: cuBLAS has a workspace for each stream.
        # Other threads, which encode, may use the device meanwhile.
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
    """Keep the garbage collector from freeing anything, above all old graphs, during a capture."""
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
        run: takes slots `[B]` on the device and the same numbers on the host; during a capture the
            latter are None, because they differ at each replay.
        sizes: buckets, ascending.
        idle: the spare slot, used for padding.
        stream: where it runs; None: call it without CUDA graphs.
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
        """Capture every bucket, so that no request waits for a capture.

        The largest comes first: the memory it allocates is enough for the others.
        """
        for size in reversed(self._sizes) if self._stream is not None else ():
            self([self._idle] * size)


class _Graph:
    """The graph of one bucket, captured with the spare slot, and its slot numbers on the device."""

    def __init__(
        self, run: Step, size: int, idle: int, device: torch.device, stream: Stream
    ) -> None:
        self._numbers = (idle,) * size
        self._slots = torch.full((size,), idle, device=device)
        self._graph = stream.capture(lambda: run(self._slots, None))

    def replay(self, numbers: tuple[int, ...]) -> None:
        if numbers != self._numbers:
            sent = _sendable(torch.tensor(numbers), self._slots.device)
            self._slots.copy_(sent, non_blocking=True)
            self._numbers = numbers
        self._graph.replay()


class PromptFunction:
    """A function that runs prompts, and returns nothing.

    A short prompt's launches take longer than its arithmetic, so on CUDA a prompt that runs alone
    replays a graph, if one was captured for its padded length and the shapes of its inputs.  All
    others run without a graph.

    Args:
        run: takes the prompts' inputs `[B, T, ...]`, their lengths `[B]` and their slots `[B]` on
            the device, and the slots on the host; during a capture the latter are None.
        idle: the spare slot.
        stream: where it runs; None: no CUDA graphs.
    """

    def __init__(
        self, run: PromptStep, idle: int, device: torch.device, stream: Stream | None
    ) -> None:
        self._run = run
        self._idle = idle
        self._device = device
        self._stream = stream
        self._graphs: dict[Any, _PromptGraph] = {}

    def __call__(self, inputs: Inputs, lengths: Sequence[int], numbers: Sequence[int]) -> None:
        """Run prompts: their inputs `[B, T, ...]` on the host, their lengths and slots."""
        graph = self._graphs.get(_shapes(inputs))
        if graph is not None:
            graph.replay(inputs, lengths[0], numbers[0])
            return
        sent = {name: to_device(rows, self._device) for name, rows in inputs.items()}
        sizes, slots = (to_device(torch.tensor(x), self._device) for x in (lengths, numbers))
        self._run(sent, sizes, slots, numbers)

    def warm_up(self, prompt: Inputs, sizes: Iterable[int]) -> None:
        """Capture prompts with inputs like these `[P, ...]`, at each of these lengths T."""
        if self._stream is None:
            return
        for size in sorted(sizes, reverse=True):  # the first allocates enough for the others
            rows = {name: x.new_zeros(1, size, *x.shape[1:]) for name, x in prompt.items()}
            graph = _PromptGraph(self._run, rows, self._idle, self._device, self._stream)
            self._graphs[_shapes(rows)] = graph


def _shapes(inputs: Inputs) -> tuple[tuple[str, torch.Size, torch.dtype], ...]:
    return tuple((name, rows.shape, rows.dtype) for name, rows in sorted(inputs.items()))


class _PromptGraph:
    """The graph of one prompt, captured with the spare slot, and its inputs on the device."""

    def __init__(
        self, run: PromptStep, rows: Inputs, idle: int, device: torch.device, stream: Stream
    ) -> None:
        self._inputs = {name: x.to(device) for name, x in rows.items()}
        size = next(iter(rows.values())).shape[1]
        # Length and slot in one tensor, so that one copy sends both.
        self._place = torch.tensor([size, idle], device=device)
        length, slot = self._place[:1], self._place[1:]
        self._graph = stream.capture(lambda: run(self._inputs, length, slot, None))

    def replay(self, rows: Inputs, length: int, slot: int) -> None:
        place = self._place, torch.tensor([length, slot])
        for mine, theirs in (place, *((self._inputs[name], rows[name]) for name in rows)):
            mine.copy_(_sendable(theirs, mine.device), non_blocking=True)
        self._graph.replay()
