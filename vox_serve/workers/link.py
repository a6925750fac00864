"""A worker and the pipe to it.  The worker is a process, or a thread in tests."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from queue import SimpleQueue
from typing import TypeVar

from vox_serve.config import EngineConfig
from vox_serve.logs import LogSettings
from vox_serve.messages import FromWorker, Shutdown, ToWorker
from vox_serve.workers.threads import let_threads_sleep

JOIN_SECONDS = 5.0
M = TypeVar("M")
log = logging.getLogger("vox_serve.client")


class Link:
    """Starts a worker and carries messages both ways.

    Lives in the event loop; two threads do the blocking reads and writes of the pipe.  Imports no
    torch: the worker module is imported where the worker runs.

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
        if self._in_thread:
            self._worker = threading.Thread(
                target=_thread_main, args=(theirs, self._config), name="engine", daemon=True
            )
        else:
            self._worker = context.Process(
                target=_process_main,
                args=(theirs, self._config, self._log),
                name="vox-serve-engine",
                daemon=True,
            )
        self._worker.start()
        if not self._in_thread:
            theirs.close()  # otherwise the pipe would stay open when the worker ends
        for body in (self._read, self._write):
            threading.Thread(target=body, args=(ours,), name=body.__name__, daemon=True).start()

    @property
    def pid(self) -> int | None:
        """The worker's process id; None if it has no process of its own."""
        return self._worker.pid if isinstance(self._worker, BaseProcess) else None

    def send(self, message: ToWorker) -> None:
        """Send a message; it is lost if the worker has ended."""
        self._outbox.put(message)

    def kill(self) -> None:
        """End a worker process at once."""
        if isinstance(self._worker, BaseProcess):
            self._worker.kill()

    async def stop(self) -> None:
        """End the worker: ask it to, and kill the process if it does not."""
        self.send(Shutdown())
        self._outbox.put(None)
        worker = self._worker
        if worker is None:
            return
        try:
            await asyncio.to_thread(worker.join, JOIN_SECONDS)
        finally:  # also when a second Ctrl-C cancels the wait
            if isinstance(worker, BaseProcess) and worker.is_alive():
                worker.kill()
                worker.join(JOIN_SECONDS)

    def _write(self, connection: Connection) -> None:
        with contextlib.suppress(OSError):  # a dead worker is noticed by the reader
            while (message := self._outbox.get()) is not None:
                connection.send(message)

    def _read(self, connection: Connection) -> None:
        reason = "the engine worker ended"
        while True:
            try:
                message = connection.recv()
            except (EOFError, OSError):
                break
            except Exception:  # a plugin may define errors of its own
                log.exception("a message of the engine worker cannot be read")
                reason = "a message of the engine worker cannot be read"
                break
            self._call(self._receive, message)
        self._call(self._ended, reason)

    def _call(self, listener: Callable[[M], None], message: M) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(listener, message)


def _process_main(connection: Connection, config: EngineConfig, log: LogSettings) -> None:
    # Ctrl-C and some supervisors signal the whole group.  The server handles that and lets running
    # requests end; this process ends with the pipe.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    let_threads_sleep()
    from vox_serve.workers.worker import run_process

    run_process(connection, config, log)


def _thread_main(connection: Connection, config: EngineConfig) -> None:
    from vox_serve.workers.worker import run

    with connection:
        run(connection, config)
