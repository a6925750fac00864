"""/v1 follows OpenAI's schema, and works with OpenAI's own client."""

from __future__ import annotations

import base64
import io
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import attrs
import httpx
import numpy as np
import openai
import pytest
import soundfile

from tests.conftest import TONE, RunningServer, until
from tests.server.conftest import Gate, value
from tests.server.test_bad_requests import check_error
from tests.server.test_formats import FRAME_SAMPLES, decode, needs_ffmpeg
from tests.server.test_life import is_idle
from vox_serve.audio.formats import FORMATS, Encoder
from vox_serve.config import ServerConfig
from vox_serve.errors import ConfigError
from vox_serve.server.voices.aliases import VOICES

StartServer = Callable[..., RunningServer]
SPEECH: dict[str, Any] = {"model": "tts-1", "voice": "alloy", "input": "20 frames"}
ROUTE = "/v1/audio/speech"


def post(server: RunningServer, **fields: Any) -> httpx.Response:
    return server.http.post(ROUTE, json=SPEECH | fields)


def events(content: bytes) -> list[dict[str, Any]]:
    """The objects of server-sent events, which must be the whole body."""
    lines = content.split(b"\n\n")
    assert lines.pop() == b""
    assert all(line.startswith(b"data: ") and b"\n" not in line for line in lines)
    return [json.loads(line.removeprefix(b"data: ")) for line in lines]


def audio_of(found: list[dict[str, Any]]) -> bytes:
    deltas = [event for event in found if event.get("type") == "speech.audio.delta"]
    return b"".join(base64.b64decode(event["audio"], validate=True) for event in deltas)


def check_same(name: str, one: bytes, other: bytes) -> None:
    """Ogg streams contain random numbers, and resampled audio is dithered."""
    if name == "opus":
        assert len(one) == pytest.approx(len(other), abs=300), (
            "the lengths differ by more than a page"
        )
        audio = [soundfile.read(io.BytesIO(content))[0] for content in (one, other)]
        np.testing.assert_array_equal(*audio)
    elif name == "pcm":
        samples = [np.frombuffer(content, "<i2").astype(int) for content in (one, other)]
        np.testing.assert_allclose(*samples, atol=4)
    else:
        assert one == other


@pytest.fixture
def client(tone_server: RunningServer) -> Iterator[openai.OpenAI]:
    with client_of(tone_server) as client:
        yield client
    tone_server.wait_idle()


def client_of(server: RunningServer, retries: int = 0) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=retries)


def test_the_default_format_is_mp3(tone_server: RunningServer) -> None:
    response = post(tone_server)
    assert response.status_code == 200
    assert response.headers["content-type"] == "audio/mpeg"
    assert response.headers["transfer-encoding"] == "chunked"
    body = {"text": "20 frames", "format": "mp3", "streaming": True}
    same = tone_server.http.post("/generate", json=body)
    assert response.content == same.content


@pytest.mark.parametrize("name", FORMATS)
def test_openais_client_gets_every_format(
    client: openai.OpenAI, tone_server: RunningServer, name: str
) -> None:
    whole = client.audio.speech.create(**SPEECH, response_format=name).read()
    create = client.audio.speech.with_streaming_response.create
    with create(**SPEECH, response_format=name, speed=1.0, instructions="gently") as response:
        assert response.headers["content-type"] == FORMATS[name].media_type
        assert len(response.request_id or "") == 32
        streamed = b"".join(response.iter_bytes())
    check_same(name, streamed, whole)
    if name != "pcm":  # its sample rate differs here
        body = {"text": "20 frames", "format": name, "streaming": True}
        check_same(name, whole, tone_server.http.post("/generate", json=body).content)


def test_pcm_has_24_khz(client: openai.OpenAI) -> None:
    response = client.audio.speech.create(**SPEECH, response_format="pcm")
    assert response.response.headers["x-sample-rate"] == "24000"
    samples = np.frombuffer(response.read(), "<i2")
    assert len(samples) == pytest.approx(3 * 20 * FRAME_SAMPLES, abs=2)


@pytest.mark.parametrize("name", FORMATS)
def test_events_contain_the_audio_of_the_stream(tone_server: RunningServer, name: str) -> None:
    plain = post(tone_server, response_format=name)
    response = post(tone_server, response_format=name, stream_format="sse", seed=9)
    assert response.headers["content-type"] == "text/event-stream"
    found = events(response.content)
    check_same(name, audio_of(found), plain.content)
    assert len(found) > 2, "in pieces"
    usage = {"input_tokens": 9, "output_tokens": 20, "total_tokens": 29}
    assert found[-1] == {
        "type": "speech.audio.done",
        "usage": usage,
        "finish_reason": "stop",
        "seed": 9,
    }


