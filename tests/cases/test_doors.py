"""The cases that are about HTTP exchanges rather than texts, over real sockets."""

from __future__ import annotations

import json
import socket
import wave
from collections.abc import Callable
from io import BytesIO
from typing import Any
from urllib.parse import urlsplit

import attrs
import httpx
import numpy as np
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.cases.conftest import CASES
from tests.conftest import TONE, RunningServer
from tests.server.conftest import Gate
from tests.server.test_bad_requests import check_error
from vox_serve.config import ServerConfig
from vox_serve.launch import listen

StartServer = Callable[..., RunningServer]
SPEECH: dict[str, Any] = {"model": "tts-1", "voice": "alloy", "input": "9 frames"}
WAV = SPEECH | {"response_format": "wav"}
PCM = 9 * 1280
"""The size of SPEECH's audio in bytes."""


def open_socket(server: RunningServer) -> socket.socket:
    address = urlsplit(server.url)
    return socket.create_connection((address.hostname, address.port), timeout=20)


def request(
    body: dict[str, Any],
    *headers: str,
    version: str = "1.1",
    chunked: bool = False,
    path: str = "/v1/audio/speech",
) -> tuple[bytes, bytes]:
    """Head and body of a POST."""
    content = json.dumps(body).encode()
    length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(content)}"
    lines = [f"POST {path} HTTP/{version}", "Host: x", "Content-Type: application/json", length]
    if chunked:
        content = b"%x\r\n%s\r\n0\r\n\r\n" % (len(content), content)
    return "\r\n".join([*lines, *headers, "", ""]).encode(), content


def answers(connection: socket.socket, count: int) -> list[bytes]:
    """Read `count` chunked answers with status 200; returns their bodies."""
    reader, bodies = connection.makefile("rb"), []
    for _ in range(count):
        assert reader.readline() == b"HTTP/1.1 200 OK\r\n"
        while reader.readline() != b"\r\n":
            pass
        body = b""
        while size := int(reader.readline(), 16):
            body += reader.read(size)
            reader.readline()
        reader.readline()
        bodies.append(body)
    return bodies


def rest(connection: socket.socket) -> bytes:
    received = b""
    while data := connection.recv(65_536):
        received += data
    return received


# "upgrade-offer"

OFFER = [
    f"{k}: {v}" for k, v in CASES["upgrade-offer"]["send"]["headers"].items() if k != "Content-Type"
]
TLS = ["Connection: upgrade", "Upgrade: TLS/1.2, HTTP/1.1"]


@pytest.mark.parametrize("offer", [OFFER, TLS], ids=["h2c", "TLS"])
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("apart", [False, True], ids=["together", "apart"])
def test_an_upgrade_that_the_server_lacks_is_ignored(
    tone_server: RunningServer, offer: list[str], chunked: bool, apart: bool
) -> None:
    head, body = request(WAV, *offer, chunked=chunked)
    with open_socket(tone_server) as connection:
        for part in (head, body) if apart else (head + body,):
            connection.sendall(part)
        (wav,) = answers(connection, 1)
        assert len(wav) == 44 + PCM
        connection.sendall(head + body + b"".join(request(WAV)) + head + body)  # same connection
        assert answers(connection, 3) == [wav] * 3


def test_an_offer_may_arrive_byte_by_byte(tone_server: RunningServer) -> None:
    with open_socket(tone_server) as connection:
        for byte in b"".join(request(WAV, *OFFER)):
            connection.send(bytes([byte]))
        assert len(answers(connection, 1)[0]) == 44 + PCM


def test_an_offer_with_connection_close_gets_an_answer_and_a_close(
    tone_server: RunningServer,
) -> None:
    offer = ["Connection: close, Upgrade", "Upgrade: h2c"]
    with open_socket(tone_server) as connection:
        connection.sendall(b"".join(request(WAV, *offer)))
        answer = rest(connection)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"\r\n0\r\n\r\n")


def test_many_offers_at_once_do_not_recurse_deeply(tone_server: RunningServer) -> None:
    with open_socket(tone_server) as connection:
        get = b"GET /ready HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n"
        connection.sendall(get * 300)
        received = b""
        while received.count(b'{"status":"ready"}') < 300:
            received += connection.recv(65_536)
    assert received.count(b"HTTP/1.1 200 OK") == 300


