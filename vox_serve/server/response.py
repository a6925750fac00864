"""Sends one request's audio, as it is generated or as a whole file."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from litestar.response import Response
from litestar.types import Receive, Scope, Send

from vox_serve.errors import RequestError
from vox_serve.server.account import Account
from vox_serve.server.encoding import Encoding
from vox_serve.server.errors import ClientGone
from vox_serve.server.stream import AudioStream, unless_gone
from vox_serve.workers.interface import EngineClient

FILE_PIECE = 2**18
"""Bytes of a whole file that are sent at once."""
log = logging.getLogger("vox_serve.requests")


class EncodedStream:
    """One request's audio in the requested format, in pieces as they are generated.

    Args:
        stream: the PCM.
        encoding: encodes it.
    """

    def __init__(self, stream: AudioStream, encoding: Encoding) -> None:
        self.stream = stream
        self._encoding = encoding
        self._ended = False

    async def next(self) -> bytes | None:
        """The next piece; None after the last.  The first piece contains audio, not only a header.

        Raises:
            RequestError: as `AudioStream.next`.
        """
        piece = b""
        while not self._ended and not piece:
            pcm = await self.stream.next()
            if pcm is None:
                self._ended = True
                piece = self._encoding.finish()
            else:
                with self.stream.account.busy("encode"):
                    piece = await self._encoding.encode(pcm)
        return piece or None

    def close(self, error: BaseException | None) -> None:
        """End the request; later calls do nothing.  `error` is None if everything was sent."""
        self.stream.close(error)
        self._encoding.close()


class Framing:
    """How pieces of audio are written to a response body; here unchanged, one after another.

    Args:
        media_type: Content-Type.
    """

    def __init__(self, media_type: str) -> None:
        self.media_type = media_type

    def piece(self, audio: bytes) -> bytes:
        return audio

    def end(self, stream: AudioStream) -> bytes:
        """Bytes to send after the last piece of a complete response."""
        return b""

    def failure(self, error: RequestError) -> bytes:
        """Bytes to send before a response is cut."""
        return b""


class HeadersOnly(Response[bytes]):
    """The answer to HEAD: the headers of the answer to GET."""

    def __init__(self, media_type: str, headers: Mapping[str, str]) -> None:
        super().__init__(b"", status_code=200, media_type=media_type, headers=headers)
        self._sent = [(b"content-type", media_type.encode())]
        self._sent += [(name.lower().encode(), value.encode()) for name, value in headers.items()]

    def to_asgi_response(self, *args: Any, **kwargs: Any) -> Any:
        """Litestar's default would set Content-Length to 0."""
        return self._respond

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self._sent})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class AudioResponse(Response[bytes]):
    """Sends audio, and closes its request.

    A failure after the status ends the connection before the end of the body, so that clients do
    not mistake cut audio for complete audio.

    Args:
        audio: what is closed at the end.
        account: of the request.
        client: the engine, for its time limit and metrics.
    """

    def __init__(
        self,
        audio: EncodedStream | AudioStream,
        account: Account,
        client: EngineClient,
        media_type: str,
        headers: Mapping[str, str],
    ) -> None:
        super().__init__(b"", status_code=200, media_type=media_type, headers=headers)
        self._audio = audio
        self._account = account
        self._client = client
        self._sent = [(b"content-type", media_type.encode())]
        self._sent += [(k.lower().encode(), v.encode()) for k, v in headers.items()]

    def to_asgi_response(self, *args: Any, **kwargs: Any) -> Any:
        """Litestar calls what this returns to send the response."""
        return self._respond

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self._sent})
            await self._send_all(receive, send)
            self._audio.close(None)
        except Exception as error:
            expected = isinstance(error, ClientGone | RequestError)
            level = logging.DEBUG if expected else logging.ERROR
            kind = type(error).__name__
            log.log(level, "the response was cut: %s", kind, exc_info=None if expected else error)
            self._audio.close(error)
            self._count_cut(scope)
        finally:
            self._audio.close(ClientGone())

    def _count_cut(self, scope: Scope) -> None:
        template = str(scope.get("path_template", ""))
        responses = self._client.metrics.http_responses_total
        responses.labels(self._client.model, template, "cut").inc()

    async def _send_all(self, receive: Receive, send: Send) -> None:
        """Send the body."""
        raise NotImplementedError

    async def _send(self, send: Send, body: bytes, more: bool = True) -> None:
        if more and not body:
            return
        try:
            with self._account.busy("send"):
                async with asyncio.timeout(self._client.server.send_timeout):
                    await send({"type": "http.response.body", "body": body, "more_body": more})
        except (TimeoutError, OSError):
            raise ClientGone from None


class StreamResponse(AudioResponse):
    """Sends a stream as it is generated, in chunks.

    Args:
        stream: the audio, after its first piece has been taken.
        first: that piece; None if there is no audio.
        framing: how pieces are written to the body.
    """

    def __init__(
        self,
        stream: EncodedStream,
        first: bytes | None,
        framing: Framing,
        client: EngineClient,
        headers: Mapping[str, str],
    ) -> None:
        super().__init__(stream, stream.stream.account, client, framing.media_type, headers)
        self._stream = stream
        self._first = first
        self._framing = framing

    async def _send_all(self, receive: Receive, send: Send) -> None:
        piece = self._first
        while piece is not None:
            await self._send(send, self._framing.piece(piece))
            try:
                piece = await unless_gone(receive, self._stream.next())
            except RequestError as error:
                await self._send(send, self._framing.failure(error))
                raise
        await self._send(send, self._framing.end(self._stream.stream))
        await self._send(send, b"", more=False)


class FileResponse(AudioResponse):
    """Sends a whole file, in pieces, so that a client that does not read it is noticed."""

    def __init__(
        self,
        stream: AudioStream,
        content: bytes,
        media_type: str,
        client: EngineClient,
        headers: Mapping[str, str],
    ) -> None:
        headers = {**headers, "Content-Length": str(len(content))}
        super().__init__(stream, stream.account, client, media_type, headers)
        self._content = content

    async def _send_all(self, receive: Receive, send: Send) -> None:
        *pieces, last = range(0, len(self._content), FILE_PIECE) or (0,)
        for start in pieces:
            await self._send(send, self._content[start : start + FILE_PIECE])
        await self._send(send, self._content[last:], more=False)
