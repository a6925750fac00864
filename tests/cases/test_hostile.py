"""Hostile requests over HTTP, the WebSocket and `say` end in speech or a clear error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.cases.conftest import Reader
from tests.cases.hostile import BODIES, SOUNDS, sound, texts, turn
from tests.conftest import RunningServer
from tests.server.test_bad_requests import check_error
from vox_serve.sampling import RANGES

TEXTS = texts(300)
REFUSALS = ("invalid_request", "unspeakable_text", "nothing_to_speak")
JSON = {"Content-Type": "application/json"}


def last_event(reader: Reader, text: str) -> str:
    """The type of a session's last event, or the reason with which the server closed it."""
    try:
        *_, last = reader.by_websocket(text)
    except ConnectionClosed as closed:
        return closed.rcvd.reason if closed.rcvd else "nothing"
    return last["type"] if isinstance(last, dict) else "audio"


@pytest.mark.parametrize("name", TEXTS)
def test_a_hostile_text_is_spoken_or_refused(
    reader: Reader, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    text = TEXTS[name]
    answer = reader.by_http(text)
    if answer.status_code != 200:
        check_error(answer, answer.status_code, "text")
        assert answer.json()["error"]["code"] in REFUSALS
    assert last_event(reader, text) in ("done", *REFUSALS)
    status = reader.by_say(text.replace("\0", ""), tmp_path / "out.wav")
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    assert status == (0 if answer.status_code == 200 else 2), printed.err


@pytest.mark.parametrize("name", BODIES)
def test_a_hostile_body_is_answered(tone_server: RunningServer, name: str) -> None:
    answer = tone_server.http.post("/generate", content=BODIES[name], headers=JSON)
    assert answer.status_code in (200, 400)
    if answer.status_code == 400:
        assert answer.json()["error"]["code"] == "invalid_request"
        assert len(answer.content) <= 2048


@pytest.mark.parametrize("kind", SOUNDS)
def test_a_hostile_sound_is_refused_by_name(tone_server: RunningServer, kind: str) -> None:
    data = sound(kind)
    form = {"name": (None, "hostile"), "text": (None, "a"), "audio": ("a.wav", data)}
    answer = tone_server.http.post("/v1/audio/voices", files=form)
    if kind == "claims 4 GiB":  # as a streamed file does; all of its sound is there
        assert tone_server.http.delete("/v1/audio/voices/hostile").status_code in (200, 204)
    else:
        check_error(answer, 400, "audio", "invalid_request")
    body = {"text": "5", "context": [turn(data)]}
    answer = tone_server.http.post("/generate", json=body)
    assert answer.status_code == 200 if kind == "claims 4 GiB" else answer.status_code in (400, 422)


@pytest.mark.parametrize("message", [*map(bytes.decode, [BODIES["deep"][:50_000], BODIES["twice"]]),
                                     '{"type": "text", "text": NaN}', "null", "", "[" * 50_000,
                                     b"\xff" * 1000])  # fmt: skip
def test_a_hostile_message_is_answered(tone_server: RunningServer, message: str | bytes) -> None:
    with connect(tone_server.url.replace("http", "ws") + "/v1/audio/stream") as websocket:
        websocket.send('{"type": "start"}')
        websocket.send(message)
        received = []
        try:
            websocket.send('{"type": "end"}')
            received = [json.loads(m)["type"] for m in websocket if isinstance(m, str)]
        except ConnectionClosed:
            pass
        assert "error" in received or websocket.close_code not in (None, 1000)


NUMBERS = ["speaker", "max_seconds", "sample_rate", *RANGES]
TOO_LARGE = ("1e100000000", "-1e400", "9" * 400)


def check_number(message: str, name: str) -> None:
    """The message names the field and its limits, and the number is outside those limits."""
    assert message.startswith(f"{name} must be ")
    assert "or more" not in message
    assert not message.startswith("max_seconds must be more than 0") or "too large" in message


@pytest.mark.parametrize("number", TOO_LARGE)
@pytest.mark.parametrize("name", [*NUMBERS, "speed"])
def test_a_number_that_no_float_can_hold_is_refused_with_its_limits(
    tone_server: RunningServer, name: str, number: str
) -> None:
    if name != "speed":
        content = f'{{"text": "5", "{name}": {number}}}'
        answer = tone_server.http.post("/generate", content=content, headers=JSON)
        check_number(check_error(answer, 400, name, "invalid_request"), name)
        with connect(tone_server.url.replace("http", "ws") + "/v1/audio/stream") as websocket:
            websocket.send(f'{{"type": "start", "{name}": {number}}}')
            refusal = json.loads(websocket.recv())
            assert (refusal["type"], refusal["error"]["param"]) == ("error", name)
            check_number(refusal["error"]["message"], name)
    if name != "speaker":
        content = f'{{"model": "tone", "input": "5", "voice": "alloy", "{name}": {number}}}'
        answer = tone_server.http.post("/v1/audio/speech", content=content, headers=JSON)
        check_number(check_error(answer, 400, name, "invalid_request"), name)


@pytest.mark.parametrize("name", [*NUMBERS, "speed"])
def test_a_number_in_a_form_or_an_address_that_no_float_can_hold_is_refused(
    tone_server: RunningServer, name: str
) -> None:
    if name != "speed":
        form = {"text": (None, "5"), name: (None, "1e400")}
        answer = tone_server.http.post("/generate", files=form)
        check_error(answer, 400, name, "invalid_request")
    if name != "speaker":
        answer = tone_server.http.get("/v1/audio/speech", params={"input": "5", name: "1e400"})
        check_error(answer, 400, name, "invalid_request")


@pytest.mark.parametrize("body", ['{"context": [{"speaker": %s, "text": "a", "audio": ""}]}',
                                  '{"parameters": {"depth": %s}}'])  # fmt: skip
def test_a_number_inside_a_field_that_no_float_can_hold_is_refused(
    tone_server: RunningServer, body: str
) -> None:
    content = body.replace("{", '{"text": "5", ', 1) % "1e400"
    answer = tone_server.http.post("/generate", content=content, headers=JSON)
    told = check_error(answer, 400, json.loads(body % "1").popitem()[0], "invalid_request")
    assert "too large to be read" in told
