"""The loop around `Engine.step`, and the process that it runs in.

The loop drains the inbox, steps and posts the outbox; when idle, it sleeps until a message comes or
a report is due.  Long texts, requests with context and new voices are prepared in a thread,
because encoding a minute of audio takes seconds and must not delay other requests.  In tests, the
same loop runs in a thread.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import TypeVar

from vox_serve.config import EngineConfig
from vox_serve.engine.calls import Calls
from vox_serve.engine.engine import Engine
from vox_serve.engine.load import load_engine
from vox_serve.engine.sequence import Sequence
from vox_serve.errors import RequestError, SequenceFailed, VoxServeError
from vox_serve.logs import LogSettings, configure, redirect_prints
from vox_serve.messages import (
    LONG_TEXT_CHARACTERS,
    Abort,
    Add,
    AddVoice,
    Alive,
    Done,
    Event,
    Failed,
    Forget,
    FromWorker,
    LoadFailed,
    MoreText,
    Ready,
    RemoveVoice,
    Shutdown,
    SpeechRequest,
    StepOutput,
    ToWorker,
)
from vox_serve.plugins import load_plugins

IDLE_SECONDS = 0.25
"""How often an idle loop reports."""
HEARTBEAT_SECONDS = 0.2
GRACE_SECONDS = 2.0
"""Seconds that the loop has to notice by itself that the server is gone."""
T = TypeVar("T")
log = logging.getLogger("vox_serve.worker")


def run_process(
    connection: Connection, prints: Connection, config: EngineConfig, settings: LogSettings
) -> None:
    """Body of the worker process; what it prints goes to `prints`."""
    with prints:
        configure(settings, redirect_prints(prints.fileno()))
    try:
        run(connection, config, own_process=True)
    except Exception:  # otherwise multiprocessing would print it outside the log
        log.critical("the worker ends", exc_info=True)
        sys.exit(1)


def run(connection: Connection, config: EngineConfig, own_process: bool = False) -> None:
    """Load the engine, report it, and serve until `Shutdown` or until the server is gone."""
    try:
        try:
            engine, info = load_engine(config, load_plugins(config.plugins))
        except VoxServeError as error:
            connection.send(LoadFailed(str(error)))
            return
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a plugin may raise anything, SystemExit too
            log.exception("the model cannot be loaded")
            connection.send(LoadFailed(f"the model cannot be loaded: {error!r}"))
            return
        if own_process:  # so that the collector never scans what stays during a frame
            gc.collect()
            gc.freeze()
        connection.send(Ready(info))
        Worker(connection, engine).serve(own_process)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        log.debug("the server is gone")


class Heart:
    """Sends heartbeats, with the model's calls in progress, from its own thread.

    Args:
        send: sends a message to the server.
        calls: the model's calls in progress.
        own_process: end the process if the server is gone and the loop does not notice it.
    """

    def __init__(self, send: Callable[[FromWorker], None], calls: Calls, own_process: bool) -> None:
        self._send = send
        self._calls = calls
        self._own_process = own_process
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heart", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _beat(self) -> None:
        try:
            while not self._stopped.wait(HEARTBEAT_SECONDS):
                self._send(Alive(self._calls.running))
        except OSError:  # the server is gone
            if self._own_process and not self._stopped.wait(GRACE_SECONDS):
                os._exit(1)


class Worker:
    """Serves one loaded engine over the pipe to the server."""

    def __init__(self, connection: Connection, engine: Engine) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._engine = engine
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="prepare")
        self._preparing: set[str] = set()
        self._finished_jobs: deque[Callable[[], None]] = deque()
        """What the loop must do with the pool's results."""
        self._wake_reader, self._wake_writer = socket.socketpair()

    def serve(self, own_process: bool = False) -> None:
        """Step while there is work; an exception from `Engine.step` ends the worker."""
        heart = Heart(self._send, self._engine.prompts.calls, own_process)
        heart.start()
        try:
            while self._drain(0.0 if self._engine.has_work else IDLE_SECONDS):
                self._send(self._engine.step())
        finally:
            heart.stop()
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._wake_reader.close()
            self._wake_writer.close()

    def _send(self, message: FromWorker) -> None:
        with self._sending:
            self._connection.send(message)

    def _drain(self, seconds: float) -> bool:
        """Handle messages, waiting up to `seconds` for the first; False after `Shutdown`."""
        while ready := wait([self._connection, self._wake_reader], seconds):
            seconds = 0.0
            if self._wake_reader in ready:
                self._wake_reader.recv(1)
                self._finished_jobs.popleft()()
            if self._connection in ready:
                message = self._connection.recv()
                if isinstance(message, Shutdown):
                    return False
                self._handle(message)
        return True

    def _handle(self, message: ToWorker) -> None:
        engine = self._engine
        if isinstance(message, Add):
            self._add(message.request)
        elif isinstance(message, MoreText):
            engine.more_text(message.request_id, message.text, message.end)
        elif isinstance(message, Abort):
            if message.request_id in self._preparing:  # released once it is prepared
                self._preparing.discard(message.request_id)
            else:
                engine.abort(message.request_id)
        elif isinstance(message, AddVoice):
            self._pool.submit(self._run_job, partial(self._add_voice, message))
        elif isinstance(message, RemoveVoice):
            self._report_voices(message.request_id, engine.prompts.voices.remove(message.name))
        elif isinstance(message, Forget):
            engine.prompts.conversations.forget(message.conversation)

    def _add(self, request: SpeechRequest) -> None:
        self._preparing.add(request.id)
        long = request.context or request.characters > LONG_TEXT_CHARACTERS
        if long and request.waits is None:  # further text must not come before the prompt
            self._pool.submit(self._run_job, partial(self._prepare_if_wanted, request))
        else:
            self._enqueue(request, self._prepare(request))

    def _run_job(self, work: Callable[[], Callable[[], None]]) -> None:
        """Body of the pool's jobs: run `work`; the loop then calls what it returns."""
        self._finished_jobs.append(work())
        with contextlib.suppress(OSError):  # the worker has ended meanwhile
            self._wake_writer.send(b".")

    def _prepare_if_wanted(self, request: SpeechRequest) -> Callable[[], None]:
        if request.id not in self._preparing:  # its client has left already
            return lambda: None
        return partial(self._enqueue, request, self._prepare(request))

    def _prepare(self, request: SpeechRequest) -> Sequence | RequestError:
        prompts = self._engine.prompts
        return _attempt(
            lambda: prompts.prepare(request), "the prompt could not be built", request.id
        )

    def _enqueue(self, request: SpeechRequest, prepared: Sequence | RequestError) -> None:
        if isinstance(prepared, Sequence) and request.id not in self._preparing:
            self._engine.prompts.release(prepared)  # aborted meanwhile
            return
        self._preparing.discard(request.id)
        if isinstance(prepared, Sequence):
            try:
                self._engine.enqueue(prepared)
            except RequestError as error:
                self._engine.prompts.release(prepared)
                prepared = error.plain()
        if isinstance(prepared, RequestError):
            self._post(Failed(request.id, prepared))

    def _add_voice(self, message: AddVoice) -> Callable[[], None]:
        prompts = self._engine.prompts

        def add() -> bool:
            prompts.require_voices()
            prompts.voices.add(message.name, message.speaker, message.segments)
            return True

        added = _attempt(add, "the voice could not be encoded", message.request_id)
        if isinstance(added, RequestError):
            return partial(self._post, Done(message.request_id, False, added))
        return partial(self._report_voices, message.request_id, added)

    def _report_voices(self, request_id: str, found: bool) -> None:
        """Runs on the loop's thread, so that the list sent last is the newest."""
        self._post(Done(request_id, found, voices=self._engine.prompts.voices.names))

    def _post(self, event: Event) -> None:
        self._send(StepOutput((event,), self._engine.stats))


def _attempt(work: Callable[[], T], problem: str, request_id: str) -> T | RequestError:
    try:
        return work()
    except RequestError as error:
        return error.plain()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the model is a plugin: it may raise anything, SystemExit too
        log.error("%s", problem, exc_info=error, extra={"request_id": request_id})
        return SequenceFailed(f"{problem} ({type(error).__name__}); see the server's log")