def test_a_websocket_is_still_an_upgrade(tone_server: RunningServer) -> None:
    with connect(tone_server.url.replace("http", "ws") + "/v1/audio/stream") as websocket:
        websocket.send('{"type": "start"}')
        assert '"started"' in str(websocket.recv(timeout=5))


# "http-1.0"


@pytest.mark.parametrize("path", ["/v1/audio/speech", "/generate"])
@pytest.mark.parametrize("whole", [False, True], ids=["streamed", "whole"])
def test_http_1_0_gets_the_file_and_nothing_else(
    tone_server: RunningServer, path: str, whole: bool
) -> None:
    fields = (
        {"text": "9 frames", "streaming": not whole}
        if path == "/generate"
        else WAV | {"stream": not whole}
    )
    head, body = request(fields, version="1.0", path=path)
    with open_socket(tone_server) as connection:
        connection.sendall(head + body)
        head, _, content = rest(connection).partition(b"\r\n\r\n")
    assert b"200 OK" in head
    assert b"transfer-encoding" not in head
    assert (b"content-length" in head) is whole
    assert b"connection: close" in head
    assert content[:4] == b"RIFF"
    assert len(content) == 44 + PCM


def test_a_stream_that_fails_over_http_1_0_does_not_look_whole(
    gate: Gate, start_server: StartServer
) -> None:
    server = start_server()
    head, body = request(WAV | {"input": "9 boom"}, version="1.0")
    gate.allow(1)
    with open_socket(server) as connection:
        connection.sendall(head + body)
        assert connection.recv(17) == b"HTTP/1.1 200 OK\r\n"
        gate.open()
        with pytest.raises(ConnectionResetError):
            rest(connection)


# "head-requests"


@pytest.mark.parametrize(
    "path", ["/health", "/ready", "/metrics", "/models", "/voices", "/plugins", "/docs",
             "/openapi.json", "/v1/models", "/v1/models/tts-1", "/v1/audio/models",
             "/v1/audio/voices", "/v1/audio/voices/hum_a", "/v1/audio/voices/none"],
)  # fmt: skip
def test_head_is_get_without_a_body(tone_server: RunningServer, path: str) -> None:
    got, head = tone_server.http.get(path), tone_server.http.head(path)
    assert head.status_code == got.status_code
    assert head.content == b""
    changes = {"date", "x-request-id", "content-length" if path == "/metrics" else ""}
    assert {k: v for k, v in head.headers.items() if k not in changes} == {
        k: v for k, v in got.headers.items() if k not in changes
    }


def test_head_goes_only_where_get_does(tone_server: RunningServer) -> None:
    answer = tone_server.http.head("/generate")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST, OPTIONS"
    assert "HEAD" in tone_server.http.post("/health").headers["allow"]


# "audio-by-url"

URL = "/v1/audio/speech?model=tts-1&voice=alloy&input=9+frames"


def test_a_url_plays(tone_server: RunningServer) -> None:
    path = CASES["audio-by-url"]["send"]["path"]
    answer = tone_server.http.get(path, headers={"Range": "bytes=0-"})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "audio/mpeg"
    assert answer.headers["accept-ranges"] == "none"
    posted = tone_server.http.post("/v1/audio/speech", json=SPEECH | {"response_format": "wav"})
    got = tone_server.http.get(URL + "&response_format=wav")
    assert got.content == posted.content


def test_a_url_can_state_its_length(tone_server: RunningServer) -> None:
    answer = tone_server.http.get(URL + "&response_format=wav&stream=false&seed=7&speed=1")
    assert int(answer.headers["content-length"]) == 44 + PCM
    assert answer.headers["x-seed"] == "7"
    with wave.open(BytesIO(answer.content)) as file:
        assert file.getnframes() == PCM // 2


