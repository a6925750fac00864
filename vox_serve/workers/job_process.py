"""The body of a process of `jobs.Jobs`.  Imports little, so that a process starts at once."""

from __future__ import annotations

import os
import pickle
import resource
import signal
import sys
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

import attrs

from vox_serve.errors import RequestError, VoxServeError
from vox_serve.workers.link import end_with

PAGE = resource.getpagesize()


@attrs.frozen
class Raised:
    """What a job raised.

    Args:
        error: the error to raise in the server; None if it is not one of vox_serve's.
        kind: otherwise, its type, without the message, which may quote the input.
        where: otherwise, the place where it was raised.
    """

    error: VoxServeError | None = None
    kind: str = ""
    where: str = ""


def main(descriptor: int, server: int, memory: int) -> None:
    """Do jobs until the server closes the pipe.

    Args:
        descriptor: of the pipe.
        server: process id of the server.
        memory: bytes that may be allocated from now on.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends with the server
    end_with(server)
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * PAGE + memory,) * 2)
    with Connection(descriptor) as connection:
        connection.send(None)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):  # because libraries print messages about files
            os.dup2(nowhere, stream)
        while True:
            try:
                job = connection.recv_bytes()
            except EOFError:
                return
            connection.send(_done(job, memory))


def _done(job: bytes, memory: int) -> object:
    try:
        work, args = pickle.loads(job)  # from the server
        return work(*args)
    except RequestError as error:
        return Raised(error.plain())
    except VoxServeError as error:
        return Raised(error)
    except MemoryError:
        return Raised(kind=f"it needs more than {memory >> 20} MiB of memory")
    except Exception as error:  # noqa: BLE001  # libraries and plugins raise anything
        frames = "".join(traceback.format_tb(error.__traceback__)).rstrip()
        return Raised(kind=type(error).__qualname__, where=frames)
