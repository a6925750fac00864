"""uvicorn's HTTP protocol with deadlines, bounded headers and our error shape.

uvicorn waits forever for headers and bodies.  Here the headers must arrive within `read_timeout`
seconds after a connection is made (or, on a connection that is kept open, after their first byte),
and the body within the same time again.  A route that reads a body answers a slow one with 408 (see
`body.py`); this class closes the connections on which no request arrives.  uvicorn also sets no
limit on headers and answers malformed HTTP in plain text; both are handled here.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from http import HTTPStatus
from typing import Any

import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from vox_serve.config import ServerConfig
from vox_serve.server.errors import error_object
from vox_serve.server.websocket.connection import WEBSOCKET

GRACE_SECONDS = 1.0
"""Extra time for a body, so that the 408 is sent before the connection is closed."""
MAX_HEADER_BYTES = 64 * 1024
"""Limit on a request line with its headers, and on the trailers of a chunked body."""
log = logging.getLogger("vox_serve.server")


class TimedProtocol(HttpToolsProtocol):
    """A uvicorn HTTP connection that is closed if a request takes too long to arrive.

    Args:
        read_timeout: seconds for the headers, and the same again for the body.
    """

    def __init__(self, *args: Any, read_timeout: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._read_timeout = read_timeout
        self._deadline: asyncio.TimerHandle | None = None
        self._header_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect(self._read_timeout)

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._deadline is None and not self._answering:
            self._expect(self._read_timeout)
        self._header_bytes += len(data)
        super().data_received(data)
        if self._header_bytes > MAX_HEADER_BYTES and not self.transport.is_closing():
            self._refuse(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                f"request headers may have at most {MAX_HEADER_BYTES} bytes",
            )

    def send_400_response(self, msg: str) -> None:
        """uvicorn calls this for malformed HTTP."""
        self._refuse(HTTPStatus.BAD_REQUEST, msg)

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        """Close the connection; send an error first unless a response is under way."""
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
        self._expect(None)
        super().handle_websocket_upgrade()

    def on_message_begin(self) -> None:
        if self._deadline is None:
            self._expect(self._read_timeout)
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._expect(self._read_timeout + GRACE_SECONDS)
        self._header_bytes = 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._expect(None)
        self._header_bytes = 0
        super().on_message_complete()

    @property
    def _answering(self) -> bool:
        """Has a request arrived whose response is not complete?"""
        cycle = self.cycle
        return cycle is not None and not cycle.more_body and not cycle.response_complete

    def _expect(self, seconds: float | None) -> None:
        """Replace the deadline by one in `seconds`; None removes it."""
        if self._deadline is not None:
            self._deadline.cancel()
        later = self.loop.call_later
        self._deadline = None if seconds is None else later(seconds, self._expire)

    def _expire(self) -> None:
        if self._answering or self.flow.read_paused:  # the delay is ours
            self._expect(self._read_timeout)
            return
        self._deadline = None
        log.debug("%s did not send a complete request within %g s", self.client, self._read_timeout)
        self.transport.close()


def uvicorn_settings(server: ServerConfig) -> dict[str, Any]:
    """Settings of `uvicorn.Config` for both kinds of connection."""
    return {"http": partial(TimedProtocol, read_timeout=server.read_timeout), **WEBSOCKET}
