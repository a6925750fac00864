"""Batch sizes, and the arguments of a step function."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vox_serve.engine.cuda_graph import PromptFunction, StepFunction, Stream, bucket_sizes
from vox_serve.engine.runner import run_isolated
from vox_serve.errors import EngineError
from vox_serve.testing.replay import recorded

CPU = torch.device("cpu")
IDLE = 9


def test_buckets() -> None:
    assert bucket_sizes(3, CPU, deterministic=False) == [1, 2, 3]
    assert bucket_sizes(3, CPU, deterministic=True) == [3]
    cuda = torch.device("cuda")
    assert bucket_sizes(1, cuda, deterministic=False) == [1]
    assert bucket_sizes(16, cuda, deterministic=False) == [1, 2, 4, 8, 16]
    assert bucket_sizes(20, cuda, deterministic=False) == [1, 2, 4, 8, 16, 20]
    assert bucket_sizes(64, cuda, deterministic=False) == [1, 2, 4, 8, 16, 32, 64]
    assert bucket_sizes(200, cuda, deterministic=False) == [1, 2, 4, 8, 16, 32, 64, 128, 192, 200]


@pytest.mark.parametrize(("sizes", "padded"), [([1, 2, 3], (4, 0)), ([4], (4, 0, IDLE, IDLE))])
def test_a_batch_is_padded_with_the_idle_slot(sizes: list[int], padded: tuple[int, ...]) -> None:
    seen: list[tuple[list[int], object]] = []
    step = StepFunction(
        lambda slots, numbers: seen.append((slots.tolist(), numbers)), sizes, IDLE, CPU, None
    )
    step([4, 0])
    assert seen == [(list(padded), padded)]


def test_slots_are_sent_only_when_the_batch_has_changed() -> None:
    sent: list[torch.Tensor] = []
    step = StepFunction(lambda slots, numbers: sent.append(slots), [1, 2], IDLE, CPU, None)
    for numbers in ([1], [1], [2], [1, 2], [1, 2]):
        step(numbers)
    assert sent[0] is sent[1]
    assert sent[3] is sent[4]
    assert len({id(slots) for slots in sent}) == 3


class Torch:
    """Fake streams and graphs of torch.cuda that record their calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.captures: list[dict[str, object]] = []
        monkeypatch.setattr(torch.cuda, "Stream", lambda *_: self)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self)
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
        monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
        monkeypatch.setattr(torch.cuda, "graph", self.graph)
        monkeypatch.setattr(torch.cuda, "Event", lambda: self)
        self.waits: list[str] = []

    def wait_stream(self, stream: object) -> None:
        self.waits.append("stream")

    def wait_event(self, event: object) -> None:
        self.waits.append("event")

    def record(self, stream: object) -> None:
        self.waits.append("record")

    @contextmanager
    def graph(self, graph: object, **options: object) -> Iterator[None]:
        self.captures.append(options | {"collects": gc.isenabled()})
        yield


def test_a_capture_tolerates_other_threads_and_frees_no_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = Torch(monkeypatch)
    seen: list[bool] = []
    Stream(torch.device("cuda"), main=True).capture(lambda: seen.append(gc.isenabled()))
    assert seen == [True, True, False]
    (options,) = cuda.captures
    assert options["capture_error_mode"] == "thread_local"
    assert gc.isenabled()


def test_joining_a_mark_does_not_wait_for_later_work(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Torch(monkeypatch)
    side = Stream(torch.device("cuda"))
    with side.beside():
        side.mark()
    side.join_mark()
    assert cuda.waits == ["stream", "record", "event"]
    main = Stream(torch.device("cuda"), main=True)
    main.mark()
    main.join_mark()
    assert len(cuda.waits) == 3


def test_a_failed_capture_ends_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's streams are then in an invalid state, so rows must not be retried one by one."""
    Torch(monkeypatch)
    runs: list[int] = []

    def run() -> None:
        runs.append(len(runs))
        if len(runs) == 3:
            raise RuntimeError("operation not permitted when stream is capturing")

    stream = Stream(torch.device("cuda"), main=True)
    with pytest.raises(EngineError, match="cannot be captured as a CUDA graph: RuntimeError"):
        run_isolated(lambda rows: stream.capture(run), [object(), object()])
    assert len(runs) == 3
    assert gc.isenabled()


class Prompts:
    """A sum of each prompt's numbers, by slot; counts runs on the host."""

    def __init__(self) -> None:
        self.sums = torch.zeros(IDLE + 1)
        self.runs: list[tuple[int, ...]] = []

    def run(self, inputs: Any, lengths: torch.Tensor, slots: torch.Tensor, numbers: object) -> None:
        tokens = inputs["tokens"]
        self.runs.append(tuple(tokens.shape))
        kept = torch.arange(tokens.shape[1]) < lengths[:, None]
        self.sums.index_copy_(0, slots, (tokens * kept).sum(1).float())


class Recorder:
    """In place of a stream: its graphs repeat a function's operations, as a CUDA graph does."""

    def capture(self, run: Any) -> Any:
        return SimpleNamespace(replay=recorded(lambda: run() or ()))


def tokens(*rows: list[int], size: int) -> dict[str, torch.Tensor]:
    return {"tokens": torch.tensor([[*row, *[0] * (size - len(row))] for row in rows]).float()}


@pytest.fixture
def captured_prompts() -> tuple[PromptFunction, Prompts]:
    prompts, stream = Prompts(), Recorder()
    step = PromptFunction(prompts.run, IDLE, CPU, stream)  # type: ignore[arg-type]  # a test double
    step.warm_up({"tokens": torch.ones(3)}, [4, 8])
    assert prompts.runs == [(1, 8), (1, 4)], "the largest first: its memory serves the others"
    prompts.runs.clear()
    return step, prompts


def test_a_short_prompt_replays_the_graph_of_its_length(captured_prompts):
    step, prompts = captured_prompts
    step(tokens([1, 2], size=4), [2], [3])
    step(tokens([1, 2, 3, 4, 5], size=8), [5], [0])
    step(tokens([7], size=4), [1], [3])
    assert prompts.runs == [], "the function did not run on the host"
    assert prompts.sums[:IDLE].tolist() == [15, 0, 0, 7, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("inputs", "lengths", "slots"),
    [
        (tokens([1] * 12, size=12), [12], [3]),
        (tokens([1, 2], [3, 4], size=4), [2, 2], [1, 2]),
        (tokens([1, 2], size=4) | {"voice": torch.zeros(1, 4)}, [2], [1]),
        ({"tokens": torch.ones(1, 4, dtype=torch.int64)}, [2], [1]),
    ],
    ids=["longer", "two", "another input", "another type"],
)
def test_other_prompts_run_without_a_graph(captured_prompts, inputs, lengths, slots):
    step, prompts = captured_prompts
    step(inputs, lengths, slots)
    assert prompts.runs == [tuple(inputs["tokens"].shape)]
    kept = [row[:n].sum().item() for row, n in zip(inputs["tokens"], lengths, strict=True)]
    assert prompts.sums[slots].tolist() == kept


def test_without_a_stream_nothing_is_captured() -> None:
    prompts = Prompts()
    step = PromptFunction(prompts.run, IDLE, CPU, None)
    step.warm_up({"tokens": torch.ones(3)}, [4, 8])
    assert prompts.runs == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device to capture on")
def test_a_replayed_step_does_the_same_as_its_function() -> None:
    device = torch.device("cuda")
    rows = torch.zeros(IDLE + 1, device=device)

    def run(slots: torch.Tensor, numbers: object) -> None:
        rows[slots] += slots + 1

    step = StepFunction(run, [2, 4], IDLE, device, Stream(device, main=True))
    step.warm_up()
    rows.zero_()
    for _ in range(3):
        step([1, 3, 5])
    assert rows[:IDLE].tolist() == [0, 6, 0, 12, 0, 18, 0, 0, 0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device to capture on")
def test_a_replayed_prompt_does_the_same_as_its_function() -> None:
    device = torch.device("cuda")
    sums = torch.zeros(IDLE + 1, device=device)

    def run(inputs: Any, lengths: torch.Tensor, slots: torch.Tensor, numbers: object) -> None:
        kept = torch.arange(inputs["tokens"].shape[1], device=device) < lengths[:, None]
        sums.index_copy_(0, slots, (inputs["tokens"] * kept).sum(1))

    step = PromptFunction(run, IDLE, device, Stream(device, main=True))
    step.warm_up({"tokens": torch.ones(3)}, [4, 8])
    for size, slot in ((4, 3), (8, 0), (4, 5)):
        step(tokens(list(range(size)), size=size), [size - 1], [slot])
    assert sums[:IDLE].tolist() == [21, 0, 0, 3, 0, 3, 0, 0, 0]
