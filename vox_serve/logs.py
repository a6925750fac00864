"""Logging: lines of text for people, or one JSON object per line for machines.

Every record about a request carries the request's id: `request_id` in `extra`, or else the id last
passed to `begin` in this context.
"""

from __future__ import annotations

import atexit
import codecs
import contextlib
import io
import json
import logging
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

import attrs

from vox_serve.errors import RequestError, VoxServeError

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")
REQUESTS = "vox_serve.requests"
"""The logger that writes one line about each request."""
log = logging.getLogger("vox_serve.logs")
_request: ContextVar[str | None] = ContextVar("request", default=None)


@attrs.frozen
class LogSettings:
    """How a process logs.

    Args:
        level: one of LEVELS.
        format: one of FORMATS.
        text: whether text from clients may be logged.
    """

    level: str = "info"
    format: str = "text"
    text: bool = False


STDOUT, STDERR = 1, 2
"""The file descriptors; `sys.stderr` may be replaced by something without one."""


def configure(settings: LogSettings, descriptor: int = STDERR) -> None:
    """Set up this process to log to a descriptor, including warnings and uncaught exceptions."""
    handler = Unhurried(descriptor)
    handler.addFilter(RateLimit())
    handler.setFormatter(JSONLines(settings) if settings.format == "json" else Lines(settings))
    logging.basicConfig(level=settings.level.upper(), handlers=[handler])
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = lambda args: _log_uncaught(*args[:3])


class Unhurried(logging.Handler):
    """Writes lines in a thread, so that a log reader that has stopped reading delays nothing.

    Up to `WAITING` lines wait for the reader; further lines are dropped, and their number is logged
    once there is room again.  At exit, waiting lines have `LAST_SECONDS` to be written.

    Args:
        descriptor: file descriptor to write to.  It is written directly, because the lock of a
            blocked Python stream would delay the exit.
    """

    WAITING = 10_000
    LAST_SECONDS = 1.0

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._lines: queue.Queue[str | None] = queue.Queue(self.WAITING)
        self._dropped = 0
        self._thread: threading.Thread | None = None

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001  # like logging's own handlers
            self.handleError(record)
            return
        if self._thread is None:  # started late, so that a process can fork before it logs
            self._thread = threading.Thread(target=self._write, name="log", daemon=True)
            self._thread.start()
            atexit.register(self._finish)
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._dropped += 1

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            self._put(line)
            if self._dropped:
                with self.lock or contextlib.nullcontext():  # `emit` holds it while counting
                    lost, self._dropped = self._dropped, 0
                notice = "%d log lines were dropped: nobody read them in time"
                record = log.makeRecord(log.name, logging.WARNING, "", 0, notice, (lost,), None)
                self._put(self.format(record))

    def _put(self, line: str) -> None:
        rest = f"{line}\n".encode(errors="backslashreplace")
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:  # something made it non-blocking
                time.sleep(0.01)
            except OSError:  # the reader is gone
                return

    def _finish(self) -> None:
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=self.LAST_SECONDS)
        if self._thread is not None:
            self._thread.join(self.LAST_SECONDS)


class Printed:
    """Turns the output of another process into log lines.

    Args:
        model: which the process runs.
    """

    LONGEST = 2000
    """Characters of a line; longer ones are cut into several."""

    def __init__(self, model: str) -> None:
        self._log = logging.getLogger("vox_serve.printed")
        self._extra = {"fields": {"model": model}}
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""

    def write(self, data: bytes) -> None:
        """Log all lines that are complete; no data: also the last one."""
        text = self._rest + self._decoder.decode(data, final=not data)
        *lines, self._rest = text.split("\n")
        if len(self._rest) > self.LONGEST or not data:
            lines, self._rest = [*lines, self._rest], ""
        for line in lines:
            for start in range(0, len(line.rstrip()), self.LONGEST):
                self._log.info("%s", line[start : start + self.LONGEST], extra=self._extra)