def test_events_report_a_length_finish(tone_server: RunningServer) -> None:
    found = events(post(tone_server, stream_format="sse", max_seconds=0.4).content)
    assert found[-1]["finish_reason"] == "length"
    assert found[-1]["usage"]["output_tokens"] == 5


def sse(client: openai.OpenAI, **fields: Any) -> openai.Stream[Any]:
    body = SPEECH | {"stream_format": "sse"} | fields
    return client.post(
        "/audio/speech", cast_to=object, body=body, stream=True, stream_cls=openai.Stream[object]
    )


def test_openais_client_reads_the_events(client: openai.OpenAI) -> None:
    found = list(sse(client, response_format="wav"))
    assert audio_of(found)[:4] == b"RIFF"
    assert [event["type"] for event in found][-1] == "speech.audio.done"


@pytest.mark.parametrize("word", ["nan", "boom"])
def test_a_failure_during_a_stream_raises_in_openais_client(
    gate: Gate, gated_server: RunningServer, word: str
) -> None:
    gate.allow(1)
    with client_of(gated_server) as client:
        stream = sse(client, input=f"{word} 41 frames", response_format="pcm")
        gate.open()
        with pytest.raises(openai.APIError) as caught:
            list(stream)
    assert caught.value.code == "generation_failed"
    gated_server.wait_idle()
    assert value(gated_server, "http_responses_total", route=ROUTE, code="cut") == 1
    assert value(gated_server, "requests_total", mode="stream", outcome="error") == 1


def test_a_failure_between_events_is_reported_and_ends_the_stream(
    gate: Gate, gated_server: RunningServer
) -> None:
    """A client that does not handle error events still sees that the body is incomplete."""
    gate.allow(1)
    body = SPEECH | {"input": "boom 41", "stream_format": "sse", "response_format": "pcm"}
    pieces: list[bytes] = []
    with gated_server.http.stream("POST", ROUTE, json=body) as response:
        gate.open()
        with pytest.raises(httpx.RemoteProtocolError):
            pieces.extend(response.iter_raw())
    *deltas, last = events(b"".join(pieces))
    assert {event["type"] for event in deltas} == {"speech.audio.delta"}
    assert last.keys() == {"error"}
    assert last["error"].keys() == {"message", "type", "param", "code"}


def test_a_failure_before_the_sound_is_a_status(tone_server: RunningServer) -> None:
    for stream_format in ("audio", "sse"):
        response = post(tone_server, input="unprefillable", stream_format=stream_format)
        check_error(response, 500, code="generation_failed")


@pytest.mark.parametrize(
    ("fields", "kind", "param"),
    [
        ({"model": "gpt-9"}, openai.NotFoundError, "model"),
        ({"model": "tts-1-x"}, openai.NotFoundError, "model"),
        ({"voice": "nobody"}, openai.NotFoundError, "voice"),
        ({"voice": {"id": "nobody"}}, openai.NotFoundError, "voice"),
        ({"input": ""}, openai.BadRequestError, "input"),
        ({"input": " \n"}, openai.BadRequestError, "input"),
        ({"input": "a" * 4097}, openai.BadRequestError, "input"),
        ({"response_format": "wma"}, openai.BadRequestError, "response_format"),
        ({"stream_format": "ndjson"}, openai.BadRequestError, "stream_format"),
        ({"speed": 0.24}, openai.BadRequestError, "speed"),
        ({"speed": 4.01}, openai.BadRequestError, "speed"),
        ({"speed": "1"}, openai.BadRequestError, "speed"),
        ({"input": "unspeakable"}, openai.UnprocessableEntityError, "input"),
        ({"input": "unprefillable"}, openai.InternalServerError, None),
    ],
    ids=lambda case: str(case)[:40],
)
def test_refusals_become_openais_error_classes(
    client: openai.OpenAI, fields: dict[str, Any], kind: type[openai.APIError], param: str | None
) -> None:
    with pytest.raises(kind) as caught:
        client.audio.speech.create(**SPEECH | fields)
    assert caught.value.param == param
    assert len(caught.value.request_id) == 32


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"colour": 1}, "colour"),
        ({"text": "5"}, "text"),
        ({"model": None}, "model"),
        ({"voice": 1}, "voice"),
        ({"voice": {"name": "hum_a"}}, "voice"),
        ({"voice": {"id": "hum_a", "more": 1}}, "voice"),
        ({"conversation": "a b"}, "conversation"),
        ({"top_p": 2.0}, "top_p"),
        ({"seed": "1"}, "seed"),
        ({"max_seconds": -1}, "max_seconds"),
    ],
    ids=lambda case: str(case)[:40],
)
def test_a_bad_field_is_named(
    tone_server: RunningServer, fields: dict[str, Any], param: str
) -> None:
    message = check_error(post(tone_server, **fields), 400, param, "invalid_request")
    assert param in message


