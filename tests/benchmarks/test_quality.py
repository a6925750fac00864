"""Teacher forcing: the figures of logits that are written by hand."""

import torch

from benchmarks.quality import Recorder, Spoken, compare


def spoken(*logits):
    """One frame, with a codebook for each row of logits."""
    frame = torch.tensor([logits], dtype=torch.float32)
    return Spoken(frame.argmax(-1), frame)


def test_equal_logits_have_no_error():
    said = spoken([0.0, 1.0, 2.0], [5.0, 1.0, 2.0])
    found = compare([said], [said])
    assert found["equal"] == found["equal_first"] == 1.0
    assert found["worst_error"] == 0.0


def test_equal_choices_are_counted_and_errors_are_divided_by_the_deviation():
    reference = spoken([0.0, 1.0, 2.0], [5.0, 4.0, 3.0])  # each has a standard deviation of 1
    found = compare([reference], [spoken([0.0, 1.0, 2.0], [5.0, 5.5, 3.0])])
    assert found["equal_first"] == 1.0
    assert found["equal"] == 0.5
    assert found["worst_error"] == 1.5
    assert found["margin"] == 1.0


def test_a_recorder_returns_the_forced_codes_and_keeps_the_logits():
    logits = torch.tensor([[0.0, 3.0, 1.0]])
    assert Recorder(None)(logits, 0).tolist() == [1]
    forced = Recorder(torch.tensor([2, 0]))
    assert forced(logits, 0).tolist() == [2]
    assert forced(logits, 1).tolist() == [0]
    assert torch.stack(forced.logits).tolist() == [[0.0, 3.0, 1.0]] * 2


def test_copies_of_a_text_get_the_same_forced_code():
    forced = Recorder(torch.tensor([2, 0]))
    assert forced(torch.zeros(3, 4), 0).tolist() == [2, 2, 2]
