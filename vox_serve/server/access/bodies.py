"""Bounds each request's body, and the memory that all of them take together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from litestar.exceptions import HTTPException
from litestar.status_codes import HTTP_413_REQUEST_ENTITY_TOO_LARGE
from litestar.types import HTTPReceiveMessage, HTTPRequestEvent, Receive, Scope

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
        self.refusal: TooMany | HTTPException | None = None
        """Why the rest of the body was not received."""

    def take(self, message: HTTPRequestEvent) -> HTTPRequestEvent:
        """Count a piece of the body, or end the body if there is no room for it.

        Litestar closes the files of a form that ends too soon, but not those of one whose reading
        raises; so the error waits for `check`.
        """
        size = len(message["body"])
        self._received += size
        more = max(0, self._received - FREE_BYTES) - self._counted
        if self._received > self._bodies.largest:
            self.refusal = HTTPException(
                f"a body may have {self._bodies.largest} bytes",
                status_code=HTTP_413_REQUEST_ENTITY_TOO_LARGE,
            )
        elif self._bodies.held + more > self._bodies.limit:
            self.refusal = TooMany(
                f"the bodies of open requests may have {self._bodies.limit} bytes together; "
                "try again later"
            )
        if self.refusal is not None:
            return {"type": "http.request", "body": b"", "more_body": False}
        self._counted += more
        self._bodies.held += more
        return message

    def release(self) -> None:
        """The body has been read and dropped; later calls do nothing."""
        self._bodies.held -= self._counted
        self._counted = 0


class Bodies:
    """The bodies of all open requests.

    Args:
        largest: bytes that one may have.
        limit: bytes that all may have together.
    """

    def __init__(self, largest: int, limit: int) -> None:
        self.largest = largest
        self.limit = limit
        self.held = 0

    @contextmanager
    def counted(self, scope: Scope, receive: Receive) -> Iterator[Receive]:
        """ASGI's `receive`, which counts the body; `release` ends that early."""
        held = scope["state"]["held"] = Held(self)

        async def receive_counted() -> HTTPReceiveMessage:
            message = cast("HTTPReceiveMessage", await receive())
            return held.take(message) if message["type"] == "http.request" else message

        try:
            yield cast("Receive", receive_counted)
        finally:
            held.release()


def check(scope: Scope) -> None:
    """Raise TooMany or HTTPException if the body was not received to its end."""
    held: Held = scope["state"]["held"]
    if held.refusal is not None:
        raise held.refusal from None


def release(scope: Scope) -> None:
    """Stop counting the body of a request: what was needed of it has been taken."""
    held: Held = scope["state"]["held"]
    held.release()
