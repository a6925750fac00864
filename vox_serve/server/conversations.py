"""DELETE /conversations/{id}: forget what was said."""

from __future__ import annotations

from litestar import delete
from litestar.datastructures import State
from litestar.params import FromPath, FromQuery

from vox_serve.engine.engines import Engines
from vox_serve.errors import NotFound
from vox_serve.server.speech import CONVERSATION


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
