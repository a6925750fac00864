"""Requests that /generate rejects: status, error shape, named field; others go on undisturbed."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile

from tests.conftest import RunningServer, until
from tests.server.conftest import post_raw, read_stream, value
from tests.server.routes.test_generate import as_form, clip
from vox_serve.sampling import RANGES

JSON = {"Content-Type": "application/json"}
BOUNDARY = {"Content-Type": "multipart/form-data; boundary=zz"}


def check_error(
    response: httpx.Response, status: int, param: str | None = None, code: str | None = None
) -> str:
    """Check the common shape of an error; returns its message."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert len(response.content) <= 2048
    body = response.json()
    assert body.keys() == {"error"}
    error = body["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == ("server_error" if status >= 500 else "invalid_request_error")
    assert error["param"] == param
    assert error["message"]
    assert code in (None, error["code"])
    return error["message"]


def post(server: RunningServer, **fields: Any) -> httpx.Response:
    return server.http.post("/generate", json={"text": "5", **fields})


def turn(**changes: Any) -> list[dict[str, Any]]:
    return [{"speaker": 0, "text": "a", "audio": clip(), **changes}]


def audio(samples: np.ndarray, **settings: Any) -> str:
    file = io.BytesIO()
    soundfile.write(file, samples, 8000, format="WAV", **settings)
    return base64.b64encode(file.getvalue()).decode()


@pytest.fixture(autouse=True)
def _nothing_is_left_open(tone_server: RunningServer) -> Iterator[None]:
    yield
    tone_server.wait_idle()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"colour": 1}, "colour"),
        ({"text": 5}, "text"),
        ({"text": None}, "text"),
        ({"text": ""}, "text"),
        ({"text": " \n"}, "text"),
        ({"text": "a" * 10_001}, "text"),
        ({"speaker": "0"}, "speaker"),
        ({"speaker": 1.0}, "speaker"),
        ({"speaker": True}, "speaker"),
        ({"speaker": 10**400}, "speaker"),
        ({"streaming": 1}, "streaming"),
        ({"streaming": "true"}, "streaming"),
        ({"voice": 1}, "voice"),
        ({"voice": "hum_a", "speaker": 0}, "voice"),
        ({"format": "wave"}, "format"),
        ({"format": "x" * 5000}, "format"),
        ({"format": None}, "format"),
        ({"model": 1}, "model"),
        ({"max_seconds": "1"}, "max_seconds"),
        ({"max_seconds": 0}, "max_seconds"),
        ({"max_seconds": -1}, "max_seconds"),
        ({"max_seconds": 90.5}, "max_seconds"),
        ({"context": {}}, "context"),
        ({"context": "[]"}, "context"),
        ({"context": [1]}, "context"),
        ({"context": [{}]}, "context"),
        ({"context": turn(colour=1)}, "context"),
        ({"context": turn(speaker="0")}, "context"),
        ({"context": turn(speaker=-1)}, "context"),
        ({"context": turn(speaker=1000)}, "context"),
        ({"context": turn(speaker=10**400)}, "context"),
        ({"context": turn(text=" ")}, "context"),
        ({"context": turn(audio="%%%")}, "context"),
        ({"context": turn(audio="")}, "context"),
        ({"context": turn(audio=base64.b64encode(b"no sound").decode())}, "context"),
        ({"context": turn(audio=audio(np.zeros(0)))}, "context"),
        ({"context": turn(audio=audio(np.full(9, np.nan), subtype="FLOAT"))}, "context"),
        ({"context": turn(audio=clip(16.1))}, "context"),
        ({"context": turn(audio=clip(9)) * 2}, "context"),
        ({"context": turn() * 33}, "context"),
    ],
    ids=lambda case: json.dumps(case)[:40],
)
def test_a_bad_field_is_named(
    tone_server: RunningServer, fields: dict[str, Any], param: str
) -> None:
    message = check_error(post(tone_server, **fields), 400, param, "invalid_request")
    assert param in message
    assert "0x" not in message, "it shows a memory address"


def test_a_parameter_that_the_model_does_not_have_is_named(tone_server: RunningServer) -> None:
    for asked in ({"steps": 2}, {"steps": 2.5}, {"steps": "2"}):
        message = check_error(post(tone_server, parameters=asked), 400, "steps", "invalid_request")
        assert "no parameter steps; it has seed, temperature" in message
    check_error(post(tone_server, parameters={"top_k": 2}), 400, "parameters", "invalid_request")
    for odd in (None, [2], {"a": 1}, "x" * 10_001):
        check_error(post(tone_server, parameters={"steps": odd}), 400, "parameters")
    many = {f"p{number}": 1 for number in range(33)}
    message = check_error(post(tone_server, parameters=many), 400, "parameters", "invalid_request")
    assert "at most 32" in message


