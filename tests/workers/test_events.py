"""Audio that nobody reads has the engine wait."""

from __future__ import annotations

from vox_serve.messages import Audio, Finished, FinishReason
from vox_serve.workers.events import Events

PIECE = Audio("a", bytes(10))


def filled(limit: float, pieces: int) -> tuple[Events, list[bool]]:
    told: list[bool] = []
    events = Events(limit, told.append)
    for _ in range(pieces):
        events.put_nowait(PIECE)
    return events, told


def test_it_is_held_above_the_limit_and_let_go_at_half_of_it() -> None:
    events, told = filled(40, 4)
    assert told == []
    events.put_nowait(PIECE)
    events.put_nowait(PIECE)
    assert told == [True]
    for _ in range(3):
        events.get_nowait()
    assert told == [True], "half full would let it come and go all the time"
    events.get_nowait()
    assert told == [True, False]
    for _ in range(3):
        events.put_nowait(PIECE)
    assert told == [True, False, True]


def test_at_the_end_nothing_is_held() -> None:
    events, told = filled(40, 9)
    events.put_nowait(Finished("a", FinishReason.STOP, 9, 0))
    events.end()
    events.end()
    assert told == [True, False]
    while not events.empty():
        events.get_nowait()
    assert told == [True, False]


def test_what_is_read_in_time_is_never_held() -> None:
    events, told = filled(40, 0)
    for _ in range(100):
        events.put_nowait(PIECE)
        assert events.get_nowait() is PIECE
    events.end()
    assert told == []
