"""Which sequences run, in which slots and in what order."""

import pytest
import torch

from vox_serve.engine.scheduler import (
    PIECE_POSITIONS,
    PREFILL_BUCKET,
    PREFILL_POSITIONS,
    Scheduler,
)
from vox_serve.engine.sequence import Sequence, SequenceStatus
from vox_serve.messages import KEPT_SECONDS, FinishReason
from vox_serve.model import Prompt
from vox_serve.sampling import SamplingParams


def make_sequence(name: str, length: int = 3, **fields: bool) -> Sequence:
    prompt = Prompt({"tokens": torch.zeros(length)})
    return Sequence(name, prompt, SamplingParams(), seed=0, max_frames=5, **fields)


def test_first_come_first_served_within_the_slots():
    scheduler = Scheduler(2)
    a, b, c = (make_sequence(name) for name in "abc")
    for sequence in (a, b, c):
        scheduler.add(sequence)
    assert scheduler.schedule() == [a, b]
    assert (a.slot, b.slot, c.status) == (0, 1, SequenceStatus.WAITING)
    assert scheduler.schedule() == []
    scheduler.finish(a, FinishReason.STOP)
    assert scheduler.schedule() == [c]
    assert c.slot == 0
    assert a.status is SequenceStatus.FINISHED


def test_a_waiting_sequence_can_end_without_a_slot():
    scheduler = Scheduler(1)
    a, b = make_sequence("a"), make_sequence("b")
    scheduler.add(a)
    scheduler.add(b)
    scheduler.schedule()
    scheduler.finish(b, FinishReason.CANCELLED)
    assert "b" not in scheduler
    assert scheduler.find("a") is a
    scheduler.finish(a, FinishReason.STOP)
    assert not scheduler.has_work


def test_every_slot_comes_back():
    scheduler = Scheduler(3)
    for round_number in range(5):
        sequences = [make_sequence(f"{round_number}-{i}") for i in range(3)]
        for sequence in sequences:
            scheduler.add(sequence)
        scheduler.schedule()
        assert sorted(s.slot for s in sequences) == [0, 1, 2]
        for sequence in sequences[::-1]:
            scheduler.finish(sequence, FinishReason.STOP)


def test_as_many_prompts_run_together_as_the_budget_holds():
    scheduler = Scheduler(100)
    scheduled(scheduler, *[PREFILL_BUCKET] * 70)
    # While the first ones speak, the others join in smaller groups.
    parties = [PREFILL_POSITIONS // PREFILL_BUCKET, PIECE_POSITIONS // PREFILL_BUCKET]
    assert [len(run_prompts(scheduler)) for _ in range(2)] == parties


def run_prompts(scheduler: Scheduler) -> list[tuple[str, int]]:
    """Do the prefill of one step as the runner would; returns names and positions."""
    rows, most = scheduler.prefilling()
    ran = []
    for sequence in rows:
        count = min(most, len(sequence.prompt) - sequence.prefilled)
        sequence.prefilled += count
        ran.append((sequence.id, count))
    return ran


def scheduled(scheduler: Scheduler, *lengths: int) -> list[Sequence]:
    sequences = [make_sequence(str(number), length) for number, length in enumerate(lengths)]
    for sequence in sequences:
        scheduler.add(sequence)
    scheduler.schedule()
    return sequences


def test_prompts_run_together_within_the_budget():
    scheduler = Scheduler(4)
    scheduled(scheduler, 10, 20, PREFILL_POSITIONS // 2)
    assert run_prompts(scheduler) == [("0", 10), ("1", 20)]


def test_prompts_of_similar_length_run_together_and_the_others_next():
    scheduler = Scheduler(5)
    scheduled(scheduler, 60, 66, 64, 130, 128)
    steps = [run_prompts(scheduler) for _ in range(4)]
    assert steps == [[("0", 60), ("2", 64)], [("1", 66), ("4", 128)], [("3", 130)], []]


def test_a_prompt_that_delays_no_other_runs_whole():
    scheduler = Scheduler(4)
    scheduled(scheduler, PREFILL_POSITIONS - 1)
    assert run_prompts(scheduler) == [("0", PREFILL_POSITIONS - 1)]


def test_a_long_prompt_runs_in_pieces_while_others_speak():
    scheduler = Scheduler(4)
    short, long = scheduled(scheduler, 3, 2 * PIECE_POSITIONS + 5)
    short.prefilled = 3
    assert scheduler.speaking() == [short]
    pieces = [run_prompts(scheduler) for _ in range(3)]
    assert pieces == [[("1", PIECE_POSITIONS)], [("1", PIECE_POSITIONS)], [("1", 5)]]
    assert scheduler.speaking() == [short, long]
    assert run_prompts(scheduler) == []


def test_in_deterministic_mode_the_pieces_of_a_prompt_do_not_depend_on_the_others():
    scheduler = Scheduler(4, alone=True)
    scheduled(scheduler, PIECE_POSITIONS + 1, 3)
    pieces = [run_prompts(scheduler) for _ in range(3)]
    assert pieces == [[("0", PIECE_POSITIONS)], [("0", 1)], [("1", 3)]]


def test_a_sequence_whose_frames_are_all_launched_is_not_run_again():
    scheduler = Scheduler(1)
    (sequence,) = scheduled(scheduler, 3)
    sequence.prefilled, sequence.launched = 3, sequence.max_frames
    assert scheduler.speaking() == []
    assert scheduler.has_work


@pytest.fixture
def clock():
    """The scheduler's clock, in seconds."""
    return [100.0]


def between_two_parts(clock, waiting=()):
    """A scheduler of one slot in which the first part of `a` has ended and others wait."""
    scheduler = Scheduler(1, clock=lambda: clock[0])
    first = make_sequence("a", more=True)
    scheduler.add(first)
    assert scheduler.schedule() == [first]
    for sequence in waiting:
        scheduler.add(sequence)
    scheduler.finish(first, FinishReason.STOP)
    return scheduler


def test_a_slot_is_kept_for_the_next_part_of_a_text(clock):
    b = make_sequence("b")
    scheduler = between_two_parts(clock, [b])
    assert scheduler.schedule() == []
    assert not scheduler.has_work
    part = make_sequence("a", continues=True)
    scheduler.add(part)
    assert scheduler.has_work
    assert scheduler.schedule() == [part]
    scheduler.finish(part, FinishReason.STOP)
    assert scheduler.schedule() == [b], "the slot is kept after the last part"


def test_a_slot_is_not_kept_for_long(clock):
    b = make_sequence("b")
    scheduler = between_two_parts(clock, [b])
    clock[0] += KEPT_SECONDS
    assert scheduler.schedule() == [b]
    part, c = make_sequence("a", continues=True), make_sequence("c")
    scheduler.add(c)
    scheduler.add(part)
    scheduler.finish(b, FinishReason.STOP)
    assert scheduler.schedule() == [part], "a later part does not go first"


def test_no_slot_is_kept_for_a_client_that_left(clock):
    b = make_sequence("b")
    scheduler = between_two_parts(clock, [b])
    scheduler.release("a")
    assert scheduler.schedule() == [b]


@pytest.mark.parametrize("reason", [FinishReason.CANCELLED, FinishReason.ERROR])
def test_no_slot_is_kept_after_a_part_that_fails_or_is_cancelled(reason):
    scheduler = Scheduler(1)
    first, b = make_sequence("a", more=True), make_sequence("b")
    scheduler.add(first)
    scheduler.schedule()
    scheduler.add(b)
    scheduler.finish(first, reason)
    assert scheduler.schedule() == [b]
