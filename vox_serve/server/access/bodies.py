"""Limits the size of each request's body, and the memory for all bodies together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from litestar.exceptions import HTTPException
from litestar.status_codes import HTTP_413_REQUEST_ENTITY_TOO_LARGE
from litestar.types import HTTPReceiveMessage, HTTPRequestEvent, Receive, Scope

from vox_serve.server.errors import TooMany

FREE_BYTES = 64 * 2**10
"""A body's first bytes are not counted: a connection's buffer takes as many anyway, and small
requests are accepted even when there is no memory for large ones."""


class Held:
    """The share of the total limit that one request's body uses."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self._received = 0
        self._counted = 0
        self.refusal: TooMany | HTTPException | None = None
        """Why the rest of the body was not received."""

    def take(self, message: HTTPRequestEvent) -> HTTPRequestEvent:
        """Count a piece of the body, or end the body if there is no room for the piece.

        The error is raised later, by `check`: Litestar closes the files of a form that ends too
        soon, but not if reading the form raises an error.
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
        """Release the memory; later calls do nothing."""
        self._bodies.held -= self._counted
        self._counted = 0


class Bodies:
    """The bodies of all open requests.

    Args:
        largest: the most bytes in one body.
        limit: the most bytes in all bodies together.
    """

    def __init__(self, largest: int, limit: int) -> None:
        self.largest = largest
        self.limit = limit
        self.held = 0

    @contextmanager
    def counted(self, scope: Scope, receive: Receive) -> Iterator[Receive]:
        """Wrap ASGI's `receive` to count the body until the context or `release` ends it."""
        held = scope["state"]["held"] = Held(self)

        async def receive_counted() -> HTTPReceiveMessage:
            message = cast("HTTPReceiveMessage", await receive())
            return held.take(message) if message["type"] == "http.request" else message

        try:
            yield cast("Receive", receive_counted)
        finally:
            held.release()


def check(scope: Scope) -> None:
    """Raise TooMany or HTTPException if the rest of the body was refused."""
    held: Held = scope["state"]["held"]
    if held.refusal is not None:
        raise held.refusal from None


def release(scope: Scope) -> None:
    """Stop counting a request's body, once everything needed has been taken from it."""
    held: Held = scope["state"]["held"]
    held.release()
