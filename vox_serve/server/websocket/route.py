"""WebSocket /v1/audio/stream: receives text as it is written, sends speech as it is generated.

This module handles the beginning and end of a connection: first message, close codes.
`session.py` handles the speech in between.
"""

from __future__ import annotations

import asyncio
import logging

import attrs
from litestar import asgi
from litestar.enums import ScopeType
from litestar.exceptions import ClientException
from litestar.handlers import ASGIRouteHandler
from litestar.types import Receive, Scope, Send

from vox_serve.audio.formats import AudioFormat, find_format
from vox_serve.errors import InvalidRequest, NotFound, RequestError, Unavailable, UnspeakableText
from vox_serve.logs import begin
from vox_serve.messages import SpeechRequest
from vox_serve.server.access.middleware import SUBPROTOCOL, refuse_handshake
from vox_serve.server.account import Account
from vox_serve.server.errors import (
    ClientGone,
    GoingAway,
    InternalError,
    answer_to,
    meaning,
)
from vox_serve.server.foreign import START
from vox_serve.server.owner import Owner, owner_of
from vox_serve.server.requests import OpenRequests, request_id
from vox_serve.server.speech import check_voice, given_reading, given_sampling
from vox_serve.server.voices.aliases import voice_of
from vox_serve.server.websocket.connection import Connection, ServerEnds, Start
from vox_serve.server.websocket.session import Session
from vox_serve.workers.engines import Engines
from vox_serve.workers.interface import EngineClient

PATH = "/v1/audio/stream"
log = logging.getLogger("vox_serve.server")


def route(engines: Engines, opened: OpenRequests) -> ASGIRouteHandler:
    """The WebSocket's handler."""

    @asgi(PATH, copy_scope=False)
    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        await _serve(engines, opened, scope, receive, send)

    return stream


async def _serve(
    engines: Engines, opened: OpenRequests, scope: Scope, receive: Receive, send: Send
) -> None:
    """Serve one WebSocket until it closes."""
    if scope["type"] != ScopeType.WEBSOCKET:
        raise ClientException(
            "this URL accepts only WebSocket connections",
            status_code=426,
            headers={"Upgrade": "websocket"},
        )
    request_id(scope)
    await receive()  # websocket.connect
    try:
        if not any(client.accepts for client in engines):
            problem = Unavailable(f"the server is {engines.state.value}")
            await refuse_handshake(send, answer_to(problem))
            return
        chosen = SUBPROTOCOL if SUBPROTOCOL in scope["subprotocols"] else None
        await send({"type": "websocket.accept", "subprotocol": chosen, "headers": []})
        names = None if engines.server.strict_fields else START
        connection = Connection(receive, send, engines.server.send_timeout, names)
        await _converse(connection, engines, opened, owner_of(scope))
    except (ClientGone, OSError):
        log.debug("a client of %s left", PATH)


async def _converse(
    connection: Connection, engines: Engines, opened: OpenRequests, owner: Owner
) -> None:
    """Run a session and report why it ends.  Raises ClientGone."""
    try:
        session = await _begin(connection, engines, opened, owner)
        begin(session.id)
        await session.run()
    except RequestError as error:
        await connection.send_error(error, fatal=True)
        await connection.close(meaning(error).close, error.code)
    except ClientGone:
        raise
    except Exception:
        log.exception("unhandled error on %s", PATH)
        internal = InternalError("internal error; see the server's log")
        await connection.send_error(internal, fatal=True)
        await connection.close(meaning(internal).close, internal.code)
    else:
        await connection.close(1000, "done")


async def _begin(
    connection: Connection, engines: Engines, opened: OpenRequests, owner: Owner
) -> Session:
    """Receive the first message and make its session.

    Raises:
        RequestError: the message is not a `start`, or cannot be served.
        ClientGone: the client left before it sent a message.
    """
    account = Account("", engines.metrics, "stream", owner=owner)
    try:
        start = await _first(connection, engines.server.request_timeout)
        audio_format, template = parse_start(start)
        client = engines.choose(start.model)
        account.metrics = client.metrics
        info = client.admit()
        template = attrs.evolve(template, sampling=given_sampling(start, info))
        if template.voice is not None:
            template = attrs.evolve(template, voice=voice_of(client, template.voice, owner))
        _check_speaker(start.speaker, client)
        if "language" not in info.parameters and not client.front_end.speaks(start.language):
            connection.ignored.append("language")
        if start.conversation is not None and not info.takes_context:
            raise UnspeakableText("this model does not support conversations", "conversation")
        if start.conversation is not None:
            template = attrs.evolve(template, conversation=owner.own(start.conversation))
        return Session(connection, client, info, template, audio_format, opened, owner)
    except GoingAway:
        raise
    except RequestError as error:
        account.end(error)
        raise


async def _first(connection: Connection, seconds: float) -> Start:
    try:
        async with asyncio.timeout(seconds):
            message = await connection.receive()
    except TimeoutError:
        raise InvalidRequest(f"no message arrived for {seconds:g} seconds") from None
    if isinstance(message, ServerEnds):
        raise GoingAway("the server is shutting down")
    if not isinstance(message, Start):
        raise InvalidRequest("the first message must be start", "type")
    return message


def parse_start(start: Start) -> tuple[AudioFormat, SpeechRequest]:
    """The audio format and the request template of a `start`.  Raises InvalidRequest."""
    check_voice(start)
    template = SpeechRequest(
        id="",
        text="",
        speaker=start.speaker or 0,
        voice=start.voice,
        **given_reading(start),
        max_seconds=start.max_seconds,
        conversation=start.conversation,
    )
    return find_format(start.format, "format").at(start.sample_rate), template


def _check_speaker(speaker: int | None, client: EngineClient) -> None:
    """Check the speaker now; the engine would check only with the first sentence."""
    if speaker is not None and speaker not in dict(client.voices).values():
        raise NotFound(f"unknown speaker {speaker}", "speaker")
