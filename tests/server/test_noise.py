"""Invalid input from clients does not fill the log."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from websockets.frames import Frame, Opcode

from tests.conftest import RunningServer
from vox_serve.logs import Lines, LogSettings

UPGRADE = (
    b"GET /v1/audio/stream HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n%s\r\n"
)
BODY = b"Content-Length: 3\r\n\r\nabc"
POST = b"POST /generate HTTP/1.1\r\nHost: x\r\n"


def frame(opcode: Opcode, data: bytes, last: bool = True) -> bytes:
    return Frame(opcode, data, last).serialize(mask=True)


START = frame(Opcode.TEXT, b'{"type": "start"}')
BAD = frame(Opcode.TEXT, b'\xff\xfe{"type"')


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture, tone_server: RunningServer) -> Iterator[None]:
    """The log has no error or traceback.  For the limit on warnings, see test_logs.py."""
    with caplog.at_level(logging.INFO):
        yield
        tone_server.wait_idle()
    loud = [one for one in caplog.records if one.exc_info or one.levelno >= logging.ERROR]
    assert [Lines(LogSettings(text=True)).format(one) for one in loud] == []
    assert "secret" not in caplog.text


def connect(server: RunningServer) -> socket.socket:
    address = urlsplit(server.url)
    return socket.create_connection((address.hostname, address.port), timeout=10)


def closes(server: RunningServer, connection: socket.socket) -> bool:
    """Receive until the server closes the connection; returns whether it still serves."""
    while connection.recv(65536):
        pass
    return server.http.get("/voices").status_code == 200


@pytest.mark.parametrize(
    "frames",
    [
        (BAD,),
        (START, BAD),
        (BAD, START),
        (BAD, BAD),
        (START, BAD, START, BAD),
        (frame(Opcode.TEXT, b"\xff", last=False), frame(Opcode.CONT, b"x")),
        (b"\xff\xff\xff",),
        (frame(Opcode.CLOSE, b"\x03\xe8\xff\xff"),),
        (START, frame(Opcode.CLOSE, b"\x03")),
        (b"\x89\xfe\x00\x7e" + bytes(130),),
        (START, frame(Opcode.CONT, b"x")),
        (START, b"\x81\x05unmasked"),
    ],
    ids=range(12),
)
def test_invalid_websocket_frames_cause_no_traceback(
    tone_server: RunningServer, frames: tuple[bytes, ...]
) -> None:
    with connect(tone_server) as connection:
        connection.sendall(UPGRADE % b"")
        assert connection.recv(4096).startswith(b"HTTP/1.1 101 ")
        connection.sendall(b"".join(frames))
        assert closes(tone_server, connection)


@pytest.mark.parametrize(
    "data",
    [
        b"GET /%ff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /%00 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET // HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http://a/b HTTP/1.1\r\nHost: x\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /voices HTTP/1.1\r\nHost: \xff\r\nOrigin: \xff\xfe\r\nX-Api-Key: \xff\r\n\r\n",
        b"GET /v1/audio/voices/%ff?model=%ff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"DELETE /requests/%0a%0d HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        POST + b"Content-Length: abc\r\n\r\n",
        POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        POST + b"Content-Type: \xff/\xff; charset=\xff\r\n" + BODY,
        POST + b"Content-Type: multipart/form-data; boundary=\xff\r\n" + BODY,
        UPGRADE % b"X-A: \xc3\xff\r\n",
        UPGRADE.replace(b"Host: x", b"Host: evil.example") % b"",
        UPGRADE.replace(b"Version: 13", b"Version: secret") % b"",
        UPGRADE.replace(b"/stream", b"/stream?secret") % b"Origin: https://evil.example\r\n",
    ],
    ids=range(19),
)
def test_invalid_http_causes_no_traceback(tone_server: RunningServer, data: bytes) -> None:
    with connect(tone_server) as connection:
        connection.sendall(data)
        assert connection.recv(65536).startswith(b"HTTP/1.1 ")
    assert tone_server.http.get("/voices").status_code == 200


def test_a_websocket_causes_no_log_lines_of_uvicorn(
    tone_server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    path = b"/v1/audio/stream?secret"
    with connect(tone_server) as connection:
        connection.sendall(UPGRADE.replace(b"/v1/audio/stream", path) % b"")
        assert connection.recv(4096).startswith(b"HTTP/1.1 101 ")
    assert [one for one in caplog.records if one.name.startswith("uvicorn")] == []
