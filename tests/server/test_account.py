"""The log record and the trace of a request, however it ends."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import RunningServer, until
from tests.server.conftest import Gate
from vox_serve.config import ServerConfig
from vox_serve.server import traces

StartServer = Callable[..., RunningServer]
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def logged(caplog: pytest.LogCaptureFixture, name: str) -> dict[str, Any]:
    """The fields of the only log record of a request."""

    def found() -> list[logging.LogRecord]:
        return [
            record
            for record in caplog.records
            if record.name == "vox_serve.requests" and record.__dict__.get("request_id") == name
        ]

    until(lambda: bool(found()))
    (record,) = found()
    fields: dict[str, Any] = record.__dict__["fields"]
    return {key: value for key, value in fields.items() if value is not None}


@pytest.fixture(autouse=True)
def _everything_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "vox_serve.requests")


def post(server: RunningServer, name: str, **body: object) -> int:
    headers = {"X-Request-Id": name}
    return server.http.post("/generate", json=body, headers=headers).status_code


def test_a_whole_request_is_logged_with_its_times(
    tone_server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    assert post(tone_server, "whole-1", text="10 frames", voice="hum_b") == 200
    fields = logged(caplog, "whole-1")
    seconds = {key for key in fields if key.endswith("_seconds") or key == "seconds"}
    assert seconds == {
        "audio_seconds",
        "encode_seconds",
        "first_audio_seconds",
        "prefill_seconds",
        "queue_seconds",
        "seconds",
        "send_seconds",
    }
    short = {"encode_seconds", "queue_seconds", "send_seconds"}
    assert all(0 < fields[key] <= 10 for key in seconds - short)
    assert {key: value for key, value in fields.items() if key not in seconds} == {
        "model": "tone",
        "mode": "whole",
        "outcome": "ok",
        "characters": 9,
        "voice": "own",
        "context": False,
        "conversation": False,
        "finish": "stop",
    }
    assert fields["audio_seconds"] == 0.8
    (message,) = (r.getMessage() for r in caplog.records if "whole-1" in str(r.__dict__))
    assert message.startswith("whole ok: 9 characters, 0.80 s of audio in ")
    assert "10 frames" not in str([record.__dict__ for record in caplog.records])


def test_a_stream_is_logged_with_its_conversation_and_finish(
    tone_server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    body = {"text": "10 frames", "streaming": True, "conversation": "c1", "max_seconds": 0.4}
    assert post(tone_server, "stream-1", **body) == 200
    fields = logged(caplog, "stream-1")
    assert (fields["mode"], fields["finish"], fields["conversation"]) == ("stream", "length", True)
    assert fields["voice"] == "speaker"
    page = Path(__file__).parents[2] / "docs" / "operations.md"
    (example,) = re.findall(r'^\{"time": .*"vox_serve.requests".*$', page.read_text(), re.M)
    added = {"time", "level", "logger", "message", "request_id"}
    assert set(json.loads(example)) == set(fields) | added


@pytest.mark.parametrize(
    ("text", "status", "outcome", "error"),
    [
        ("boom", 500, "error", "generation_failed"),
        ("unspeakable", 422, "invalid", "unspeakable_text"),
        ("", 400, "invalid", "invalid_request"),
    ],
)
def test_failed_requests_are_logged_with_their_error(
    tone_server: RunningServer,
    caplog: pytest.LogCaptureFixture,
    text: str,
    status: int,
    outcome: str,
    error: str,
) -> None:
    assert post(tone_server, f"bad-{status}", text=text) == status
    fields = logged(caplog, f"bad-{status}")
    assert (fields["outcome"], fields["error"]) == (outcome, error)


def test_a_client_that_leaves_is_logged(
    gate: Gate, gated_server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    gate.allow(2)
    body = {"text": "50 frames", "streaming": True}
    headers = {"X-Request-Id": "gone-1"}
    with gated_server.http.stream("POST", "/generate", json=body, headers=headers) as answer:
        next(answer.iter_raw())
    gate.open()
    fields = logged(caplog, "gone-1")
    assert (fields["outcome"], fields["error"]) == ("cancelled", "ClientGone")


def test_the_text_is_logged_only_if_allowed(
    start_server: StartServer, caplog: pytest.LogCaptureFixture
) -> None:
    server = start_server(server=ServerConfig(port=0, log_text=True))
    assert post(server, "open-1", text="7 frames. And more.") == 200
    assert logged(caplog, "open-1")["text"] == "7 frames. And more."
    assert "finish stop, text '7 frames. And more.'" in caplog.text


def test_an_unexpected_error_is_logged_with_its_request(
    tone_server: RunningServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vox_serve.logs import JSONLines, LogSettings

    lines: list[str] = []
    handler = logging.Handler()
    formatter = JSONLines(LogSettings())
    handler.emit = lambda record: lines.append(formatter.format(record))  # type: ignore[method-assign]
    logging.getLogger("vox_serve.server").addHandler(handler)
    monkeypatch.setattr("vox_serve.workers.reading.in_parts", lambda *_, **__: 1 / 0)
    try:
        assert post(tone_server, "bug-1", text="5 frames") == 500
    finally:
        logging.getLogger("vox_serve.server").removeHandler(handler)
    (line,) = lines
    assert '"request_id": "bug-1"' in line
    assert "ZeroDivisionError" in line


# Traces


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], dict[str, Any]]:
    """Wait for this many spans; returns them by name."""
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    monkeypatch.setattr(traces, "_tracer", None)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    exporter = memory.InMemorySpanExporter()
    traces.start(exporter)

    def wait(number: int) -> dict[str, Any]:
        until(lambda: len(exporter.get_finished_spans()) >= number)
        return {span.name: span for span in exporter.get_finished_spans()}

    return wait


@pytest.mark.parametrize("streaming", [True, False])
def test_the_phases_of_a_request_are_spans_of_the_clients_trace(
    spans: Callable[[int], dict[str, Any]], start_server: StartServer, streaming: bool
) -> None:
    began = time.time_ns()
    server = start_server()
    headers = {"traceparent": PARENT, "X-Request-Id": "traced-1"}
    body = {"text": "10 frames", "streaming": streaming}
    assert server.http.post("/generate", json=body, headers=headers).status_code == 200
    found = spans(6)
    assert set(found) == {"speech", "queue", "prefill", "first_audio", "encode", "send"}
    root = found.pop("speech")
    assert f"{root.context.trace_id:032x}" == PARENT.split("-")[1]
    assert f"{root.parent.span_id:016x}" == PARENT.split("-")[2]
    assert began <= root.start_time <= root.end_time <= time.time_ns()
    assert root.attributes["vox_serve.request_id"] == "traced-1"
    assert root.attributes["vox_serve.outcome"] == "ok"
    assert "vox_serve.text" not in root.attributes
    for span in found.values():
        assert span.parent.span_id == root.context.span_id
        assert root.start_time <= span.start_time <= span.end_time <= root.end_time
    assert found["queue"].end_time == found["prefill"].start_time
    assert found["prefill"].end_time - found["prefill"].start_time > 100_000  # ns
    assert found["first_audio"].start_time == root.start_time


def test_a_request_without_a_trace_starts_one(
    spans: Callable[[int], dict[str, Any]], start_server: StartServer
) -> None:
    server = start_server()
    assert post(server, "own-1", text="boom") == 500
    root = spans(1)["speech"]
    assert root.parent is None
    assert (root.status.status_code.name, root.status.description) == ("ERROR", "generation_failed")


def test_traces_without_the_extra_are_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from vox_serve.errors import ConfigError

    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigError, match=r"pip install 'vox-serve-core\[otel\]'"):
        traces.start()
