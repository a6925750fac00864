"""uvicorn's HTTP protocol with deadlines, limited headers and our error shape.

Offers to upgrade to a protocol that the server does not speak (h2c, TLS) are ignored (RFC 9110,
7.8).  HTTP/1.0 clients do not get chunked encoding: closing the connection ends the response.

uvicorn waits forever for headers and bodies.  Here the headers must arrive within `read_timeout`
seconds after a connection is made (or, on a kept-alive connection, after their first byte), and the
body within the same time again.  A route that reads a body answers a slow one with 408 (see
`body.py`); this class closes connections on which no request arrives.  uvicorn also does not limit
headers or connections, answers malformed HTTP in plain text, and reads the rest of a refused body.
This module handles these too.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from functools import partial
from http import HTTPStatus
from typing import Any

import httptools
import msgspec
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from vox_serve.config import ServerConfig
from vox_serve.errors import Unavailable
from vox_serve.metrics import Metrics
from vox_serve.server.connections import BACKLOG, Connections, Place
from vox_serve.server.errors import error_object, error_response
from vox_serve.server.websocket.connection import WEBSOCKET, DrainingProtocol

GRACE_SECONDS = 1.0
"""Extra time for a body, so that the route can send its 408 before the connection is closed."""
MAX_HEADER_BYTES = 64 * 1024
"""Limit on a request line with its headers, and on the trailers of a chunked body."""
LINGER_SECONDS = 2.0
LINGER_BYTES = 2**20
"""How long, and how many bytes, a refused body is received and dropped.  If the connection were
closed at once, the client would see a reset and might never read the answer."""
NO_ROOM = "the server has no room for more connections; try again later"
SPARE_PATHS = ("/health", "/ready", "/metrics")
"""The paths that are answered on a spare place."""
OFFER = (b"upgrade", b"http2-settings")
"""Headers of an offer to upgrade to another protocol."""
log = logging.getLogger("vox_serve.server")


class UntilClose(RequestResponseCycle):
    """Answers HTTP/1.0, which has no chunks: a body of unknown length ends with the connection.

    A response that is cut resets the connection; otherwise it would look complete.
    """

    async def run_asgi(self, app: Any) -> None:
        await super().run_asgi(app)
        if self.response_started and not self.response_complete and not self.disconnected:
            self.transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
            self.transport.abort()

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            names = {name.lower() for name, _ in message.get("headers", ())}
            self.chunked_encoding = None if b"content-length" in names else False
            self._counted = b"content-length" in names
        elif not self._counted:
            self.expected_content_length = len(message.get("body", b""))
        await super().send(message)


class TimedProtocol(HttpToolsProtocol):
    """A uvicorn HTTP connection that is closed if a request takes too long to arrive.

    Args:
        read_timeout: seconds for the headers, and the same again for the body.
        connections: all open connections.
    """

    def __init__(
        self, *args: Any, read_timeout: float, connections: Connections, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._connections = connections
        self._place = Place.NONE
        self._dropped: int | None = None
        """Bytes dropped since a body was refused; None if no body was refused."""
        self._read_timeout = read_timeout
        self._deadline: asyncio.TimerHandle | None = None
        self._header_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._place = self._connections.take(transport)
        if self._place is Place.NONE:
            transport.abort()
            return
        self.app = partial(_answer_early, self.app)
        if self._place is Place.SPARE:
            self.app = partial(_answer_on_spare_place, self.app)
        self._expect(self._read_timeout)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.closed(self.transport)
        self._expect(None)
        self._unset_keepalive_if_required()  # uvicorn keeps it, and this object, after a reset
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._dropped is not None:
            self._dropped += len(data)
            if self._dropped > LINGER_BYTES:
                self.transport.pause_reading()
            return
        if self._deadline is None and not self._answering:
            self._expect(self._read_timeout)
        self._header_bytes += len(data)
        self._unset_keepalive_if_required()
        self._feed(data)
        if self._header_bytes > MAX_HEADER_BYTES and not self.transport.is_closing():
            self._refuse(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                f"request headers may have at most {MAX_HEADER_BYTES} bytes",
            )

    def _feed(self, data: bytes) -> None:
        """Parse.  The parser stops after the headers of a request that offers an upgrade."""
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as stop:
                if self._should_upgrade():
                    self.handle_websocket_upgrade()
                    return
                data = self._head_without_offer() + data[stop.args[0] :]
                # The old parser stops reading if the request has `Connection: close`.
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            except httptools.HttpParserError:
                self.send_400_response("Invalid HTTP request received.")
                return

    @property
    def _declines(self) -> bool:
        """Whether this request offers an upgrade that the server does not support."""
        offers = self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"
        return offers and not self._should_upgrade()

    def _head_without_offer(self) -> bytes:
        """The head just parsed, without the upgrade offer."""
        version = self.parser.get_http_version().encode()
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, version)]
        for name, value in self.headers:
            if name == b"connection":
                tokens = [token.strip() for token in value.split(b",")]
                kept = [token for token in tokens if token.lower() not in OFFER]
                lines += [b"connection: " + b", ".join(kept)] if kept else []
            elif name not in OFFER:
                lines.append(name + b": " + value)
        return b"\r\n".join([*lines, b"", b""])

    def send_400_response(self, msg: str) -> None:
        """uvicorn calls this for malformed HTTP."""
        self._refuse(HTTPStatus.BAD_REQUEST, msg)

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        """Send an error unless a response has begun or is due; then close the connection."""
        if not self._answering:
            error = error_object(status, message, status.name.lower())
            body = msgspec.json.encode({"error": error})
            head = b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body)
            line = STATUS_LINE[status]
            self.transport.write(line + head + b"connection: close\r\n\r\n" + body)
        self.transport.close()

    def on_body(self, body: bytes) -> None:
        self._header_bytes = 0
        super().on_body(body)

    def handle_websocket_upgrade(self) -> None:
        if self._place is Place.SPARE:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, NO_ROOM)
            return
        self._connections.works(self.transport)
        self._expect(None)
        super().handle_websocket_upgrade()

    def on_message_begin(self) -> None:
        if self._deadline is None:
            self._expect(self._read_timeout)
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        if self._declines:
            return
        self._expect(self._read_timeout + GRACE_SECONDS)
        self._header_bytes = 0
        super().on_headers_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        if cycle.scope["http_version"] == "1.0":
            cycle.__class__ = UntilClose  # uvicorn does not let us choose the class
        super()._start_asgi_task(cycle, app)

    def on_message_complete(self) -> None:
        if self._declines:
            return
        self._expect(None)
        self._header_bytes = 0
        self._connections.works(self.transport)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            return
        if not self._answering:
            self._connections.waits(self.transport)
        if self.cycle.response_complete and self.cycle.more_body:
            self._linger()

    def _linger(self) -> None:
        """Drop the rest of a refused body while the client reads the answer."""
        self._unset_keepalive_if_required()
        self._dropped = 0
        self.transport.write_eof()
        self._expect(LINGER_SECONDS)

    @property
    def _answering(self) -> bool:
        """Whether a request has arrived completely and its response is not complete."""
        cycle = self.cycle
        return cycle is not None and not cycle.more_body and not cycle.response_complete

    def _expect(self, seconds: float | None) -> None:
        """Set the deadline to `seconds` from now; None removes it."""
        if self._deadline is not None:
            self._deadline.cancel()
        later = self.loop.call_later
        self._deadline = None if seconds is None else later(seconds, self._expire)

    def _expire(self) -> None:
        if self._dropped is None and (self._answering or self.flow.read_paused):  # our delay
            self._expect(self._read_timeout)
            return
        self._deadline = None
        if self._dropped is not None:
            self.transport.abort()
            return
        log.debug("%s did not send a complete request within %g s", self.client, self._read_timeout)
        self.transport.close()


def uvicorn_settings(server: ServerConfig, metrics: Metrics | None = None) -> dict[str, Any]:
    """Settings of `uvicorn.Config` for HTTP and WebSocket connections.

    Args:
        metrics: where to count connections.

    Raises:
        ConfigError: as `Connections`.
    """
    connections = Connections(server, metrics)
    return {
        "http": partial(TimedProtocol, read_timeout=server.read_timeout, connections=connections),
        "backlog": BACKLOG,
        "timeout_keep_alive": server.keep_alive_timeout,
        **WEBSOCKET,
        "ws": partial(DrainingProtocol, closed=connections.closed),
    }


async def _answer_early(app: Any, scope: Any, receive: Any, send: Any) -> None:
    """Add `Connection: close` to an answer that is sent before the end of the body."""
    cycle = send.__self__

    async def send_early(message: Any) -> None:
        early = message["type"] == "http.response.start" and cycle.more_body
        if early:
            message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
        await send(message)
        if early:
            cycle.keep_alive = True  # otherwise uvicorn would close at once; `_linger` closes later

    await app(scope, receive, send_early)


async def _answer_on_spare_place(app: Any, scope: Any, receive: Any, send: Any) -> None:
    """Answer only `SPARE_PATHS`; refuse everything else."""
    if scope["path"] in SPARE_PATHS:
        await app(scope, receive, send)
        return
    answer = error_response(
        HTTPStatus.SERVICE_UNAVAILABLE, NO_ROOM, Unavailable.code, retry_after=1
    )
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    headers += [(name.lower().encode(), value.encode()) for name, value in answer.headers.items()]
    headers.append((b"content-length", str(len(answer.content)).encode()))
    await send({"type": "http.response.start", "status": answer.status_code, "headers": headers})
    await send({"type": "http.response.body", "body": answer.content})
