"""What requests are called, by their clients or by us, and DELETE /requests/{id}."""

from __future__ import annotations

import re
import uuid

from litestar import delete
from litestar.datastructures import State
from litestar.params import FromPath
from litestar.types import Scope

from vox_serve.errors import NotFound
from vox_serve.server.open_requests import OpenRequests

REQUEST_ID = re.compile(r"[A-Za-z0-9_.:=-]{1,128}")


def request_id(scope: Scope) -> str:
    """The request's id: the client's own, if X-Request-Id holds one that will do.

    One that will not do is replaced, not refused: often a proxy has set it, and the client
    knows nothing of it.
    """
    found = scope["state"].get("request_id")
    if found is None:
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        text = given.decode("latin-1")
        found = text if REQUEST_ID.fullmatch(text) else uuid.uuid4().hex
        scope["state"]["request_id"] = found
    return str(found)


@delete("/requests/{request_name:str}", status_code=204)
async def cancel(state: State, request_name: FromPath[str]) -> None:
    """End what is being spoken or waits under this id; its answer is cut."""
    requests: OpenRequests = state.requests
    if not requests.cancel(request_name):
        raise NotFound(f"no open request {request_name[:128]!r}", "id")
