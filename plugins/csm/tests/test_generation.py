"""How codes are picked and how an utterance ends: seeds, the end rule, the cap."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from plugins.csm.tests.checkpoints import CODEBOOKS, Frames, silence_heads
from plugins.csm.tests.conftest import Checkpoint, MakeEngine, load, record, request
from tests.conftest import run_engine
from vox_serve.engine.engine import Engine
from vox_serve.engine.runner import ModelRunner
from vox_serve.messages import Finished, FinishReason
from vox_serve.testing import no_host_read


def sampled(engine: Engine, *seeds: int) -> dict[str, Frames]:
    """The frames of one batch, with a request for each of these seeds."""
    frames = record(engine)
    for seed in seeds:
        sampling = {"temperature": 0.9, "seed": seed}
        engine.add(request(str(seed), f"hello{'o' * (seed % 4)}", frames=20, sampling=sampling))
    run_engine(engine)
    return frames


def test_a_seed_gives_the_same_frames_alone_and_in_a_batch(make_engine: MakeEngine) -> None:
    alone = sampled(make_engine(), 7)["7"]
    assert sampled(make_engine(), 7)["7"] == alone
    company = sampled(make_engine(), 1, 2, 7, 3, 11)
    assert company["7"] == alone
    assert company["11"] != alone  # the same text, because 11 % 4 is 7 % 4


def test_without_a_seed_utterances_differ(make_engine: MakeEngine) -> None:
    engine = make_engine()
    frames = record(engine)
    for name in "ab":
        engine.add(request(name, "hello", frames=5, sampling={"temperature": 0.9}))
    run_engine(engine)
    assert frames["a"] != frames["b"]


@pytest.fixture
def with_silent_heads(
    checkpoint: Checkpoint, tmp_path: Path, make_engine: MakeEngine
) -> Callable[[set[int]], Engine]:
    """Makes an engine whose greedy pick is code 0 in some codebooks."""

    def make(codebooks: set[int]) -> Engine:
        shutil.copytree(checkpoint.directory, tmp_path, dirs_exist_ok=True)
        silence_heads(tmp_path, codebooks)
        return make_engine(tmp_path)

    return make


def finish(engine: Engine) -> tuple[Finished, bytes, Frames]:
    frames = record(engine)
    engine.add(request("x", "hello", frames=12))
    spoken = run_engine(engine)["x"]
    assert isinstance(spoken.end, Finished)
    return spoken.end, spoken.pcm, frames["x"]


def test_a_frame_of_zeros_ends_the_utterance_without_sound(with_silent_heads) -> None:
    end, pcm, frames = finish(with_silent_heads(set(range(CODEBOOKS))))
    assert frames == [(0,) * CODEBOOKS]
    assert (end.reason, end.frames, pcm) == (FinishReason.STOP, 0, b"")


@pytest.mark.parametrize("silent", [{0}, set(range(CODEBOOKS - 1)), set(range(1, CODEBOOKS))])
def test_fewer_zeros_do_not_end_the_utterance(with_silent_heads, silent: set[int]) -> None:
    """Speech goes on if only some codes are 0; transformers stops if all but the last are."""
    end, pcm, frames = finish(with_silent_heads(silent))
    assert all(frame[book] == 0 for frame in frames for book in silent)
    assert all(any(frame) for frame in frames)
    assert (end.reason, end.frames) == (FinishReason.LENGTH, 12)
    assert len(pcm) == 12 * 1920 * 2


def test_the_slot_of_an_utterance_without_frames_is_clean(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An end at frame 0 leaves no state for the next request in that slot."""
    engine = make_engine(max_batch_size=1)
    expected = finish(make_engine())
    emit = engine.model.emit
    monkeypatch.setattr(
        engine.model, "emit", lambda *args: (torch.zeros(1, CODEBOOKS).long(), torch.ones(1) > 0)
    )
    assert finish(engine)[0].frames == 0
    monkeypatch.setattr(engine.model, "emit", emit)
    again = finish(engine)
    assert again[1:] == expected[1:]


def test_the_runners_steps_could_be_captured(make_engine: MakeEngine) -> None:
    """With slot numbers unknown to the host, as in a graph, nothing reads from the device."""
    engine = make_engine()
    sampling = {"temperature": 0.9, "top_p": 0.9, "repetition_penalty": 1.1}
    engine.add(request("a", "hello", frames=20, sampling=sampling))
    run_engine(engine, steps=3)
    runner = engine.runner
    runner.kv.extent = runner.kv.max_positions
    slots = torch.tensor([0, runner.num_slots, runner.num_slots])
    frames, length = int(runner.sampler.frame[0]), int(runner.kv.lengths[0])
    with torch.inference_mode():
        for step in (runner._advance, runner._emit, runner._take, runner._sound):
            no_host_read(step)(slots, None)
    assert runner.sampler.frame[0] == frames + 1
    assert runner.kv.lengths[0] == length + 1
    assert runner.kv.lengths[runner.num_slots] == 0  # the spare row does not grow


def test_the_runners_steps_stay_on_the_models_device(checkpoint: Checkpoint) -> None:
    """torch refuses to mix devices, so the meta device finds the mistakes that a GPU would."""
    model = load(checkpoint.directory, "bfloat16", "meta")
    runner = ModelRunner(model, 3)
    slots = torch.empty(2, dtype=torch.int64, device="meta")
    with torch.inference_mode():
        for step in (runner._advance, runner._emit, runner._take, runner._sound):
            step(slots, None)
    assert {t.device.type for t in (runner.hidden, runner.picked, runner.pcm)} == {"meta"}
