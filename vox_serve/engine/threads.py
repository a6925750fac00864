"""How the CPU threads of a process with an engine wait for each other; loads no torch."""

from __future__ import annotations

import os

VARIABLE = "OMP_WAIT_POLICY"


def let_threads_sleep() -> None:
    """Have idle OpenMP threads sleep instead of turning in a loop; call it before torch is loaded.

    An operation that is shared by threads ends when the last one has done its part.  Threads that
    turn in a loop meanwhile keep that last one off its core as soon as anything else runs, the
    server's own process for one: a frame then takes several times as long.  Whoever has set the
    variable knows better.
    """
    os.environ.setdefault(VARIABLE, "passive")
