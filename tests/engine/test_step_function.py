"""Batch sizes, and the arguments of a step function."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch

from vox_serve.engine.cuda_graph import StepFunction, Stream, bucket_sizes
from vox_serve.engine.runner import run_isolated
from vox_serve.errors import EngineError

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