def test_fields_of_a_url_are_checked_like_those_of_a_body(tone_server: RunningServer) -> None:
    get = tone_server.http.get
    check_error(get("/v1/audio/speech?voice=alloy"), 400, "input", "invalid_request")
    check_error(get(URL + "&sped=1"), 400, "sped", "invalid_request")
    check_error(get(URL + "&speed=9"), 400, "speed", "invalid_request")
    check_error(get(URL + "&speed=fast"), 400, "speed", "invalid_request")
    check_error(get(URL + "&input=again"), 400, "input", "invalid_request")
    check_error(get(URL.replace("9+frames", "x" * 4097)), 400, "input", "invalid_request")
    check_error(get(URL.replace("alloy", "nobody")), 404, "voice")
    check_error(get(URL.replace("9+frames", "unspeakable")), 422, "input", "unspeakable_text")
    check_error(get(URL + "&pronunciations=x"), 400, "pronunciations", "invalid_request")
    assert get(URL + "&user=me&language=de").headers["x-ignored-fields"] == "user, language"


def test_head_of_a_url_speaks_nothing(tone_server: RunningServer) -> None:
    frames = tone_server.metric('vox_serve_frames_total{model="tone"}')
    head = tone_server.http.head(URL)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == "audio/mpeg"
    assert "content-length" not in head.headers
    assert tone_server.http.head(URL.replace("alloy", "nobody")).status_code == 404
    assert tone_server.http.head("/v1/audio/speech?voice=alloy").status_code == 400
    assert tone_server.metric('vox_serve_frames_total{model="tone"}') == frames


# "extra-fields"

EXTRA = CASES["extra-fields"]["send"]["each_of"] + [
    {"lang": "en-GB"}, {"language_code": "b"}, {"format": "wav"}, {"output_format": "pcm_16000"},
    {"streaming": False}, {"voice_settings": {"stability": 0.5}}, {"metadata": {"a": "b"}},
]  # fmt: skip


@pytest.mark.parametrize("extra", EXTRA, ids=lambda extra: next(iter(extra)))
def test_fields_of_other_servers_are_ignored_and_reported(
    tone_server: RunningServer, extra: dict[str, Any]
) -> None:
    answer = tone_server.http.post("/v1/audio/speech", json=SPEECH | extra)
    assert answer.status_code == 200, answer.text
    (name,) = extra
    ours = {"lang", "language_code", "format", "output_format", "streaming", "stream", "lang_code"}
    # The tone model does not use the language, so `language` is listed as ignored, too.
    ignored = answer.headers.get("x-ignored-fields")
    assert ignored == ("language" if name.startswith("lang") else None if name in ours else name)


def test_other_servers_names_of_our_fields_are_understood(tone_server: RunningServer) -> None:
    post = tone_server.http.post
    answer = post("/v1/audio/speech", json=SPEECH | {"output_format": "pcm_16000"})
    assert answer.headers["content-type"] == "audio/pcm"
    assert answer.headers["x-sample-rate"] == "16000"
    assert abs(len(answer.content) - 2 * PCM) <= 4
    assert "content-length" in post("/v1/audio/speech", json=SPEECH | {"stream": False}).headers
    answer = post("/generate", json={"input": "9 frames", "stream": True, "response_format": "pcm"})
    assert answer.headers["content-type"] == "audio/pcm"
    assert answer.headers["transfer-encoding"] == "chunked"
    form = {"input": (None, "9 frames"), "user": (None, "me")}
    assert post("/generate", files=form).headers["x-ignored-fields"] == "user"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"sped": 1}, "sped"),
        ({"text": "another"}, "text"),
        ({"ref_audio": "x"}, "ref_audio"),
        ({"user": "u", "top_k": "x"}, "top_k"),
        ({"language": "no language!"}, "language"),
        ({"output_format": "wma"}, "response_format"),
    ],
)
def test_a_misspelt_field_or_one_that_would_matter_is_refused(
    tone_server: RunningServer, fields: dict[str, Any], param: str
) -> None:
    answer = tone_server.http.post("/v1/audio/speech", json=SPEECH | fields)
    check_error(answer, 400, param, "invalid_request")


def test_strict_fields_refuses_every_unknown_field(start_server: StartServer) -> None:
    server = start_server(server=ServerConfig(port=0, strict_fields=True))
    answer = server.http.post("/v1/audio/speech", json=SPEECH | {"user": "u"})
    check_error(answer, 400, "user", "invalid_request")
    check_error(server.http.get(URL + "&user=u"), 400, "user", "invalid_request")
    with connect(server.url.replace("http", "ws") + "/v1/audio/stream") as websocket:
        websocket.send('{"type": "start", "user": "u"}')
        assert "user" in str(websocket.recv(timeout=5))


