"""Resources that a process holds, and traces of a server on the machine."""

from __future__ import annotations

from pathlib import Path

import attrs

from tests.launched import Launched

MIB = 2**20


@attrs.frozen
class Held:
    """The resources that a process holds."""

    memory: int
    descriptors: int
    threads: int


def held(pid: int) -> Held:
    process = Path(f"/proc/{pid}")
    lines = (process / "smaps_rollup").read_text().splitlines()
    (private,) = (line for line in lines if line.startswith("Private_Dirty:"))
    return Held(
        int(private.split()[1]) * 1024,
        len(list((process / "fd").iterdir())),
        len(list((process / "task").iterdir())),
    )


@attrs.frozen
class Traces:
    """The number of resources of each kind that a server has on the machine."""

    processes: int
    descriptors: int
    threads: int
    temporary_files: int
    shared_memory: int
    """Files in shared memory that its processes map."""


def traces(server: Launched, temporary: Path) -> Traces:
    """Count the resources of a server whose TMPDIR is `temporary`."""
    own, pids = held(server.process.pid), server.processes()
    return Traces(
        len(pids),
        own.descriptors,
        own.threads,
        len(list(temporary.rglob("*"))),
        sum(Path(f"/proc/{pid}/maps").read_text().count("/dev/shm/") for pid in pids),
    )
