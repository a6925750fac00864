"""Who runs, in which slot, in what order."""

import torch

from vox_serve.engine.messages import FinishReason
from vox_serve.engine.scheduler import PREFILL_TOKENS, Scheduler
from vox_serve.engine.sequence import Sequence, SequenceStatus
from vox_serve.model import Prompt
from vox_serve.sampling import SamplingParams


def make_sequence(name: str, length: int = 3) -> Sequence:
    prompt = Prompt({"tokens": torch.zeros(length)})
    return Sequence(name, prompt, SamplingParams(), seed=0, max_frames=5)


def test_first_come_first_served_within_the_slots():
    scheduler = Scheduler(2)
    a, b, c = (make_sequence(name) for name in "abc")
    for sequence in (a, b, c):
        scheduler.add(sequence)
    batch = scheduler.schedule()
    assert (batch.running, batch.joining) == ((), (a, b))
    assert (a.slot, b.slot, c.status) == (0, 1, SequenceStatus.WAITING)
    batch = scheduler.schedule()
    assert (batch.running, batch.joining) == ((a, b), ())
    scheduler.finish(a, FinishReason.STOP)
    batch = scheduler.schedule()
    assert (batch.running, batch.joining) == ((b,), (c,))
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


def test_long_prompts_join_over_several_steps_but_always_one():
    scheduler = Scheduler(4)
    sequences = [make_sequence(str(i), PREFILL_TOKENS // 2 + 1) for i in range(3)]
    for sequence in sequences:
        scheduler.add(sequence)
    assert scheduler.schedule().joining == (sequences[0],)
    assert scheduler.schedule().joining == (sequences[1],)
    giant = Scheduler(1)
    giant.add(make_sequence("giant", PREFILL_TOKENS * 2))
    assert len(giant.schedule().joining) == 1
