"""Many HTTP clients at once, over bare connections, so that each can misbehave in its own way."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import attrs

from tests.launched import Launched


@attrs.define
class Answer:
    """The answer to one request, and how it arrived."""

    status: int
    headers: dict[str, str]
    body: bytes = b""
    cut: bool = False
    """The body ended without a final chunk."""
    seconds: float = 0.0
    """Seconds until the headers arrived."""
    gaps: list[float] = attrs.field(factory=list)
    """Seconds between chunks."""


def request(path: str = "/generate", **body: Any) -> bytes:
    """The bytes of a POST."""
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


class Connection:
    """One connection to the server.

    Args:
        server: the server to connect to.
        receive_buffer: bytes that the kernel may buffer while the client does not read.
    """

    def __init__(self, server: Launched, receive_buffer: int | None = None) -> None:
        url = server.http.base_url
        self._address = (url.host, url.port)
        self._receive_buffer = receive_buffer

    async def __aenter__(self) -> Connection:
        plain = socket.socket()
        plain.setblocking(False)
        if self._receive_buffer is not None:  # before connecting, which sets the window
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_buffer)
        await asyncio.get_running_loop().sock_connect(plain, self._address)
        self._reader, self._writer = await asyncio.open_connection(sock=plain, limit=2**20)
        return self

    async def __aexit__(self, *error: object) -> None:
        self._writer.transport.abort()

    def send(self, data: bytes) -> None:
        self._sent = time.perf_counter()
        self._writer.write(data)

    async def closed(self) -> float:
        """Wait until the server closes it; returns the seconds since the last `send`."""
        try:
            while await self._reader.read(65536):
                pass
        except ConnectionError:
            pass
        return time.perf_counter() - self._sent

    async def head(self) -> Answer:
        """Read the status and the headers."""
        lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
        seconds = time.perf_counter() - self._sent
        return Answer(int(lines[0].split()[1]), headers, seconds=seconds)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The chunks of a body.  Raises IncompleteReadError or ConnectionError if it is cut."""
        while size := int(await self._reader.readuntil(b"\r\n"), 16):
            yield (await self._reader.readexactly(size + 2))[:-2]
        await self._reader.readexactly(2)

    async def body(self, answer: Answer) -> Answer:
        """Read the rest of an answer."""
        if "content-length" in answer.headers:
            answer.body = await self._reader.readexactly(int(answer.headers["content-length"]))
            return answer
        last = time.perf_counter()
        try:
            async for chunk in self.chunks():
                answer.body += chunk
                now = time.perf_counter()
                answer.gaps.append(now - last)
                last = now
        except (asyncio.IncompleteReadError, ConnectionError):
            answer.cut = True
        return answer

    async def answer(self) -> Answer:
        """Read the headers and the body."""
        return await self.body(await self.head())


async def ask(server: Launched, **body: Any) -> Answer:
    """POST /generate and read the answer."""
    async with Connection(server) as connection:
        connection.send(request(**body))
        return await connection.answer()