@pytest.mark.parametrize("missing", ["model", "input", "voice"])
def test_required_fields(tone_server: RunningServer, missing: str) -> None:
    body = {name: text for name, text in SPEECH.items() if name != missing}
    check_error(tone_server.http.post(ROUTE, json=body), 400, missing)


def test_a_form_is_not_json(tone_server: RunningServer) -> None:
    check_error(tone_server.http.post(ROUTE, files={"input": (None, "5")}), 400)


def test_null_means_the_default(tone_server: RunningServer) -> None:
    optional = ("instructions", "response_format", "speed", "stream_format", "seed", "top_k")
    assert post(tone_server, **dict.fromkeys(optional)).content == post(tone_server).content


def test_extra_fields_change_the_sound(tone_server: RunningServer) -> None:
    base = {"temperature": 1.0, "top_k": 0, "seed": 2, "response_format": "wav"}
    plain = post(tone_server, **base).content
    assert post(tone_server, **base).content == plain
    for change in ({"seed": 3}, {"top_k": 2}, {"max_seconds": 0.8}, {"temperature": 0.2}):
        assert post(tone_server, **base | change).content != plain


def test_the_longest_input_is_accepted(tone_server: RunningServer) -> None:
    text = "A sentence of 1 frame. " * 179
    assert len(text) > 4096
    response = post(tone_server, input=text[:4096].rstrip(), response_format="wav")
    assert response.status_code == 200


@needs_ffmpeg
@pytest.mark.parametrize("name", ["wav", "mp3"])
@pytest.mark.parametrize("speed", [0.25, 0.5, 2, 4.0])
def test_speed_changes_the_length(tone_server: RunningServer, speed: float, name: str) -> None:
    response = post(tone_server, input="100 frames", speed=speed, response_format=name)
    samples = decode(name, response.content)
    extra = 0 if name == "wav" else 4 * 576
    assert 0 <= len(samples) - round(100 * FRAME_SAMPLES / speed) <= extra


# Models and voices


def test_openais_models_mean_the_first_model(client: openai.OpenAI) -> None:
    for model in (
        "tts-1",
        "tts-1-hd",
        "tts-1-1106",
        "gpt-4o-mini-tts",
        "gpt-4o-mini-tts-2025-12-15",
        "tone",
    ):
        client.audio.speech.create(**SPEECH | {"model": model})
        assert client.models.retrieve(model).id == "tone"


def test_models_are_listed(client: openai.OpenAI, tone_server: RunningServer) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.object, model.owned_by) == ("tone", "model", "vox_serve")
    assert model.created > 1.7e9
    assert tone_server.http.get("/v1/models").json()["object"] == "list"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-9")


def test_several_models_can_be_chosen_by_name(start_server: StartServer, tmp_path: Path) -> None:
    other = shutil.copytree(Path(__file__).parents[2] / "tone_checkpoint", tmp_path / "other")
    server = start_server(others=[attrs.evolve(TONE, model=str(other))])
    for asked, spoken in (("tts-1", "tone"), ("tone", "tone"), ("other", "other")):
        assert post(server, model=asked).status_code == 200
        series = f'vox_serve_frames_total{{model="{spoken}"}}'
        before = server.metric(series)
        post(server, model=asked)
        assert server.metric(series) - before == 20
    with client_of(server) as client:
        assert [model.id for model in client.models.list()] == ["tone", "other"]
        assert client.models.retrieve("other").id == "other"
    assert server.http.get("/v1/audio/models").json() == {
        "models": [{"id": "tone"}, {"id": "other"}]
    }


def test_a_model_with_a_slash_can_be_retrieved(tone_server: RunningServer) -> None:
    for path in ("a/b", "a%2Fb"):
        response = tone_server.http.get(f"/v1/models/{path}")
        assert "'a/b'" in check_error(response, 404, "model")


def test_openais_voices_are_spread_over_the_voices_of_the_model(tone_server: RunningServer) -> None:
    own = [post(tone_server, voice=voice).content for voice in ("hum_a", "hum_b")]
    assert own[0] != own[1]
    assert len(VOICES) == 13
    for number, voice in enumerate(VOICES):
        assert post(tone_server, voice=voice).content == own[number % 2]
    assert post(tone_server, voice={"id": "hum_b"}).content == own[1]
    assert post(tone_server, voice={"id": "ash"}).content == own[1]


