"""How the CPU threads of a process with an engine wait for each other; loads no torch."""

from __future__ import annotations

import os

SPIN_COUNT = "2000"
"""Iterations of the waiting loop before a thread sleeps: a few microseconds.  On two cores, CSM at
full size takes 6 % longer than with threads that never sleep, but beside a busy process its matrix
products take a quarter of the time or less."""
VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def let_threads_sleep() -> None:
    """Make idle OpenMP threads sleep soon; call it before torch is loaded.

    An operation shared by threads ends when the last thread has finished its part.  Threads that
    spin meanwhile keep that last one off its core as soon as anything else runs, such as the
    server's own process; a frame then takes several times as long.  If either variable
    is set, nothing changes.  Only GNU's OpenMP, which torch ships on Linux, reads this setting.
    """
    if not any(name in os.environ for name in VARIABLES):
        os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT
