"""Request ids, and the open requests by id."""

from __future__ import annotations

import re
import uuid
from typing import Protocol

from litestar.types import Scope

from vox_serve import logs
from vox_serve.server import traces

REQUEST_ID = re.compile(r"[A-Za-z0-9_.:=-]{1,128}")


def request_id(scope: Scope) -> str:
    """The request's id: the one in X-Request-Id if it is valid, else a new one.

    The first call attaches the id to later log records, and the request to the client's trace.

    An invalid id is replaced instead of rejected, because a proxy may have set it without the
    client's knowledge.
    """
    found = scope["state"].get("request_id")
    if found is None:
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        text = given.decode("latin-1")
        found = text if REQUEST_ID.fullmatch(text) else uuid.uuid4().hex
        scope["state"]["request_id"] = found
        logs.begin(found)
        traces.begin(scope["headers"])
    return str(found)


class Cancellable(Protocol):
    """An open request or session."""

    def cancel(self) -> None:
        """End it on behalf of another connection."""


class OpenRequests:
    """The open requests by id.

    Several may share an id: a proxy that retries a request sends the same id again.
    """

    def __init__(self) -> None:
        self._open: dict[str, set[Cancellable]] = {}

    def add(self, name: str, one: Cancellable) -> None:
        self._open.setdefault(name, set()).add(one)

    def remove(self, name: str, one: Cancellable) -> None:
        """Remove a request, which must be open."""
        self._open[name].remove(one)
        if not self._open[name]:
            del self._open[name]

    def cancel(self, name: str) -> bool:
        """End all requests with this id; False if there are none."""
        found = tuple(self._open.get(name, ()))
        for one in found:
            one.cancel()
        return bool(found)