def test_a_websocket_lists_the_fields_that_it_ignores(tone_server: RunningServer) -> None:
    start = {"type": "start", "user": "u", "lang_code": "a", "output_format": "ulaw_8000"}
    with connect(tone_server.url.replace("http", "ws") + "/v1/audio/stream") as websocket:
        websocket.send(json.dumps(start))
        started = json.loads(websocket.recv(timeout=5))
    assert started["ignored"] == ["user", "language"]
    assert (started["format"], started["sample_rate"]) == ("mulaw", 8000)


# "telephone-formats"


@pytest.mark.parametrize("body", CASES["telephone-formats"]["send"]["each_of"], ids=str)
def test_telephony_formats_have_their_types_and_lengths(
    tone_server: RunningServer, body: dict[str, Any]
) -> None:
    answer = tone_server.http.post("/v1/audio/speech", json=SPEECH | body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-sample-rate"] == "8000"
    wide = body["response_format"] == "pcm"
    assert len(answer.content) == (PCM if wide else PCM // 2)
    assert answer.headers["content-type"] == ("audio/pcm" if wide else "audio/basic")


def test_mulaw_and_alaw_follow_the_standard(tone_server: RunningServer) -> None:
    """ITU-T G.711: the codes of zero and of the loudest samples."""
    from vox_serve.audio.formats import FORMATS

    samples = np.array([0, 32_767, -32_768], "<i2").tobytes()
    assert FORMATS["mulaw"].whole(8000, samples) == b"\xff\x80\x00"
    assert FORMATS["alaw"].whole(8000, samples) == b"\xd5\xaa\x2a"


@pytest.mark.parametrize("name", ["wav", "pcm", "flac", "mp3", "opus", "ogg", "aac"])
@pytest.mark.parametrize("rate", [8000, 16_000, 48_000])
def test_a_sample_rate_can_be_asked_for(tone_server: RunningServer, name: str, rate: int) -> None:
    for streaming in (False, True):
        body = {"text": "9 frames", "format": name, "sample_rate": rate, "streaming": streaming}
        answer = tone_server.http.post("/generate", json=body)
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-sample-rate"] == str(rate)
        if name == "pcm":
            assert len(answer.content) == pytest.approx(PCM * rate / 8000, abs=4)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"sample_rate": 7999}, "sample_rate must be from 8000 to 48000"),
        ({"sample_rate": 9000, "format": "mp3"}, "sample_rate of mp3 must be one of 8000, 11025"),
        ({"sample_rate": 16_000, "format": "mulaw"}, "sample_rate of mulaw must be one of 8000,"),
    ],
)
def test_a_rate_that_a_format_lacks_is_refused(
    tone_server: RunningServer, fields: dict[str, Any], says: str
) -> None:
    answer = tone_server.http.post("/generate", json={"text": "5"} | fields)
    assert check_error(answer, 400, "sample_rate", "invalid_request").startswith(says)


# "lone-surrogates", and other encodings


@pytest.mark.parametrize(
    "body",
    [
        *CASES["lone-surrogates"]["send"]["raw_bodies"],
        '{"text": "a \\uD83D\\uD83D b"}',
        '{"text": "a \\\\ud83d \\ud83d\\ude00 b"}',
    ],
)
def test_half_a_surrogate_pair_does_not_spoil_the_rest(
    tone_server: RunningServer, body: str
) -> None:
    answer = tone_server.http.post("/generate", content=body.encode())
    assert answer.status_code == 200, answer.text
    with connect(tone_server.url.replace("http", "ws") + "/v1/audio/stream") as websocket:
        websocket.send('{"type": "start"}')
        websocket.send(body.replace("{", '{"type": "text", ', 1))
        websocket.send('{"type": "end"}')
        events = [json.loads(m) for m in websocket if isinstance(m, str)]
    assert events[-1]["type"] == "done"


