"""The simulation of a device gives times that can be calculated by hand."""

from __future__ import annotations

import asyncio
import time

import attrs
import pytest

from vox_serve.bench.config import BenchConfig
from vox_serve.bench.figures import Figures, figures
from vox_serve.bench.load import plan
from vox_serve.bench.recording import Outcome, Run
from vox_serve.plan import virtual
from vox_serve.plan.costs import Costs, Line, Step
from vox_serve.plan.simulate import Site, simulate

COSTS = Costs(
    model="made up",
    device="cpu",
    machine="none",
    source="a test",
    slots=4,
    max_positions=2048,
    frame_rate=10.0,
    frames_per_step=1,
    takes_context=True,
    max_characters=None,
    max_words=None,
    prefix_positions=100_000,
    prepare=0.0,
    prefill=Line(0.1, 0.0),
    speech=Line(2.0, 0.0),  # 20 frames for every text
    positions=Line(10.0, 0.0),
    spread=0.0,
    steps=(
        Step(1, advance=0.01, advance_position=0.0, emit=0.01, codec=0.01, rest=0.0),
        Step(4, advance=0.02, advance_position=0.0, emit=0.02, codec=0.02, rest=0.0),
    ),
)
SITE = Site(COSTS, slots=4)


def served(site: Site, texts: list[str], **load: object) -> Run:
    config = BenchConfig(**{"duration": None, "timeout": 1000.0, **load})  # type: ignore[arg-type]  # fields of many types
    return simulate(site, plan(config)[0], config, texts)


def summary(site: Site, texts: list[str], **load: object) -> Figures:
    return figures(served(site, texts, **load))


def test_hours_of_virtual_time_take_no_real_time() -> None:
    async def wait() -> float:
        await asyncio.sleep(7200)
        return asyncio.get_running_loop().time()

    began = time.monotonic()
    assert virtual.run(wait()) == pytest.approx(7200)
    assert time.monotonic() - began < 60


def test_waiting_for_nothing_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="will never come"):
        virtual.run(asyncio.Event().wait())


def test_a_request_takes_the_time_of_its_steps() -> None:
    (recording,) = served(SITE, ["Good morning."], concurrency=(1,), requests=1).recordings
    # The prompt and the first frame (emit, codec); then 30 ms for each frame.
    assert recording.first_audio == pytest.approx(0.1 + 0.02)
    assert recording.audio == pytest.approx(2.0)
    # After the 20 frames, one more step shows that the utterance has ended.
    assert recording.total == pytest.approx(0.1 + 0.02 + 20 * 0.03)


def test_overhead_and_slowdown_are_added() -> None:
    site = attrs.evolve(SITE, overhead=0.5, slowdown=2.0)
    (recording,) = served(site, ["Good morning."], concurrency=(1,), requests=1).recordings
    assert recording.first_audio == pytest.approx(0.5 + 2 * 0.12)


def test_a_batch_takes_the_time_that_was_measured_for_it() -> None:
    recordings = served(SITE, ["Good morning."], concurrency=(4,), requests=4).recordings
    # One pass over four prompts of one length, then 60 ms a step.
    for recording in recordings:
        assert recording.total == pytest.approx(0.1 + 0.04 + 20 * 0.06)


def test_the_time_of_other_batch_sizes_is_interpolated() -> None:
    assert COSTS.step(2).advance == pytest.approx(0.01 + 0.01 / 3)


def test_a_request_without_a_slot_waits_and_one_beyond_the_queue_is_refused() -> None:
    site = attrs.evolve(SITE, slots=1, max_queue=1)
    recordings = served(site, ["Good morning."], rate=(100.0,), requests=4).recordings
    outcomes = [recording.outcome for recording in recordings]
    assert outcomes == [Outcome.OK, Outcome.OK, Outcome.REFUSED, Outcome.REFUSED]
    assert recordings[1].first_audio > recordings[0].total  # type: ignore[operator]  # both have audio


def test_a_long_text_is_spoken_in_parts_as_by_the_server() -> None:
    long_text = "One two three four five six seven. " * 40  # 1,400 characters: 4 parts of 400
    (recording,) = served(SITE, [long_text], concurrency=(1,), requests=1).recordings
    assert recording.outcome is Outcome.OK
    assert recording.audio == pytest.approx(4 * 2.0)
    # Later parts follow the earlier ones, whose positions are cached.
    assert recording.total == pytest.approx(4 * (0.1 + 0.02 + 20 * 0.03), rel=0.1)


def test_the_same_seed_gives_the_same_figures() -> None:
    site = attrs.evolve(SITE, costs=attrs.evolve(COSTS, spread=0.3))
    texts = ["Good morning.", "Please hold the line while I look for your order."]
    first, second = (summary(site, texts, rate=(3.0,), requests=30) for _ in range(2))
    other = summary(attrs.evolve(site, seed=1), texts, rate=(3.0,), requests=30)
    assert first == second != other


def test_a_client_that_gives_up_frees_its_slot() -> None:
    site = attrs.evolve(SITE, slots=1)
    run = served(site, ["Good morning."], concurrency=(2,), requests=2, timeout=0.3)
    assert [recording.failure for recording in run.recordings] == ["timeout", "timeout"]
    assert run.ended == pytest.approx(0.3, abs=0.1)


def test_a_loaded_device_is_slower() -> None:
    texts = ["Good morning."]
    calm, busy = (summary(SITE, texts, rate=(rate,), requests=60) for rate in (0.5, 5.0))
    assert calm.first_audio.p95 < busy.first_audio.p95  # type: ignore[operator]  # both have audio
    assert calm.real_time_factor.p95 < busy.real_time_factor.p95  # type: ignore[operator]
