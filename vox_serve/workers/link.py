"""A worker and the pipe to it.  The worker is a process, or a thread in tests."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from queue import SimpleQueue
from typing import Protocol, TypeVar

from vox_serve.config import EngineConfig
from vox_serve.logs import LogSettings, Printed
from vox_serve.messages import FromWorker, Shutdown, ToWorker
from vox_serve.workers.threads import let_threads_sleep

JOIN_SECONDS = 5.0
PIPE_BYTES = 65536
PR_SET_PDEATHSIG = 1
"""Of Linux's prctl: the signal that a process gets when its parent's thread ends."""
M = TypeVar("M")
log = logging.getLogger("vox_serve.client")


class AnyLink(Protocol):
    """Carries messages to one engine and back: a worker of this process, or a cluster."""

    @property
    def pid(self) -> int | None:
        """The worker's process id; None if it is not a process of this machine."""

    def start(self, receive: Callable[[FromWorker], None], ended: Callable[[str], None]) -> None:
        """Start, and return at once; both functions are called in the event loop."""

    def send(self, message: ToWorker) -> None:
        """Send a message; it is lost if the engine has ended."""

    def kill(self) -> None:
        """End at once."""

    async def stop(self) -> None:
        """End, gently if possible."""


class Link:
    """Starts a worker and carries messages both ways, for one life of that worker.

    Lives in the event loop; two threads do the blocking reads and writes of the pipe.  A third one
    logs what the worker prints: plugins and C libraries in it never wait for a log that nobody
    reads.  Imports no torch: the worker module is imported where the worker runs.

    Args:
        config: what the worker runs.
        log: how it logs.
        in_thread: run it in a thread of this process.
    """

    def __init__(self, config: EngineConfig, log: LogSettings, in_thread: bool) -> None:
        self._config = config
        self._log = log
        self._in_thread = in_thread
        self._outbox: SimpleQueue[ToWorker | None] = SimpleQueue()
        self._worker: BaseProcess | threading.Thread | None = None
        self.pid: int | None = None
        """The worker's process id; None if it has no process of its own."""

    def start(self, receive: Callable[[FromWorker], None], ended: Callable[[str], None]) -> None:
        """Start the worker and return at once.

        Args:
            receive: called in the event loop with each message from the worker.
            ended: called there once, with the reason, when the worker has ended.
        """
        self._loop = asyncio.get_running_loop()
        self._receive, self._ended = receive, ended
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        printed, prints = context.Pipe(duplex=False)
        if self._in_thread:
            self._worker = threading.Thread(
                target=_thread_main, args=(theirs, self._config), name="engine", daemon=True
            )
        else:
            self._worker = context.Process(
                target=_process_main,
                args=(theirs, prints, self._config, self._log, os.getpid()),
                name="vox-serve-engine",
                daemon=True,
            )
        self._worker.start()
        if isinstance(self._worker, BaseProcess):
            self.pid = self._worker.pid
            theirs.close()  # otherwise the pipe would stay open when the worker ends
        prints.close()
        self._listener = threading.Thread(
            target=self._listen, args=(printed, self._worker), name="prints", daemon=True
        )
        self._listener.start()
        self._writer = threading.Thread(
            target=self._write, args=(ours,), name="to-engine", daemon=True
        )
        self._writer.start()
        self._reader = threading.Thread(
            target=self._read, args=(ours,), name="from-engine", daemon=True
        )
        self._reader.start()

    def send(self, message: ToWorker) -> None:
        """Send a message, also before `start`; it is lost if the worker has ended."""
        self._outbox.put(message)

    def kill(self) -> None:
        """End a worker process at once; a thread ends when it next reads its messages."""
        worker = self._worker
        if isinstance(worker, BaseProcess):
            with contextlib.suppress(ValueError):  # it has just ended
                worker.kill()
        else:
            self.send(Shutdown())

    async def stop(self) -> None:
        """End the worker: ask it to, and kill the process if it does not."""
        self.send(Shutdown())
        self._outbox.put(None)
        if self._worker is None:
            return
        try:
            await asyncio.to_thread(self._reader.join, JOIN_SECONDS)
        finally:  # also when a second Ctrl-C cancels the wait
            if self._reader.is_alive():
                self.kill()
                self._reader.join(JOIN_SECONDS)

    def _write(self, connection: Connection) -> None:
        with contextlib.suppress(OSError):  # the reader notices a dead worker
            while (message := self._outbox.get()) is not None:
                connection.send(message)

    def _read(self, connection: Connection) -> None:
        reason = None
        while True:
            try:
                message = connection.recv()
            except (EOFError, OSError):
                break
            except Exception:  # a plugin may define its own errors
                log.exception("a message of the engine worker cannot be read")
                reason = "a message of the engine worker cannot be read"
                self.kill()
                break
            self._call(self._receive, message)
        self._outbox.put(None)
        self._writer.join(JOIN_SECONDS)  # it must not write to a descriptor that has a new owner
        connection.close()
        self._call(self._ended, reason or self._how_it_ended())

    def _listen(self, printed: Connection, worker: BaseProcess | threading.Thread) -> None:
        """Log what the worker prints until it ends; its children may keep the pipe open longer."""
        lines, ended = Printed(self._config.model), False
        sentinel = [worker.sentinel] if isinstance(worker, BaseProcess) else []
        with printed:
            while not ended:
                ready = wait([printed, *sentinel])
                data = os.read(printed.fileno(), PIPE_BYTES) if printed in ready else b""
                ended = not data or len(ready) > 1
                lines.write(data)
        lines.write(b"")

    def _how_it_ended(self) -> str:
        """Wait until the worker, which has closed its end of the pipe, has ended.

        Only this thread may do so: if two threads wait for a process, only one gets its exit code.
        """
        worker = self._worker
        assert worker is not None
        worker.join(JOIN_SECONDS)
        if not isinstance(worker, BaseProcess):
            return "the engine worker ended"
        if worker.exitcode is None:
            worker.kill()
            worker.join()
            reason = "the engine worker closed its pipe and hung"
        else:
            reason = f"the engine worker {describe_exit(worker.exitcode)}"
        self._worker = None
        self._listener.join(JOIN_SECONDS)
        worker.close()  # frees its descriptor at once
        return reason

    def _call(self, listener: Callable[[M], None], message: M) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(listener, message)


def describe_exit(code: int) -> str:
    """How a process ended, by its exit code as `multiprocessing` reports it."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = " (most often for want of memory)" if name == "SIGKILL" else ""
    return f"was killed by {name}{hint}"


def _process_main(
    connection: Connection, prints: Connection, config: EngineConfig, log: LogSettings, server: int
) -> None:
    # Ctrl-C and some supervisors signal the whole group.  The server handles that and lets running
    # requests end; this process ends with the pipe.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    end_with(server)
    let_threads_sleep()
    from vox_serve.workers.worker import run_process

    run_process(connection, prints, config, log)


def end_with(server: int) -> None:
    """Make the kernel kill this process when the server ends, whatever this process is doing.

    Only Linux can do this; elsewhere the worker's heartbeat notices it (`worker.Heart`).
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != server:  # it ended before the call
            os._exit(1)


def _thread_main(connection: Connection, config: EngineConfig) -> None:
    from vox_serve.workers.worker import run

    with connection:
        run(connection, config)
