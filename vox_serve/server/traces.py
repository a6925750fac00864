"""OpenTelemetry traces: reports a request's spans once, when it ends.

Needs the extra `otel`.  OpenTelemetry's environment variables (OTEL_EXPORTER_OTLP_ENDPOINT and
others) set the destination.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from typing import Any

import attrs

from vox_serve.errors import ConfigError

_tracer: Any = None
_parent: ContextVar[str | None] = ContextVar("traceparent", default=None)


@attrs.define
class Phase:
    """A phase of a request, by `time.monotonic`; `busy` is the seconds of work in it."""

    name: str
    start: float
    end: float
    busy: float


def start(exporter: Any = None) -> None:
    """Report requests from now on.

    Args:
        exporter: an OpenTelemetry span exporter; None: OTLP over HTTP.

    Raises:
        ConfigError: the extra `otel` is not installed.
    """
    global _tracer  # noqa: PLW0603  # like the log, it belongs to the process
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigError("traces need: pip install 'vox-serve-core[otel]'") from error
    os.environ.setdefault("OTEL_SERVICE_NAME", "vox_serve")
    # An unreachable collector delays the server's exit by this instead of 10 s.
    os.environ.setdefault("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter()))
    _tracer = provider.get_tracer("vox_serve")


def begin(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Attach later requests in this context to the client's trace, if the headers name one."""
    if _tracer is not None:
        given = next((value for name, value in headers if name == b"traceparent"), None)
        _parent.set(given.decode("latin-1") if given else None)


def parent() -> str | None:
    """The W3C `traceparent` that the client sent."""
    return _parent.get()


def record(
    traceparent: str | None,
    arrival: float,
    phases: Iterable[Phase],
    facts: Mapping[str, Any],
    failed: str | None,
) -> None:
    """Report a request that has just ended.

    Args:
        arrival: by `time.monotonic`.
        facts: the span's attributes; None values are left out.
        failed: the error's code, if the server is at fault.
    """
    if _tracer is None:
        return
    from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    now, wall = time.monotonic(), time.time_ns()

    def at(moment: float) -> int:
        return wall - round((now - moment) * 1e9)

    carrier = {"traceparent": traceparent} if traceparent else {}
    context = TraceContextTextMapPropagator().extract(carrier)
    known = {f"vox_serve.{name}": value for name, value in facts.items() if value is not None}
    span = _tracer.start_span(
        "speech", context, kind=SpanKind.SERVER, start_time=at(arrival), attributes=known
    )
    within = set_span_in_context(span, context)
    for phase in phases:
        busy = {"vox_serve.busy_seconds": phase.busy}
        part = _tracer.start_span(phase.name, within, start_time=at(phase.start), attributes=busy)
        part.end(at(phase.end))
    if failed is not None:
        span.set_status(Status(StatusCode.ERROR, failed))
    span.end(wall)
