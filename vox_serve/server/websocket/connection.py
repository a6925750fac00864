"""A session's WebSocket: receives messages, sends events and audio.

Defines the protocol's messages and their fields.  Does not deal with speech.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, cast

import msgspec
import uvicorn.protocols.websockets.websockets_sansio_impl as uvicorn_websockets
from litestar.types import Message as AsgiMessage
from litestar.types import Receive, Send
from uvicorn.protocols.utils import ClientDisconnected

from vox_serve.errors import RequestError
from vox_serve.server.body import OutOfBounds, decode, invalid
from vox_serve.server.errors import BinaryMessage, ClientGone, Malformed, error_fields
from vox_serve.server.speech import VoiceFields

MAX_MESSAGE_BYTES = 128 * 2**10
"""Limit on a client's message; a longer one closes the connection with code 1009."""
SERVICE_RESTART = 1012
log = logging.getLogger("vox_serve.websocket")
log.setLevel(logging.WARNING)


class Start(VoiceFields, tag="start", forbid_unknown_fields=True, kw_only=True):
    """The first message.  docs/http-api.md describes the fields of all messages."""

    format: str = "pcm"


class Text(msgspec.Struct, tag="text", forbid_unknown_fields=True):
    text: str


class Flush(msgspec.Struct, tag="flush", forbid_unknown_fields=True):
    pass


class Cancel(msgspec.Struct, tag="cancel", forbid_unknown_fields=True):
    pass


class End(msgspec.Struct, tag="end", forbid_unknown_fields=True):
    pass


class ServerEnds:
    """Received instead of a client's message when the server begins to shut down."""


Message = Start | Text | Flush | Cancel | End
_decoder: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)


class Connection:
    """An accepted WebSocket.

    Args:
        receive, send: the ASGI functions.
        send_timeout: seconds for which the client may leave data unread.
        foreign: other servers' names for the fields of `start`; None refuses them.
    """

    def __init__(
        self,
        receive: Receive,
        send: Send,
        send_timeout: float,
        foreign: Mapping[str, str] | None = None,
    ) -> None:
        self.ignored: list[str] = []
        """The fields of `start` that had no effect."""
        self._foreign = foreign
        self._receive = receive
        self._asgi_send = send
        self._send_timeout = send_timeout

    async def receive(self) -> Message | ServerEnds:
        """The next message.

        Raises:
            ClientGone: the connection is closed.
            BinaryMessage, Malformed: the client sent something that is not a message.
            OutOfBounds: a field's value is not allowed.
        """
        event = cast("dict[str, Any]", await self._receive())
        if event["type"] == "websocket.disconnect":
            if event.get("code") == SERVICE_RESTART:
                return ServerEnds()
            raise ClientGone
        if event.get("text") is None:
            raise BinaryMessage("messages must be JSON in text frames, not binary frames")
        try:
            message, ignored = decode(event["text"].encode(), _decoder, self._foreign)
            self.ignored += ignored
            return message
        except msgspec.ValidationError as error:
            problem = invalid(error, Start)  # the only message whose fields have bounds
            if isinstance(problem, OutOfBounds):
                raise problem from error
            raise Malformed(problem.message, problem.param) from error
        except msgspec.DecodeError as error:
            raise Malformed(f"the message is not JSON: {error}") from error
        except RecursionError:
            raise Malformed("the message is nested too deeply") from None

    async def send_event(self, type: str, **fields: object) -> None:
        """Send an event.  Raises ClientGone."""
        text = msgspec.json.encode({"type": type, **fields}).decode()
        await self._send({"type": "websocket.send", "bytes": None, "text": text})

    async def send_error(self, error: RequestError, fatal: bool, **fields: object) -> None:
        """Send an error in the common shape.  Raises ClientGone."""
        await self.send_event("error", fatal=fatal, error=error_fields(error), **fields)

    async def send_audio(self, data: bytes) -> None:
        """Send audio, unless it is empty.  Raises ClientGone."""
        if data:
            await self._send({"type": "websocket.send", "bytes": data, "text": None})

    async def close(self, code: int, reason: str) -> None:
        """Begin the closing handshake.  Raises ClientGone."""
        await self._send({"type": "websocket.close", "code": code, "reason": reason})

    async def _send(self, message: AsgiMessage) -> None:
        try:
            async with asyncio.timeout(self._send_timeout):
                await self._asgi_send(message)
        except (TimeoutError, OSError):
            raise ClientGone from None


class DrainingProtocol(uvicorn_websockets.WebSocketsSansIOProtocol):
    """A uvicorn WebSocket that lets a session finish at shutdown.

    uvicorn's protocol closes the connection at once.  This one only notifies the session, which
    then closes the connection; uvicorn waits for it as long as for HTTP responses.

    Args:
        closed: called with the transport when a connection is closed.
    """

    def __init__(
        self, *args: Any, closed: Callable[[asyncio.BaseTransport], None], **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._closed = closed
        # uvicorn logs lines for each connection that contain what the client sent.
        self.logger = self.conn.logger = log

    async def send(self, message: Any) -> None:
        if self.handshake_complete and self.close_sent:  # closed because of what the client sent
            raise ClientDisconnected
        await super().send(message)
        if message["type"] == "websocket.http.response.body":
            self.handshake_complete = True  # refused; uvicorn would report a missing response

    def send_receive_event_to_app(self) -> None:
        """Pass a message on, unless its text is not UTF-8: uvicorn would log a traceback."""
        if self.curr_msg_data_type == "text" and not _is_text(b"".join(self.frames)):
            self.frames = []
            if not self.close_sent:
                self.conn.send_close(1007)
                self.handle_parser_exception()
            return
        super().send_receive_event_to_app()

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed(self.transport)
        super().connection_lost(exc)

    def shutdown(self) -> None:
        if self.handshake_complete and not self.close_sent:
            self.queue.put_nowait({"type": "websocket.disconnect", "code": SERVICE_RESTART})
        else:
            super().shutdown()


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


WEBSOCKET: dict[str, Any] = {
    "ws_max_size": MAX_MESSAGE_BYTES,
    "ws_per_message_deflate": False,  # audio hardly compresses, and compressing takes time
    # A ping waits behind audio that the client has not read yet, so a late reply means nothing.
    # The send timeout detects clients that are gone.
    "ws_ping_timeout": None,
}
"""Settings of `uvicorn.Config` for these connections."""