def redirect_prints(to: int) -> int:
    """Redirect what this process prints, C code included, except to a terminal.

    Args:
        to: the descriptor that stdout and stderr become.

    Returns:
        a descriptor of the former stderr, for the log.
    """
    former = os.dup(STDERR)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # it may be replaced
            stream.flush()
    for descriptor in (STDOUT, STDERR):
        if not os.isatty(descriptor):
            os.dup2(to, descriptor)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    return former


def _log_uncaught(*raised: Any) -> None:
    logging.getLogger("vox_serve").critical("uncaught exception", exc_info=raised)


def begin(request_id: str) -> None:
    """Attach this request's id to later records in this context (a task or thread)."""
    _request.set(request_id)


class RateLimit(logging.Filter):
    """Limits the rate of each kind of line, so that clients cannot fill the disk.

    The lines from one logging statement are one kind.  The next line that passes says how many were
    left out before it.  The one line about each request is not limited.

    Args:
        burst: how many lines may come at once.
        seconds: time until one more line may pass.
        clock: returns seconds; for tests.
    """

    def __init__(
        self,
        burst: int = 20,
        seconds: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._burst = burst
        self._seconds = seconds
        self._clock = clock
        self._kinds: dict[tuple[str, int], _Kind] = {}
        self._lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name == REQUESTS and record.levelno <= logging.INFO:
            return True
        with self._lock:
            now = self._clock()
            kind = self._kinds.setdefault((record.pathname, record.lineno), _Kind(self._burst, now))
            kind.room = min(self._burst, kind.room + (now - kind.seen) / self._seconds)
            kind.seen = now
            if kind.room < 1:
                kind.left_out += 1
                return False
            kind.room -= 1
            left_out, kind.left_out = kind.left_out, 0
        if left_out:
            record.msg = f"{record.getMessage()} ({left_out} more like this were left out)"
            record.args = None
        return True


@attrs.define
class _Kind:
    room: float
    seen: float
    left_out: int = 0


class Lines(logging.Formatter):
    """A line of text for each record, followed by an exception's traceback.

    Args:
        settings: without `text`, an exception shows its type and where it was raised, but not its
            message, which may quote a client's request.
    """

    def __init__(self, settings: LogSettings) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(about)s%(message)s")
        self._text = settings.text

    def format(self, record: logging.LogRecord) -> str:
        name = request_of(record)
        record.about = f"{name}: " if name else ""
        record.exc_text = self.raised(record)
        return super().format(record)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        record.message = self.said(record)
        return super().formatMessage(record)

    def said(self, record: logging.LogRecord) -> str:
        """A record's message."""
        message = record.getMessage()
        if record.name == "asyncio" and not self._text:
            return message.partition("\n")[0]  # the rest quotes exceptions
        return message

    def raised(self, record: logging.LogRecord) -> str | None:
        """The traceback of a record's exception; None if it has none."""
        if not record.exc_info or record.exc_info[1] is None:
            return None
        error = record.exc_info[1]
        if self._text:
            return "".join(traceback.format_exception(error)).rstrip()
        return "\n".join(reversed([_without_message(one) for one in _chain(error)]))


class JSONLines(Lines):
    """An object per record: time, level, logger, message and the `fields` of `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        fields: Mapping[str, Any] = getattr(record, "fields", {})
        when = datetime.fromtimestamp(record.created, UTC)
        found = {
            "time": when.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": self.said(record),
            "request_id": request_of(record),
            **fields,
            "traceback": self.raised(record),
        }
        kept = {name: value for name, value in found.items() if value is not None}
        return json.dumps(kept, ensure_ascii=False, default=str)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _without_message(error: BaseException) -> str:
    frames = "".join(traceback.format_tb(error.__traceback__))
    if isinstance(error, OSError) and error.strerror:
        return f"{frames}{type(error).__qualname__}: {error.strerror}"  # the system's message
    if isinstance(error, VoxServeError) and not isinstance(error, RequestError):
        return f"{frames}{type(error).__qualname__}: {error}"  # about settings and files
    return f"{frames}{type(error).__qualname__} (--log-text shows its message)"


def request_of(record: logging.LogRecord) -> str | None:
    """The id of the request that a record is about."""
    return getattr(record, "request_id", None) or _request.get()