def beyond(name: str) -> list[object]:
    """Values of the wrong type, and values outside both ends of the range."""
    allowed = RANGES[name]
    step = 1 if allowed.kind is int else 0.001
    wrong = ["1", "1.5", True, [], {}, 10**400, allowed.low - step, allowed.high + step]
    return [*wrong, 0.5] if allowed.kind is int else wrong


@pytest.mark.parametrize(
    ("name", "bad"),
    [(name, bad) for name in RANGES for bad in beyond(name)],
    ids=lambda case: str(case)[:20],
)
def test_a_bad_sampling_parameter_is_named(
    tone_server: RunningServer, name: str, bad: object
) -> None:
    assert name in check_error(post(tone_server, **{name: bad}), 400, name, "invalid_request")


@pytest.mark.parametrize("name", RANGES)
def test_the_ends_of_a_range_are_allowed(tone_server: RunningServer, name: str) -> None:
    allowed = RANGES[name]
    for end in (allowed.low, allowed.high):
        assert post(tone_server, **{name: allowed.kind(end)}).status_code == 200


@pytest.mark.parametrize("name", [n for n in RANGES if RANGES[n].kind is float] + ["max_seconds"])
def test_form_numbers_must_be_finite(tone_server: RunningServer, name: str) -> None:
    for bad in ("nan", "inf", "-inf", "1e999", "one", ""):
        form = as_form({"text": "5", name: bad})
        check_error(tone_server.http.post("/generate", files=form), 400, name, "invalid_request")