def test_aliases_can_be_configured(start_server: StartServer) -> None:
    aliases = ("alloy=hum_b", "narrator=hum_b", "hum_a=hum_b", "lost=nobody")
    server = start_server(server=ServerConfig(port=0, voice_alias=aliases))
    own = {voice: post(server, voice=voice).content for voice in ("hum_a", "hum_b")}
    assert own["hum_a"] != own["hum_b"], "an alias hides a voice of that name"
    assert post(server, voice="alloy").content == own["hum_b"]
    assert post(server, voice="narrator").content == own["hum_b"]
    assert post(server, voice="ballad").content == own["hum_a"], "other aliases are lost"
    check_error(post(server, voice="lost"), 404, "voice")
    listed = {voice["id"] for voice in server.http.get("/v1/audio/voices").json()["voices"]}
    assert listed == {"hum_a", "hum_b"}


@pytest.mark.parametrize("alias", ["alloy", "alloy=", "=hum_a", ""])
def test_a_bad_alias_is_refused_before_the_start(alias: str) -> None:
    with pytest.raises(ConfigError, match="voice_alias must be NAME=VOICE"):
        ServerConfig(voice_alias=(alias,))


# Full queues, and request ids


@pytest.fixture
def full_server(gate: Gate, start_server: StartServer) -> Iterator[RunningServer]:
    """One slot for each replica, and no queue."""
    yield start_server(
        engine=attrs.evolve(TONE, max_batch_size=1), server=ServerConfig(port=0, max_queue=0)
    )
    gate.open()


def test_openais_client_retries_after_429(gate: Gate, full_server: RunningServer) -> None:
    server, slots = full_server, TONE.replicas
    gate.close()
    with (
        ThreadPoolExecutor(slots + 1) as pool,
        client_of(server, 5) as patient,
        client_of(server) as hasty,
    ):
        speaking = [pool.submit(post, server) for _ in range(slots)]
        until(lambda: server.client.open_requests == slots)
        with pytest.raises(openai.RateLimitError) as caught:
            hasty.audio.speech.create(**SPEECH)
        assert caught.value.response.headers["retry-after"] == "1"
        waiting = pool.submit(patient.audio.speech.create, **SPEECH)
        until(lambda: value(server, "admission_rejections_total", reason="queue_full") == 2)
        gate.open()
        assert waiting.result().read()
        assert all(one.result().status_code == 200 for one in speaking)


def test_a_given_id_is_kept(tone_server: RunningServer) -> None:
    for given in ("abc", "a.b-c_d:e=f", "x" * 128):
        headers = {"X-Request-Id": given}
        response = tone_server.http.post(ROUTE, json=SPEECH, headers=headers)
        assert response.headers.get_list("x-request-id") == [given]
        refused = tone_server.http.post(ROUTE, json={}, headers=headers)
        assert refused.headers.get_list("x-request-id") == [given]


@pytest.mark.parametrize("given", ["", "a b", "a/b", "x" * 129, 'a"b', "ä", "a~1"])
def test_an_invalid_id_is_replaced(tone_server: RunningServer, given: str) -> None:
    headers = {"X-Request-Id": given.encode()}
    response = tone_server.http.post(ROUTE, json=SPEECH, headers=headers)
    assert response.status_code == 200
    (found,) = response.headers.get_list("x-request-id")
    assert len(found) == 32
    assert found != given


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/health"), ("GET", "/metrics"), ("GET", "/nowhere"), ("PUT", "/generate")],
)
def test_every_answer_has_an_id(tone_server: RunningServer, method: str, path: str) -> None:
    answers = [tone_server.http.request(method, path) for _ in range(2)]
    ids = {answer.headers["x-request-id"] for answer in answers}
    assert len(ids) == 2
    named = tone_server.http.request(method, path, headers={"X-Request-Id": "mine"})
    assert named.headers["x-request-id"] == "mine"


