"""Bounds the memory that all request bodies take together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from litestar.types import HTTPReceiveMessage, Receive, Scope

from vox_serve.server.errors import TooMany

FREE_BYTES = 64 * 2**10
"""A body's first bytes are not counted: a connection's buffer holds as many anyway, and ordinary
requests are let in while large ones have to wait."""


class Held:
    """What one request's body holds of the bound."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self._received = 0
        self._counted = 0

    def add(self, size: int) -> None:
        """Count bytes that have come in.  Raises TooMany."""
        self._received += size
        more = max(0, self._received - FREE_BYTES) - self._counted
        if self._bodies.held + more > self._bodies.limit:
            raise TooMany(
                f"the bodies of open requests may have {self._bodies.limit} bytes together; "
                "try again later"
            )
        self._counted += more
        self._bodies.held += more

    def release(self) -> None:
        """The body has been read and dropped; later calls do nothing."""
        self._bodies.held -= self._counted
        self._counted = 0


class Bodies:
    """The bodies of all open requests.

    Args:
        limit: bytes that they may have together.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0

    @contextmanager
    def counted(self, scope: Scope, receive: Receive) -> Iterator[Receive]:
        """ASGI's `receive`, which counts the body; `release` ends that early."""
        held = scope["state"]["held"] = Held(self)

        async def receive_counted() -> HTTPReceiveMessage:
            message = cast("HTTPReceiveMessage", await receive())
            if message["type"] == "http.request":
                held.add(len(message["body"]))
            return message

        try:
            yield cast("Receive", receive_counted)
        finally:
            held.release()


def release(scope: Scope) -> None:
    """Stop counting the body of a request: what was needed of it has been taken."""
    held: Held = scope["state"]["held"]
    held.release()
