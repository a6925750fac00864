"""DELETE /requests/{id} and DELETE /conversations/{id}."""

from __future__ import annotations

from litestar import delete
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery

from vox_serve.errors import NotFound
from vox_serve.server.fields import CONVERSATION
from vox_serve.server.openapi.operation import described
from vox_serve.server.owner import Owner
from vox_serve.server.requests import OpenRequests
from vox_serve.workers.engines import Engines


@delete(
    "/conversations/{conversation:str}",
    status_code=204,
    tags=["speech"],
    operation_class=described(400, 401, 403, 404, 503),
)
async def forget(
    engines: NamedDependency[Engines],
    owner: NamedDependency[Owner],
    conversation: FromPath[str],
    model: FromQuery[str | None] = None,
) -> None:
    """Forget a conversation; `model` is required if several models are served."""
    client = engines.choose(model)
    # Other names belong to long texts and sessions, which forget their own conversations.
    if not CONVERSATION.fullmatch(conversation) or not await client.forget(owner.own(conversation)):
        raise NotFound(f"unknown conversation {conversation[:128]!r}", "conversation")


@delete(
    "/requests/{request_name:str}",
    status_code=204,
    tags=["speech"],
    operation_class=described(401, 403, 404),
)
async def cancel(
    open_requests: NamedDependency[OpenRequests],
    owner: NamedDependency[Owner],
    request_name: FromPath[str],
) -> None:
    """Cancel the requests with this id, running or waiting; their responses are cut off."""
    if not open_requests.cancel(owner.own(request_name)):
        raise NotFound(f"no open request {request_name[:128]!r}", "id")
