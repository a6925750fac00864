"""Runs functions on clients' input in other processes, with limits of time and memory.

Libraries and plugins read texts and audio files: they may hold the interpreter lock, hang, crash,
print or take all memory.  In a separate process, they only delay or end that process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing.connection
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from vox_serve.errors import QueueFull
from vox_serve.workers.job_process import Raised
from vox_serve.workers.link import describe_exit

MIB = 2**20
START_SECONDS = 60.0
"""How many seconds a process may take to start, even on a busy machine."""
T = TypeVar("T")
log = logging.getLogger("vox_serve.jobs")


class JobFailed(Exception):
    """A job was not done; the message says why."""


class Jobs:
    """Processes that start when they are needed, and do one job at a time.

    One that exceeds a limit or crashes is replaced; what it prints is discarded.

    Args:
        kind: the kind of work, for messages and the names of threads.
        processes: the most processes.
        seconds: how long a job may take.
        memory: bytes that a process may allocate after its start (on Linux).
        waiting: how many jobs may wait; None: any number, because something else limits it.
        in_thread: run the jobs in threads of this process, without limits; for tests.
    """

    def __init__(
        self,
        kind: str,
        *,
        processes: int,
        seconds: float = 10.0,
        memory: int = 512 * MIB,
        waiting: int | None = None,
        in_thread: bool = False,
    ) -> None:
        self._kind = kind
        self._processes = processes
        self._seconds = seconds
        self._memory = memory
        self._waiting = waiting
        self._in_thread = in_thread
        self._threads = ThreadPoolExecutor(processes, thread_name_prefix=kind)
        self._lock = threading.Lock()
        self._open = 0
        self._idle: list[_Process] = []
        self._all: set[_Process] = set()
        self._closed = False

    async def run(self, work: Callable[..., T], *args: Any) -> T:
        """Run `work(*args)`; returns or raises what it does.

        Args:
            work: a function of a module; it, its arguments and its result can be pickled.

        Raises:
            JobFailed: it exceeded a limit, crashed, or raised an error that is not one of
                vox_serve's.
            QueueFull: too many jobs wait.
        """
        if self._waiting is not None and self._open >= self._processes + self._waiting:
            raise QueueFull(f"{self._open} {self._kind} jobs are open; try again later")
        with self._lock:
            self._open += 1
        job = self._threads.submit(self._do, work, args)
        job.add_done_callback(lambda _: self._ended())  # even if it is cancelled before it begins
        return await asyncio.wrap_future(job)

    def warm_up(self, work: Callable[..., object], *args: Any) -> None:
        """Start all processes and do this job in each, without waiting for it."""
        for _ in range(self._processes):
            self._threads.submit(self._do, work, args)

    def close(self) -> None:
        """End the processes and their jobs."""
        with self._lock:
            self._closed = True
            for process in self._all:
                process.kill()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _ended(self) -> None:
        with self._lock:
            self._open -= 1

    def _do(self, work: Callable[..., T], args: tuple[Any, ...]) -> T:
        if self._in_thread:
            return work(*args)
        process = self._take()
        try:
            result = process.do(work, args)
        except BaseException:
            with self._lock:
                self._all.discard(process)
            process.kill()
            raise
        with self._lock:
            self._idle.append(process)
        if isinstance(result, Raised):
            if result.error is not None:
                raise result.error
            if result.where:
                log.error("%s: %s\n%s", self._kind, result.kind, result.where)
            raise JobFailed(result.kind)
        found: T = result
        return found

    def _take(self) -> _Process:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        process = _Process(self._seconds, self._memory)
        with self._lock:
            self._all.add(process)
            if self._closed:
                process.kill()
        process.begin()
        return process


class _Process:
    """One process; used by one thread at a time."""

    def __init__(self, seconds: float, memory: int) -> None:
        self._seconds = seconds
        ours, theirs = socket.socketpair()
        _limit_waits(ours, START_SECONDS)
        # Not multiprocessing's `spawn`, which would import the server's main module.
        start = (
            f"import sys; sys.path[:] = {[str(Path(path).resolve()) for path in sys.path]}\n"
            "from vox_serve.workers.job_process import main\n"
            f"main({theirs.fileno()}, {os.getpid()}, {memory})"
        )
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", start],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                cwd="/",  # libsndfile looks for files beside the one that it reads
                start_new_session=True,
            )
        self._connection = multiprocessing.connection.Connection(ours.detach())

    def begin(self) -> None:
        """Wait until it has started.  Raises JobFailed."""
        try:
            self._connection.recv()
        except (EOFError, OSError) as error:
            why = self._why(error, START_SECONDS)
            raise JobFailed(f"its process did not start: {why}") from None
        with socket.socket(fileno=os.dup(self._connection.fileno())) as ours:
            _limit_waits(ours, self._seconds)

    def do(self, work: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """The result or a Raised.  Raises JobFailed; then this process cannot be used again."""
        try:
            self._connection.send((work, args))
            return self._connection.recv()
        except (EOFError, OSError) as error:
            raise JobFailed(self._why(error, self._seconds)) from None

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)

    def _why(self, error: Exception, seconds: float) -> str:
        if isinstance(error, BlockingIOError):
            return f"it took longer than {seconds:g} seconds"
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(1)
            return f"its process {describe_exit(code)}"
        return "its process failed"


def _limit_waits(ours: socket.socket, seconds: float) -> None:
    """Let the kernel limit each wait, so that a process that is stopped cannot hold its thread."""
    limit = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
    for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
        ours.setsockopt(socket.SOL_SOCKET, option, limit)