def test_several_requests_may_have_the_same_id(gate: Gate, gated_server: RunningServer) -> None:
    """A proxy sends the same id with each retry, but each try is a separate request."""
    gate.close()
    headers = {"X-Request-Id": "same"}
    bodies = [(ROUTE, SPEECH), ("/generate", {"text": "5"}), ("/generate", {"text": "3"})]

    def ask(route: str, body: dict[str, Any]) -> httpx.Response:
        return httpx.post(gated_server.url + route, json=body, headers=headers, timeout=10)

    with ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(ask, *body) for body in bodies]
        until(lambda: gated_server.client.open_requests == 3)
        gate.open()
        for answer in answers:
            assert answer.result().status_code == 200
            assert answer.result().headers["x-request-id"] == "same"
        lengths = [len(answer.result().content) for answer in answers[1:]]
        assert lengths == [44 + frames * 1280 for frames in (5, 3)]
        gate.close()
        answers = [pool.submit(ask, *body) for body in bodies]
        until(lambda: gated_server.client.open_requests == 3)
        assert gated_server.http.delete("/requests/same").status_code == 204
        for answer in answers:
            check_error(answer.result(), 499, code="cancelled")
    check_error(gated_server.http.delete("/requests/same"), 404, "id")
    gate.open()


@pytest.mark.parametrize("streaming", [False, True])
def test_a_waiting_request_is_cancelled(
    gate: Gate, gated_server: RunningServer, streaming: bool
) -> None:
    server = gated_server
    gate.close()
    body, headers = {"text": "5", "streaming": streaming}, {"X-Request-Id": "waiting"}
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(server.http.post, "/generate", json=body, headers=headers)
        until(lambda: server.client.open_requests == 1)
        assert server.http.delete("/requests/waiting").status_code == 204
        check_error(asked.result(), 499, code="cancelled")
    gate.open()
    until(lambda: is_idle(server), 1)
    mode = "stream" if streaming else "whole"
    assert value(server, "requests_total", mode=mode, outcome="cancelled") == 1
    assert value(server, "client_disconnects_total", phase="queued") == 0, (
        "the client was counted as gone"
    )
    check_error(server.http.delete("/requests/waiting"), 404, "id", "not_found")


def test_a_running_stream_is_cut_by_its_id(gate: Gate, gated_server: RunningServer) -> None:
    server = gated_server
    gate.allow(2)
    body = SPEECH | {"input": "150 frames", "max_seconds": 12, "response_format": "pcm"}
    with server.http.stream("POST", ROUTE, json=body) as response:
        request_id = response.headers["x-request-id"]
        assert server.http.delete(f"/requests/{request_id}").status_code == 204
        with pytest.raises(httpx.RemoteProtocolError):
            response.read()
    gate.open()
    until(lambda: is_idle(server), 1)
    assert value(server, "frames_total") < 150
    assert value(server, "requests_total", mode="stream", outcome="cancelled") == 1
    assert value(server, "http_responses_total", route=ROUTE, code="cut") == 1
    check_error(server.http.delete(f"/requests/{request_id}"), 404, "id")


def test_a_long_text_can_be_cancelled_in_a_later_part(
    gate: Gate, gated_server: RunningServer
) -> None:
    server = gated_server
    gate.close()
    body = {"text": "A sentence of 9 frames. " * 40, "streaming": True, "format": "pcm"}
    before = value(server, "frames_total")
    gate.allow(15)
    headers = {"X-Request-Id": "long"}
    with server.http.stream("POST", "/generate", json=body, headers=headers) as response:
        until(lambda: value(server, "frames_total") - before > 12)  # the first part has 9
        assert server.http.delete("/requests/long").status_code == 204
        with pytest.raises(httpx.RemoteProtocolError):
            response.read()
    gate.open()
    until(lambda: is_idle(server), 1)


def test_a_whole_answer_is_cancelled_while_it_is_encoded(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoding, go_on = threading.Event(), threading.Event()
    encode = Encoder.encode

    def held(self: Encoder, pcm: bytes) -> bytes:
        encoding.set()
        go_on.wait(10)
        return encode(self, pcm)

    monkeypatch.setattr(Encoder, "encode", held)
    server = start_server()
    body, headers = {"text": "5", "format": "flac"}, {"X-Request-Id": "late"}
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(server.http.post, "/generate", json=body, headers=headers)
        assert encoding.wait(5)
        assert server.http.get("/health").status_code == 200, "the event loop is blocked"
        assert server.http.delete("/requests/late").status_code == 204
        go_on.set()
        check_error(asked.result(), 499, code="cancelled")


def test_a_cancelled_stream_of_events_says_so(gate: Gate, gated_server: RunningServer) -> None:
    gate.allow(2)
    with client_of(gated_server) as client:
        stream = sse(client, input="150 frames", max_seconds=12, response_format="pcm")
        request_id = stream.response.headers["x-request-id"]
        assert gated_server.http.delete(f"/requests/{request_id}").status_code == 204
        with pytest.raises(openai.APIError, match="cancelled"):
            list(stream)
    gate.open()
    gated_server.wait_idle()