@pytest.mark.parametrize(
    ("encoding", "declared"),
    [
        ("utf-8-sig", None),
        ("utf-8-sig", "utf-8"),
        ("utf-8", "UTF8"),
        ("utf-16", None),
        ("utf-16", "utf-16"),
        ("latin-1", "ISO-8859-1"),
        ("cp1252", '"windows-1252"'),
        ("shift_jis", "Shift_JIS"),
    ],
)
def test_a_body_is_decoded_by_its_declared_or_detected_encoding(
    tone_server: RunningServer, encoding: str, declared: str | None
) -> None:
    content = '{"text": "9 frames"}'.encode(encoding)
    kind = "application/json" + (f"; charset={declared}" if declared else "")
    answer = tone_server.http.post("/generate", content=content, headers={"Content-Type": kind})
    assert answer.status_code == 200, answer.text
    assert len(answer.content) == 44 + PCM


@pytest.mark.parametrize("declared", ["klingon", "punycode", "zip", "utf-7"])
def test_an_unknown_charset_is_named(tone_server: RunningServer, declared: str) -> None:
    kind = f"application/json; charset={declared}"
    answer = tone_server.http.post("/generate", content=b"{}", headers={"Content-Type": kind})
    message = check_error(answer, 400, None, "invalid_request")
    assert message == f"the body's charset '{declared}' is not supported; send UTF-8"


# Connections


def test_a_connection_is_kept_longer_than_proxies_keep_theirs(start_server: StartServer) -> None:
    assert ServerConfig().keep_alive_timeout > 120, "nginx 60 s, Go's proxies 90 s, Caddy 120 s"
    server = start_server(server=ServerConfig(port=0, keep_alive_timeout=0.2))
    with open_socket(server) as connection:
        connection.sendall(b"GET /ready HTTP/1.1\r\nHost: x\r\n\r\n")
        assert rest(connection).endswith(b'{"status":"ready"}'), "the connection stays open"


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
def test_all_interfaces_means_ipv4_and_ipv6() -> None:
    with listen(ServerConfig(host="::", port=0)) as listener:
        port = listener.getsockname()[1]
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, port), timeout=5).close()


# `browser-client` and `websocket-behind-proxy`

knows_origins = pytest.mark.skipif(
    "cors_origin" not in attrs.fields_dict(ServerConfig), reason="there is no list of origins yet"
)
SITE = "http://localhost:3000"


@knows_origins
def test_pages_of_a_named_origin_may_use_the_server(start_server: StartServer) -> None:
    fields: dict[str, Any] = {"port": 0, "cors_origin": (SITE,)}
    server = start_server(engine=TONE, server=ServerConfig(**fields))
    preflight = CASES["browser-client"]["send"]["preflight"]
    for origin, allowed in ((SITE, SITE), ("https://evil.example", None)):
        headers = preflight["headers"] | {"Origin": origin}
        answer = server.http.options(preflight["path"], headers=headers)
        assert answer.headers.get("access-control-allow-origin") == allowed
        for reply in (
            server.http.post(preflight["path"], json=SPEECH, headers={"Origin": origin}),
            server.http.get("/v1/audio/voices", headers={"Origin": origin}),
            server.http.get("/nowhere", headers={"Origin": origin}),
        ):
            assert reply.headers.get("access-control-allow-origin") == allowed


@knows_origins
def test_a_websocket_behind_a_proxy_opens_for_named_origins(start_server: StartServer) -> None:
    case = CASES["websocket-behind-proxy"]["send"]
    origins = tuple(one["Origin"] for one in case["cases"])
    fields: dict[str, Any] = {"port": 0, "ws_origin": origins}
    server = start_server(engine=TONE, server=ServerConfig(**fields))
    url = server.url.replace("http", "ws") + case["websocket"]
    for origin in origins:
        with connect(url, origin=origin):  # type: ignore[arg-type]
            pass
    with pytest.raises(InvalidStatus), connect(url, origin="https://evil.example"):  # type: ignore[arg-type]
        pass


def test_by_default_no_page_of_another_origin_may_use_the_server(
    tone_server: RunningServer,
) -> None:
    answer = httpx.post(f"{tone_server.url}/v1/audio/speech", json=SPEECH, headers={"Origin": SITE})
    assert "access-control-allow-origin" not in answer.headers
