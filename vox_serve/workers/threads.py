"""How the CPU threads of a process with an engine wait for each other; loads no torch."""

from __future__ import annotations

import os

SPIN_COUNT = "2000"
"""Turns of a waiting loop before a thread sleeps: some microseconds.  On two cores CSM at full size
takes 6 % longer so than with threads that never sleep; its products beside a busy process take a
quarter of their time or less."""
VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def let_threads_sleep() -> None:
    """Have idle OpenMP threads sleep soon; call it before torch is loaded.

    An operation that is shared by threads ends when the last one has done its part.  Threads that
    turn in a loop meanwhile keep that last one off its core as soon as anything else runs, the
    server's own process for one: a frame then takes several times as long.  Whoever has set one
    of the variables knows better.  Only GNU's OpenMP, which torch brings on Linux, listens.
    """
    if not any(name in os.environ for name in VARIABLES):
        os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT
