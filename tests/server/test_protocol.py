"""Connections of clients that send nothing or too slowly are closed; others are not affected."""

from __future__ import annotations

import gc
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest

from tests.conftest import RunningServer, until
from tests.server.conftest import Gate, post_raw, read_stream, value
from vox_serve.config import ServerConfig
from vox_serve.server.protocol import MAX_HEADER_BYTES, TimedProtocol

StartServer = Callable[..., RunningServer]
READ_TIMEOUT = 0.5
HEAD = b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
GET = b"GET /voices HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
def impatient(start_server: StartServer) -> RunningServer:
    return start_server(server=ServerConfig(port=0, read_timeout=READ_TIMEOUT))


def connect(server: RunningServer) -> socket.socket:
    address = urlsplit(server.url)
    return socket.create_connection((address.hostname, address.port), timeout=10)


@contextmanager
def trickle(connection: socket.socket, data: bytes) -> Iterator[None]:
    """Keep sending the same bytes slowly, and never enough of them."""
    stop = threading.Event()

    def send() -> None:
        while not stop.wait(0.05):
            try:
                connection.sendall(data)
            except OSError:
                return

    thread = threading.Thread(target=send)
    thread.start()
    yield
    stop.set()
    thread.join()


def rest(connection: socket.socket) -> bytes:
    """Everything received until the connection is closed."""
    received = b""
    try:
        while data := connection.recv(4096):
            received += data
    except ConnectionResetError:  # closed while the test was sending
        pass
    return received


@pytest.mark.parametrize("start", [b"", b"POST /gen", HEAD, b"\r\n"])
def test_a_connection_without_complete_headers_is_closed(
    impatient: RunningServer, start: bytes
) -> None:
    begin = time.monotonic()
    with connect(impatient) as connection:
        connection.sendall(start)
        assert impatient.http.post("/generate", json={"text": "5"}).status_code == 200
        assert rest(connection) == b""
    assert READ_TIMEOUT <= time.monotonic() - begin < READ_TIMEOUT + 1


@pytest.mark.parametrize(("start", "more"), [(HEAD, b"X-More: 1\r\n"), (b"", b"\r\n")])
def test_slow_headers_do_not_extend_the_limit(
    impatient: RunningServer, start: bytes, more: bytes
) -> None:
    begin = time.monotonic()
    with connect(impatient) as connection:
        connection.sendall(start)
        with trickle(connection, more):
            assert impatient.http.post("/generate", json={"text": "5"}).status_code == 200
            assert rest(connection) == b""
    assert READ_TIMEOUT <= time.monotonic() - begin < READ_TIMEOUT + 1


@pytest.mark.parametrize("route", [b"/generate", b"/v1/audio/speech", b"/v1/audio/voices"])
@pytest.mark.parametrize("more", [b"", b" "])
def test_a_body_that_does_not_arrive_is_answered_with_408(
    impatient: RunningServer, route: bytes, more: bytes
) -> None:
    kind = b"multipart/form-data; boundary=x" if b"voices" in route else b"application/json"
    begin = time.monotonic()
    with connect(impatient) as connection:
        head = HEAD.replace(b"/generate", route).replace(b"application/json", kind)
        connection.sendall(head + b"Content-Length: 10000\r\n\r\n")
        with trickle(connection, more):
            assert impatient.http.post("/generate", json={"text": "5"}).status_code == 200
            answer = rest(connection)
    assert READ_TIMEOUT <= time.monotonic() - begin < READ_TIMEOUT + 1
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"\r\nconnection: close\r\n" in answer
    assert b"the body did not arrive within 0.5 seconds" in answer
    assert value(impatient, "http_responses_total", route=route.decode(), code="408") == 1
    if b"voices" not in route:
        mode = "whole" if route == b"/generate" else "stream"
        assert value(impatient, "requests_total", mode=mode, outcome="invalid") == 1
    assert value(impatient, "client_disconnects_total", phase="queued") == 0


