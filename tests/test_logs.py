"""Log lines for people and machines: the request that they belong to, and what they keep secret."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
from typing import Any

import pytest

from vox_serve import logs
from vox_serve.errors import ConfigError, InvalidRequest
from vox_serve.logs import JSONLines, Lines, LogSettings, RateLimit


def record(message: str = "hello", error: BaseException | None = None, **extra: Any):
    raised = (type(error), error, error.__traceback__) if error else None
    made = logging.LogRecord("vox_serve.x", logging.INFO, __file__, 1, message, (), raised)
    made.__dict__.update(extra)
    return made


def as_json(made: logging.LogRecord, **settings: Any) -> dict[str, Any]:
    line = JSONLines(LogSettings(**settings)).format(made)
    assert "\n" not in line
    found: dict[str, Any] = json.loads(line)
    return found


def caught() -> BaseException:
    secret = "".join(["se", "cret"])  # tracebacks quote the line that raises
    try:
        try:
            int(secret)
        except ValueError as error:
            raise RuntimeError(secret) from error
    except RuntimeError as error:
        return error


def test_a_record_is_an_object_with_its_fields() -> None:
    found = as_json(record(fields={"mode": "whole", "seconds": 0.5, "finish": None}))
    assert found.pop("time").endswith("Z")
    assert found == {
        "level": "info",
        "logger": "vox_serve.x",
        "message": "hello",
        "mode": "whole",
        "seconds": 0.5,
    }


@pytest.mark.parametrize("kind", [Lines, JSONLines])
def test_a_record_carries_the_request_that_it_names(kind: type[Lines]) -> None:
    assert "a-b-c" in kind(LogSettings()).format(record(request_id="a-b-c"))


def test_a_record_carries_the_request_of_its_context_and_no_other() -> None:
    async def one(name: str) -> str | None:
        logs.begin(name)
        await asyncio.sleep(0)
        return logs.request_of(record())

    async def several() -> list[str | None]:
        return await asyncio.gather(one("a"), one("b"))

    assert asyncio.run(several()) == ["a", "b"]
    assert logs.request_of(record()) is None


@pytest.mark.parametrize("kind", [Lines, JSONLines])
def test_an_exception_of_a_request_shows_its_place_but_not_its_message(kind: type[Lines]) -> None:
    made = record("it failed", caught(), request_id="a")
    line = kind(LogSettings()).format(made)
    assert "secret" not in line.replace("int(secret)", "").replace("RuntimeError(secret)", "")
    assert "RuntimeError (--log-text shows its message)" in line
    assert "ValueError (--log-text shows its message)" in line
    assert "in caught" in line
    shown = kind(LogSettings(text=True)).format(record("it failed", caught(), request_id="a"))
    assert "RuntimeError: secret" in shown


def test_an_exception_outside_a_request_shows_no_message_either() -> None:
    assert "RuntimeError: secret" not in as_json(record("it failed", caught()))["traceback"]
    shown = as_json(record("it failed", caught()), text=True)
    assert "RuntimeError: secret" in shown["traceback"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device", "/secret"), "OSError: No space left on device"),
        (ConfigError("a flag is wrong"), "ConfigError: a flag is wrong"),
        (InvalidRequest("secret"), "InvalidRequest (--log-text shows its message)"),
    ],
)
def test_an_error_that_quotes_no_request_shows_its_message(error: Exception, message: str) -> None:
    traceback = as_json(record("it failed", error))["traceback"]
    assert traceback.endswith(message)
    assert "secret" not in traceback


@pytest.mark.parametrize("kind", [Lines, JSONLines])
def test_lines_of_asyncio_do_not_quote_exceptions(kind: type[Lines]) -> None:
    made = record("Task exception was never retrieved\nfuture: <Task exception=E('secret')>")
    made.name = "asyncio"
    assert "secret" not in kind(LogSettings()).format(made)
    assert "secret" in kind(LogSettings(text=True)).format(made)


def test_lines_of_one_kind_are_limited_and_counted() -> None:
    now = 0.0
    limit = RateLimit(burst=3, seconds=10.0, clock=lambda: now)
    noise = [record("noise") for _ in range(100)]
    assert sum(map(limit.filter, noise)) == 3
    other = record("another place")
    other.lineno = 2
    assert limit.filter(other)
    now = 10.0
    last = record("noise of %s", args=("x",))
    assert limit.filter(last)
    assert last.getMessage() == "noise of x (97 more like this were left out)"
    requests = [record() for _ in range(100)]
    for made in requests:
        made.name = "vox_serve.requests"
    assert sum(map(limit.filter, requests)) == 100, "lines of requests are limited"


def test_a_process_logs_in_the_configured_format() -> None:
    script = """
import logging, threading, warnings
from vox_serve import logs
logs.configure(logs.LogSettings("warning", "json"))
logging.getLogger("vox_serve.x").info("not shown")
logging.getLogger("vox_serve.x").warning("shown")
warnings.warn("mind the gap")
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()
raise KeyError("end")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], check=False, stderr=subprocess.PIPE, text=True
    )
    assert done.returncode == 1
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [(line["level"], line["logger"]) for line in lines] == [
        ("warning", "vox_serve.x"),
        ("warning", "py.warnings"),
        ("critical", "vox_serve"),
        ("critical", "vox_serve"),
    ]
    assert "ZeroDivisionError" in lines[2]["traceback"]
    assert lines[3]["traceback"].endswith("KeyError (--log-text shows its message)")


def test_an_unread_log_does_not_block_the_process() -> None:
    """When the pipe is full, lines are dropped and counted, and the process can end."""
    script = """
import logging, sys
from vox_serve import logs
logs.Unhurried.WAITING = 100
logging.basicConfig(level="INFO", handlers=[logs.Unhurried(2)])
for number in range(5000):
    logging.getLogger("vox_serve.x").info("line %d of some length: %s", number, "x" * 100)
print("done", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "done\n", "it waited for its reader"
        _, errors = process.communicate("", 20)
    lines = errors.splitlines()
    notices = [line for line in lines if "log lines were dropped" in line]
    dropped = sum(int(line.partition(" log lines")[0].rpartition(":")[2]) for line in notices)
    assert dropped > 0
    assert dropped + len(lines) - len(notices) == 5000


def test_a_process_with_an_unread_log_can_end() -> None:
    script = """
import logging
from vox_serve import logs
logs.Unhurried.LAST_SECONDS = 0.2
logging.basicConfig(level="INFO", handlers=[logs.Unhurried(2)])
for _ in range(20_000):
    logging.getLogger("vox_serve.x").info("x" * 100)
"""
    with subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE) as process:
        assert process.wait(20) == 0


def test_the_output_of_another_process_becomes_log_lines(caplog: pytest.LogCaptureFixture) -> None:
    printed = logs.Printed("tone")
    with caplog.at_level("INFO"):
        for piece in (b"one\ntw", b"o\r\n\n\xc3", b"\xa4\n", b"x" * 5000, b"\xff", b""):
            printed.write(piece)
    lines = [record.getMessage() for record in caplog.records]
    assert lines[:3] == ["one", "two\r", "\xe4"]
    assert "".join(lines[3:]) == "x" * 5000 + "\ufffd"
    assert max(map(len, lines)) == logs.Printed.LONGEST
    assert {record.fields["model"] for record in caplog.records} == {"tone"}
