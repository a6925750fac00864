"""Teacher forcing: what is counted, on logits written by hand."""

import torch

from benchmarks.quality import Recorder, Spoken, compare


def spoken(*logits):
    """One frame of as many codebooks as rows are given."""
    frame = torch.tensor([logits], dtype=torch.float32)
    return Spoken(frame.argmax(-1), frame)


def test_a_form_that_is_equal_has_no_error():
    said = spoken([0.0, 1.0, 2.0], [5.0, 1.0, 2.0])
    found = compare([said], [said])
    assert found["equal"] == found["equal_first"] == 1.0
    assert found["worst_error"] == 0.0


def test_shares_are_of_choices_and_errors_are_over_the_spread():
    reference = spoken([0.0, 1.0, 2.0], [5.0, 4.0, 3.0])  # each has a standard deviation of 1
    found = compare([reference], [spoken([0.0, 1.0, 2.0], [5.0, 5.5, 3.0])])
    assert found["equal_first"] == 1.0
    assert found["equal"] == 0.5
    assert found["worst_error"] == 1.5
    assert found["margin"] == 1.0


def test_a_recorder_hands_out_what_is_forced_and_keeps_the_logits():
    logits = torch.tensor([[0.0, 3.0, 1.0]])
    assert Recorder(None)(logits, 0).tolist() == [1]
    forced = Recorder(torch.tensor([2, 0]))
    assert forced(logits, 0).tolist() == [2]
    assert forced(logits, 1).tolist() == [0]
    assert torch.stack(forced.logits).tolist() == [[0.0, 3.0, 1.0]] * 2