def test_a_body_that_is_not_read_does_not_keep_a_connection_open(impatient: RunningServer) -> None:
    with connect(impatient) as connection:
        connection.sendall(b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 10000\r\n\r\n")
        with trickle(connection, b" "):
            assert rest(connection).startswith(b"HTTP/1.1 404 ")


def test_a_kept_connection_has_the_limit_for_each_request(impatient: RunningServer) -> None:
    with connect(impatient) as connection:
        for _ in range(3):
            connection.sendall(GET)
            answer = connection.recv(65536)
            while not answer.endswith(b"]}"):
                answer += connection.recv(65536)
            time.sleep(READ_TIMEOUT * 0.6)
        begin = time.monotonic()
        connection.sendall(GET[:10])
        assert rest(connection) == b""
    assert READ_TIMEOUT <= time.monotonic() - begin < READ_TIMEOUT + 1


def test_an_answer_may_take_longer(gate: Gate, start_server: StartServer) -> None:
    """Even if part of the next request has already arrived."""
    server = start_server(server=ServerConfig(port=0, read_timeout=0.2))
    gate.close()
    with post_raw(server, text="5 frames", streaming=True, format="pcm") as connection:
        until(lambda: server.client.open_requests == 1)
        connection.sendall(GET[:10])
        time.sleep(0.5)
        gate.open()
        assert len(read_stream(connection)) == 5 * 1280


def test_a_websocket_may_be_silent_for_longer(impatient: RunningServer) -> None:
    from websockets.sync.client import connect as open_websocket

    with open_websocket(impatient.url.replace("http", "ws") + "/v1/audio/stream") as socket:
        time.sleep(3 * READ_TIMEOUT)
        socket.send('{"type": "start"}')
        assert '"started"' in str(socket.recv(timeout=5))


@pytest.mark.parametrize(
    "data", [b"\x16\x03\x01\x02\r\n\r\n", b"FOO / HTTP/1.1\r\nHost: x\r\n\r\n"]
)
def test_malformed_http_gets_an_error_in_our_shape(tone_server: RunningServer, data: bytes) -> None:
    with connect(tone_server) as connection:
        connection.sendall(data)
        head, _, body = rest(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"content-type: application/json" in head
    assert json.loads(body)["error"]["code"] == "bad_request"


def send_until_closed(connection: socket.socket, data: bytes) -> int:
    """Send the same bytes until the connection is closed; returns how many were sent."""
    sent = 0
    try:
        while sent < 100 * MAX_HEADER_BYTES:
            connection.sendall(data)
            sent += len(data)
    except OSError:  # either a reset or a broken pipe
        pass
    return sent


@pytest.mark.parametrize("start", [b"GET /voices HTTP/1.1\r\nHost: x\r\n", b"GET /", HEAD])
def test_endless_headers_are_cut(tone_server: RunningServer, start: bytes) -> None:
    """They are kept in memory until they are complete, so their size must be limited."""
    with connect(tone_server) as connection:
        connection.sendall(start)
        line = b"a" * 1000 if start == b"GET /" else b"X-A: " + b"a" * 1000 + b"\r\n"
        sent = send_until_closed(connection, line)
    assert sent < 100 * MAX_HEADER_BYTES
    assert tone_server.http.get("/voices").status_code == 200


def test_endless_trailers_are_cut(tone_server: RunningServer) -> None:
    with connect(tone_server) as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n")
        sent = send_until_closed(connection, b"X-A: " + b"a" * 1000 + b"\r\n")
    assert sent < 100 * MAX_HEADER_BYTES


def test_a_connection_that_is_reset_is_forgotten(tone_server: RunningServer) -> None:
    """Otherwise its timer would keep it in memory until the limit for silent connections."""

    def kept() -> int:
        gc.collect()
        found = [one for one in gc.get_objects() if type(one) is TimedProtocol]
        return sum(one.transport.is_closing() for one in found)

    before = kept()
    for _ in range(10):
        with connect(tone_server) as connection:
            connection.sendall(GET)
            connection.recv(65536)
            reset = struct.pack("ii", 1, 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
    until(lambda: kept() <= before)


def test_bodies_and_earlier_requests_do_not_count_as_headers(tone_server: RunningServer) -> None:
    long: dict[str, object] = {"text": "5", "context": [], "conversation": None, "voice": None}
    content = json.dumps(long).encode() + b" " * (4 * MAX_HEADER_BYTES)
    headers = {"Content-Type": "application/json"}
    assert tone_server.http.post("/generate", content=content, headers=headers).status_code == 200
    for _ in range(20):  # over one connection
        padded = {"X-A": "a" * (MAX_HEADER_BYTES // 10)}
        assert tone_server.http.get("/voices", headers=padded).status_code == 200
