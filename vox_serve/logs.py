"""The log's format: lines for people, or one JSON object per line for machines.

Every record about a request carries the request's id: the `request_id` in `extra`, or else the id
last passed to `begin` in this context.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

import attrs

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")
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


def configure(settings: LogSettings) -> None:
    """Set up this process to log to stderr, including warnings and uncaught exceptions."""
    handler = logging.StreamHandler()
    handler.setFormatter(JSONLines(settings) if settings.format == "json" else Lines(settings))
    logging.basicConfig(level=settings.level.upper(), handlers=[handler])
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = lambda args: _log_uncaught(*args[:3])


def _log_uncaught(*raised: Any) -> None:
    logging.getLogger("vox_serve").critical("uncaught exception", exc_info=raised)


def begin(request_id: str) -> None:
    """Mark later records in this context (a task, a thread) as being about this request."""
    _request.set(request_id)


class Lines(logging.Formatter):
    """A line of text for each record, followed by an exception's traceback.

    Args:
        settings: without `text`, an exception on behalf of a request shows its type and where it
            was raised, not its message, which may quote the request.
    """

    def __init__(self, settings: LogSettings) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(about)s%(message)s")
        self._text = settings.text

    def format(self, record: logging.LogRecord) -> str:
        name = request_of(record)
        record.about = f"{name}: " if name else ""
        record.exc_text = self.raised(record)
        return super().format(record)

    def raised(self, record: logging.LogRecord) -> str | None:
        """The traceback of a record's exception; None if it has none."""
        if not record.exc_info or record.exc_info[1] is None:
            return None
        error = record.exc_info[1]
        if self._text or request_of(record) is None:
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
            "message": record.getMessage(),
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
    return f"{frames}{type(error).__qualname__} (--log-text shows its message)"


def request_of(record: logging.LogRecord) -> str | None:
    """The id of the request that a record is about."""
    return getattr(record, "request_id", None) or _request.get()
