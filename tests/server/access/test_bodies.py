"""The total memory of request bodies is limited, and a refused body is not read to its end."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from urllib.parse import urlsplit

import pytest

from tests.conftest import RunningServer, until
from tests.server.conftest import Gate, value
from tests.server.test_bad_requests import check_error
from vox_serve.config import ServerConfig
from vox_serve.server.access.bodies import FREE_BYTES
from vox_serve.server.protocol import LINGER_BYTES, LINGER_SECONDS

StartServer = Callable[..., RunningServer]
MIB = 2**20
HEAD = (
    b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)


def connect(server: RunningServer) -> socket.socket:
    address = urlsplit(server.url)
    return socket.create_connection((address.hostname, address.port), timeout=10)


def chunk(size: int) -> bytes:
    return b"%x\r\n%s\r\n" % (size, b" " * size)


def large(size: int) -> dict[str, object]:
    return {"content": b" " * size + b'{"text": "5"}', "headers": {"Content-Type": "text/json"}}


def test_bodies_share_a_limit_and_small_ones_are_always_accepted(start_server: StartServer) -> None:
    server = start_server(
        server=ServerConfig(port=0, max_body_bytes=4 * MIB, max_body_bytes_total=4 * MIB)
    )
    with ExitStack() as stack:
        for _ in range(3):  # bodies that have arrived in part
            connection = stack.enter_context(connect(server))
            connection.sendall(HEAD + chunk(MIB))
        until(lambda: server.http.post("/generate", **large(2 * MIB)).status_code == 429)
        refused = server.http.post("/generate", **large(2 * MIB))
        check_error(refused, 429, code="rate_limit_exceeded")
        assert refused.headers["Retry-After"] == "1"
        assert server.http.post("/generate", **large(FREE_BYTES // 2)).status_code == 200
        form = {"audio": ("a.wav", b" " * 2 * MIB), "name": (None, "a"), "text": (None, "b")}
        check_error(server.http.post("/v1/audio/voices", files=form), 429)
    until(lambda: server.http.post("/generate", **large(2 * MIB)).status_code == 200)
    assert value(server, "requests_total", mode="whole", outcome="rejected") >= 2


def test_a_body_that_has_been_read_is_no_longer_counted(
    gate: Gate, start_server: StartServer
) -> None:
    server = start_server(
        server=ServerConfig(port=0, max_body_bytes=2 * MIB, max_body_bytes_total=2 * MIB)
    )
    gate.close()
    body = b" " * MIB + json.dumps({"text": "5", "streaming": True}).encode()
    with ExitStack() as stack:
        for number in range(1, 4):
            connection = stack.enter_context(connect(server))
            connection.sendall(
                HEAD.replace(b"Transfer-Encoding: chunked", b"Content-Length: %d" % len(body))
                + body
            )
            until(lambda count=number: server.client.open_requests == count)
        gate.open()


@pytest.mark.parametrize("route", [b"/generate", b"/nowhere", b"/v1/audio/voices"])
def test_a_body_over_the_limit_is_not_read_to_its_end(
    route: bytes, start_server: StartServer
) -> None:
    """The server answers and closes the connection, even if the client keeps sending."""
    server = start_server(
        server=ServerConfig(port=0, max_body_bytes=MIB, max_body_bytes_total=4 * MIB)
    )
    kind = b"multipart/form-data; boundary=x" if b"voices" in route else b"application/json"
    head = HEAD.replace(b"/generate", route).replace(b"application/json", kind)
    begin = time.monotonic()
    sent = 0
    with connect(server) as connection:
        connection.sendall(head)
        try:
            while sent < 256 * MIB:
                connection.sendall(chunk(MIB))
                sent += MIB
        except OSError:  # reset, or not accepted
            pass
        answer = connection.recv(65536)
    # The bytes in the sockets' buffers cannot be counted.
    assert sent <= MIB + LINGER_BYTES + 16 * MIB
    assert time.monotonic() - begin < LINGER_SECONDS + 2
    assert answer.startswith(b"HTTP/1.1 404" if b"nowhere" in route else b"HTTP/1.1 413")


def test_the_client_reads_why_its_body_was_refused(start_server: StartServer) -> None:
    server = start_server(server=ServerConfig(port=0, api_key=("secret",)))
    pieces = (b" " * MIB for _ in range(8))
    check_error(server.http.post("/generate", content=pieces), 401)
    assert server.http.get("/voices").status_code == 200
