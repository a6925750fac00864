"""DELETE /requests/{id} and DELETE /conversations/{id}: what a client can end."""

from __future__ import annotations

from litestar import delete
from litestar.datastructures import State
from litestar.params import FromPath, FromQuery

from vox_serve.errors import NotFound
from vox_serve.server.requests import OpenRequests
from vox_serve.server.speech import CONVERSATION
from vox_serve.workers.engines import Engines


@delete("/conversations/{conversation:str}", status_code=204)
async def forget(
    state: State, conversation: FromPath[str], model: FromQuery[str | None] = None
) -> None:
    """Forget a conversation; `model` says whose, if several are served."""
    engines: Engines = state.engines
    client = engines.choose(model)
    # A name that no client can give is that of a long text or session: its own business.
    if not CONVERSATION.fullmatch(conversation) or not await client.forget(conversation):
        raise NotFound(f"unknown conversation {conversation[:128]!r}", "conversation")


@delete("/requests/{request_name:str}", status_code=204)
async def cancel(state: State, request_name: FromPath[str]) -> None:
    """End what is being spoken or waits under this id; its answer is cut."""
    requests: OpenRequests = state.requests
    if not requests.cancel(request_name):
        raise NotFound(f"no open request {request_name[:128]!r}", "id")
