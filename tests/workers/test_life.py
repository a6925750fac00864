"""When a worker counts as hung, and when it may restart."""

from __future__ import annotations

import pytest

from vox_serve.messages import Alive
from vox_serve.workers import life
from vox_serve.workers.life import Pulse, Restarts
from vox_serve.workers.link import describe_exit


def test_a_worker_with_heartbeats_and_steps_is_alive() -> None:
    pulse = Pulse(2.0)
    for number in range(100):
        pulse.stepped()
        pulse.beat(Alive(((number, "emit"),)))
        assert pulse.tick(0.5) is None


def test_a_worker_without_heartbeats_is_detected_before_the_stall_timeout() -> None:
    pulse = Pulse(120.0)
    problems = [pulse.tick(1.0) for _ in range(11)]
    assert problems[:10] == [None] * 10
    assert problems[10] == "the engine gave no sign of life for 10 seconds"


def test_a_call_that_does_not_return_is_named() -> None:
    pulse = Pulse(5.0)
    problem = None
    for _ in range(6):
        assert problem is None
        pulse.stepped()  # the loop goes on; the other thread hangs
        pulse.beat(Alive(((7, "encode"),)))
        problem = pulse.tick(1.0)
    assert problem == "the model's encode did not return within 5 seconds"


def test_a_loop_that_hangs_outside_a_call_is_detected() -> None:
    pulse = Pulse(5.0)
    problems = []
    for _ in range(6):
        pulse.beat(Alive())
        problems.append(pulse.tick(1.0))
    assert problems == [None] * 5 + ["the engine made no step for 5 seconds"]


def test_restarts_have_growing_delays_and_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(life.time, "monotonic", lambda: now[0])
    restarts = Restarts()
    delays = [restarts.next_delay() for _ in range(11)]
    assert delays == [0.5, 1, 2, 4, 8, 16, 30, 30, 30, 30, None]
    now[0] = 601.0
    assert restarts.next_delay() == 0.5, "restarts of ten minutes ago count"


@pytest.mark.parametrize(
    ("code", "description"),
    [
        (-9, "was killed by SIGKILL (most often for want of memory)"),
        (-11, "was killed by SIGSEGV"),
        (-63, "was killed by signal 63"),
        (3, "ended with exit code 3"),
    ],
)
def test_the_end_of_a_process_is_described(code: int, description: str) -> None:
    assert describe_exit(code) == description