@pytest.mark.parametrize(
    ("content", "param"),
    [
        (b"", None),
        (b"no json", None),
        (b"[]", None),
        (b"null", None),
        (b'"text"', None),
        (b"{}", "text"),
        (b'{"text": "5"', None),
        (b'{"text": "5"} {}', None),
        (b'{"text": "\xff\xfe"}', None),
        (b'{"text": "5", "temperature": NaN}', None),
        (b'{"text": "5", "temperature": Infinity}', None),
        (b'{"text": "5", "temperature": 1e999}', "temperature"),
        (b"[" * 100_000, None),
        (b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "text"),
        (b'{"context": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "context"),
        (b'{"colour": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "colour"),
    ],
    ids=lambda case: str(case)[:30],
)
def test_bad_json_is_refused(tone_server: RunningServer, content: bytes, param: str | None) -> None:
    response = tone_server.http.post("/generate", content=content, headers=JSON)
    check_error(response, 400, param, "invalid_request")


@pytest.mark.parametrize(
    "fields",
    [
        {"text": "5", "x" * 30_000: 1},
        {"text": "5", "\x01" * 3000: 1},
        {"text": "5", "format": "\x01" * 3000},
        {"text": "5", "model": "\N{SLIGHTLY SMILING FACE}" * 3000},
        {"text": "5", "voice": "\N{SLIGHTLY SMILING FACE}" * 3000},
    ],
    ids=["name", "control name", "format", "model", "voice"],
)
def test_quoted_input_in_an_error_is_shortened(
    tone_server: RunningServer, fields: dict[str, Any]
) -> None:
    content = json.dumps(fields, ensure_ascii=False).encode()
    response = tone_server.http.post("/generate", content=content, headers=JSON)
    assert response.status_code in (400, 404)
    assert len(response.content) <= 2048
    assert response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("form", "param"),
    [
        ([("colour", (None, "1"))], "colour"),
        ([("speaker", (None, "0")), ("speaker", (None, "1"))], "speaker"),
        ([("context", ("a.wav", b"RIFF"))], "context"),
        ([("context", (None, "["))], "context"),
        ([("context", (None, "{}"))], "context"),
        ([("context", (None, "[" * 100_000))], None),
        ([("streaming", (None, "maybe"))], "streaming"),
        ([("top_k", (None, "1" * 400))], "top_k"),
        ([("voice", (None, b"\xff\xfe"))], None),
        ([(f"field {n}", (None, "1")) for n in range(2000)], None),
    ],
    ids=lambda case: str(case)[:40],
)
def test_a_bad_form_is_refused(
    tone_server: RunningServer, form: list[Any], param: str | None
) -> None:
    form = [("text", (None, "5")), *form]
    check_error(tone_server.http.post("/generate", files=form), 400, param, "invalid_request")


def test_an_uploaded_file_is_not_a_field_and_is_closed(tone_server: RunningServer) -> None:
    """A large file is stored temporarily, and would cause a ResourceWarning if left open."""
    for _ in range(3):
        files = {"text": ("a.txt", b"x" * 2 * 2**20)}
        check_error(tone_server.http.post("/generate", files=files), 400, "text")


@pytest.mark.parametrize("charset", ["no-such", "hex", "idna", "utf-16"])
def test_a_bad_charset_of_a_part_is_refused(tone_server: RunningServer, charset: str) -> None:
    content = (
        b'--zz\r\nContent-Disposition: form-data; name="text"\r\n'
        b"Content-Type: text/plain; charset=" + charset.encode() + b"\r\n\r\n\xff\xff\xff\r\n--zz--"
    )
    response = tone_server.http.post("/generate", content=content, headers=BOUNDARY)
    check_error(response, 400, None, "invalid_request")


@pytest.mark.parametrize(
    "headers", [BOUNDARY, {"Content-Type": "multipart/form-data"}], ids=["body", "boundary"]
)
def test_a_body_that_is_not_multipart_is_refused(
    tone_server: RunningServer, headers: dict[str, str]
) -> None:
    response = tone_server.http.post("/generate", content=b'{"text": "5"}', headers=headers)
    check_error(response, 400, None, "invalid_request")


@pytest.mark.parametrize(
    ("fields", "status", "param", "code"),
    [
        ({"voice": "nobody"}, 404, "voice", "not_found"),
        ({"voice": "../etc"}, 404, "voice", "not_found"),
        ({"speaker": 7}, 404, "speaker", "not_found"),
        ({"speaker": -1}, 404, "speaker", "not_found"),
        ({"model": "other"}, 404, "model", "not_found"),
        ({"text": "unspeakable"}, 422, "text", "unspeakable_text"),
        ({"max_seconds": 20}, 422, "max_seconds", "prompt_too_long"),
        ({"context": turn(audio=clip(15.9))}, 422, "context", "prompt_too_long"),
        ({"text": "unpromptable"}, 500, None, "generation_failed"),
        ({"text": "unprefillable"}, 500, None, "generation_failed"),
    ],
    ids=lambda case: json.dumps(case)[:30],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_refusals_of_the_engine_have_their_status(
    tone_server: RunningServer,
    fields: dict[str, Any],
    status: int,
    param: str | None,
    code: str,
    streaming: bool,
) -> None:
    check_error(post(tone_server, streaming=streaming, **fields), status, param, code)


@pytest.mark.parametrize("word", ["nan", "boom"])
def test_a_whole_answer_that_fails_late_is_not_a_200(tone_server: RunningServer, word: str) -> None:
    """A stream ends early instead: see test_life.py."""
    check_error(post(tone_server, text=f"{word} 41"), 500, None, "generation_failed")


def test_an_internal_error_shows_no_internals(tone_server: RunningServer) -> None:
    """A plugin's exception may contain paths and prompts, so only the log has its text."""
    message = check_error(post(tone_server, text="unpromptable"), 500)
    assert "a bug in prompt" not in message


def test_unknown_routes_and_methods_are_refused(tone_server: RunningServer) -> None:
    http = tone_server.http
    check_error(http.get("/nowhere"), 404, code="not_found")
    check_error(http.get("/generate"), 405, code="method_not_allowed")
    check_error(http.post("/health"), 405, code="method_not_allowed")


def test_a_body_that_is_too_large_is_refused(tone_server: RunningServer) -> None:
    limit = tone_server.client.server.max_body_bytes
    invalid = value(tone_server, "requests_total", mode="whole", outcome="invalid")
    announced = tone_server.http.post("/generate", content=b" " * (limit + 1), headers=JSON)
    check_error(announced, 413)
    pieces = (b" " * 2**20 for _ in range(limit // 2**20 + 1))
    check_error(tone_server.http.post("/generate", content=pieces, headers=JSON), 413)
    counted = value(tone_server, "requests_total", mode="whole", outcome="invalid") - invalid
    assert counted == 2


def test_refused_requests_are_counted_but_not_as_errors(tone_server: RunningServer) -> None:
    """An alert on errors must not fire because a client sends invalid requests."""

    def counts() -> tuple[float, ...]:
        totals = (
            value(tone_server, "requests_total", mode="stream", outcome=outcome)
            for outcome in ("invalid", "error", "rejected")
        )
        return (*totals, value(tone_server, "finished_total", reason="error"))

    before = counts()
    for fields in ({"voice": "nobody"}, {"text": "unspeakable"}, {"format": "wave"}):
        assert post(tone_server, streaming=True, **fields).status_code >= 400
    assert [now - then for now, then in zip(counts(), before, strict=True)] == [3, 0, 0, 0]


def test_bad_requests_do_not_disturb_others(
    start_server: Callable[..., RunningServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TONE_DELAY", "0.01")
    server = start_server()
    alone = post(server, text="90 frames").content
    with post_raw(server, text="90 frames", streaming=True, format="pcm") as connection:
        until(lambda: server.client.stats.running == 1)
        for bad in ({"text": "unspeakable"}, {"voice": "z"}, {"top_k": -1}, {"text": "boom"}):
            assert post(server, **bad).status_code >= 400
        assert read_stream(connection) == alone[44:]
    server.wait_idle(1)
    slots = server.client.info.num_slots
    holders = [post_raw(server, text="50 frames") for _ in range(slots)]
    until(lambda: server.client.stats.running == slots)
    for holder in holders:
        assert holder.recv(100).startswith(b"HTTP/1.1 200"), "a slot was lost"
        holder.close()
