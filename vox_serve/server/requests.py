"""Request ids, and the requests that are open under them."""

from __future__ import annotations

import re
import uuid
from typing import Protocol

from litestar.types import Scope

from vox_serve import logs
from vox_serve.server import traces

REQUEST_ID = re.compile(r"[A-Za-z0-9_.:=-]{1,128}")


def request_id(scope: Scope) -> str:
    """The request's id: the client's own, if X-Request-Id holds one that will do.

    From the first call on the log names it, and its trace is the client's.

    One that will not do is replaced, not refused: often a proxy has set it, and the client
    knows nothing of it.
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
    """A request or a session that has not ended."""

    def cancel(self) -> None:
        """End it on behalf of another."""


class OpenRequests:
    """Several may have one id: a proxy sends its own with each try of a request."""

    def __init__(self) -> None:
        self._open: dict[str, set[Cancellable]] = {}

    def add(self, name: str, one: Cancellable) -> None:
        self._open.setdefault(name, set()).add(one)

    def remove(self, name: str, one: Cancellable) -> None:
        """Forget one; it must be there."""
        self._open[name].remove(one)
        if not self._open[name]:
            del self._open[name]

    def cancel(self, name: str) -> bool:
        """End all that have this id; False if there is none."""
        found = tuple(self._open.get(name, ()))
        for one in found:
            one.cancel()
        return bool(found)
