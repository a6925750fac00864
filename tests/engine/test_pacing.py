"""How many frames are sent to the client at once."""

from vox_serve.engine.pacing import Pacing

FRAME = 0.08


def packing(steps: list[float]) -> list[int]:
    """The number of frames per piece, if the steps take these seconds."""
    pacing, now, sizes = Pacing(FRAME), 100.0, []
    for seconds in steps:
        now += seconds
        sent = pacing.add(b"f", now, seconds)
        if sent:
            sizes.append(len(sent))
    rest = len(pacing.rest())
    assert sum(sizes) + rest == len(steps)
    return [*sizes, rest]


def test_pieces_grow_with_the_lead_of_the_client() -> None:
    assert packing([0.005] * 30) == [1, 1, 2, 4, 8, 8, 6]


def test_without_a_lead_each_frame_is_sent_at_once() -> None:
    assert packing([FRAME] * 6) == [1, 1, 1, 1, 1, 1, 0]
    assert packing([2 * FRAME] * 4) == [1, 1, 1, 1, 0]


def test_the_client_never_runs_out_of_audio_because_frames_are_held_back() -> None:
    for pace in (0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07):
        pacing, now, began, sent_seconds = Pacing(FRAME), 0.0, 0.0, 0.0
        for number in range(200):
            now += pace
            sent = pacing.add(b"f", now, pace)
            if sent_seconds:
                assert now - began <= sent_seconds + 1e-9, (pace, number)
            began = began or now
            sent_seconds += FRAME * len(sent)


def test_after_a_stall_all_held_frames_are_sent() -> None:
    pacing, now = Pacing(FRAME), 0.0
    for _ in range(20):
        now += 0.01
        pacing.add(b"f", now, 0.01)
    held = len(pacing.rest())
    for _ in range(held):
        assert pacing.add(b"f", now, 0.01) == b""
    assert len(pacing.add(b"f", now + 10.0, 10.0)) == held + 1
