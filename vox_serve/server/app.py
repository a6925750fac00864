"""The Litestar application: routes, error handlers and response counts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

from litestar import Litestar
from litestar.config.cors import CORSConfig
from litestar.di import Provide
from litestar.exceptions import HTTPException
from litestar.types import Message, Scope

from vox_serve.config import ServerConfig
from vox_serve.errors import RequestError
from vox_serve.server import errors
from vox_serve.server.access.keys import Keys
from vox_serve.server.access.middleware import Access
from vox_serve.server.openapi import route as openapi
from vox_serve.server.openapi.document import HEADERS, Document
from vox_serve.server.owner import provide_owner
from vox_serve.server.page import routes as pages
from vox_serve.server.requests import OpenRequests, request_id
from vox_serve.server.routes import cancel, openai, status, voices
from vox_serve.server.routes.generate import generate
from vox_serve.server.voices.registry import Voices
from vox_serve.server.websocket import route as websocket
from vox_serve.workers.engines import Engines

HANDLERS = (
    voices.options,  # before other handlers of the same paths, or Litestar adds its own
    generate,
    openai.speech,
    openai.speech_at_address,
    openai.models,
    openai.model,
    openai.audio_models,
    cancel.cancel,
    cancel.forget,
    voices.add,
    voices.listed,
    voices.show,
    voices.remove,
    status.health,
    status.ready,
    status.models,
    status.voices,
    status.plugins,
    status.metrics,
    openapi.openapi,
    pages.page,
    pages.docs,
    pages.asset,
)
"""The HTTP routes."""


class App(Litestar):
    """Answers HEAD like GET; uvicorn omits the body.

    Routes whose body is costly check `scope["state"]["head"]`.
    """

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET", "state": {**scope["state"], "head": True}}
        if scope["type"] == "http" and scope["method"] == "OPTIONS":
            send = _with_usual_errors(send)
        await super().__call__(scope, receive, send)


def _with_usual_errors(send: Any) -> Any:
    """Litestar refuses a CORS preflight with plain text; turn that into the usual JSON."""
    refused = False

    async def sending(message: dict[str, Any]) -> None:
        nonlocal refused
        if message["type"] == "http.response.start":
            headers = dict(message["headers"])
            kind = headers.get(b"content-type", b"")
            refused = message["status"] == 400 and kind.startswith(b"text/plain")
            if refused:
                return
        elif refused:
            text = message["body"].decode()
            answer = errors.answer_to(errors.Forbidden(f"the page's request is refused: {text}"))
            body = answer.content
            head = [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
            ]
            status = answer.status_code
            await send({"type": "http.response.start", "status": status, "headers": head})
            message = {"type": "http.response.body", "body": body, "more_body": False}
        await send(message)

    return sending


def _with_head(name: bytes, value: bytes) -> tuple[bytes, bytes]:
    """Add HEAD to an `Allow` header that names GET."""
    if name.lower() == b"allow" and b"GET" in value:
        value += b", HEAD"
    return name, value


def create_app(engines: Engines, keys: Keys | None = None) -> Litestar:
    """The application that serves these engines, and starts and stops them.

    Args:
        keys: the server's keys; None reads them now.

    Raises:
        ConfigError: the keys or the voices cannot be read.
    """
    opened = OpenRequests()
    registered = Voices(engines)

    @asynccontextmanager
    async def engine_runs(_: Litestar) -> AsyncIterator[None]:
        await engines.start()
        try:
            yield
        finally:
            registered.close()
            await engines.stop()

    async def count(message: Message, scope: Scope) -> None:
        """Count a response once it is complete, so that a cut stream does not count as a 200."""
        said = cast("dict[str, Any]", message)
        kind = said["type"].removeprefix("websocket.")
        if kind == "http.response.start":
            scope["state"]["status"] = said["status"]
            said["headers"] = [_with_head(*header) for header in said["headers"]]
            if not any(name == b"x-request-id" for name, _ in said["headers"]):
                header = (b"x-request-id", request_id(scope).encode())
                said["headers"] = [*said["headers"], header]
        elif kind == "accept":
            scope["state"]["status"] = 101
        if kind == "accept" or (kind == "http.response.body" and not said.get("more_body")):
            template = str(scope.get("path_template") or "unmatched")
            code = str(scope["state"].get("status", ""))
            model = scope["state"].get("model", engines.metrics.model)
            engines.metrics.http_responses_total.labels(model, template, code).inc()

    document = Document()
    dependencies = {
        "engines": _always(engines),
        "registered": _always(registered),
        "open_requests": _always(opened),
        "owner": Provide(provide_owner, sync_to_thread=False),
        "document": _always(document),
    }
    document.write(HANDLERS, dependencies, engines.own_parameters)
    return App(
        route_handlers=[*HANDLERS, websocket.route(engines, opened)],
        dependencies=dependencies,
        middleware=[Access(engines.server, keys or Keys(engines.server))],
        cors_config=_cors(engines.server),
        lifespan=[engine_runs],
        before_send=[count],
        request_max_body_size=engines.server.max_body_bytes,
        openapi_config=None,
        logging_config=None,
        exception_handlers={
            RequestError: errors.on_request_error,
            errors.ClientGone: errors.on_client_gone,
            HTTPException: errors.on_http_exception,
            Exception: errors.on_exception,
        },
    )


def _cors(server: ServerConfig) -> CORSConfig | None:
    """What pages of the allowed origins may do and see; None without such origins."""
    if not server.cors_origin:
        return None
    return CORSConfig(
        allow_origins=[origin.lower() for origin in server.cors_origin],
        allow_methods=["GET", "HEAD", "POST", "DELETE"],
        expose_headers=list(HEADERS),
    )


def _always(value: Any) -> Provide:
    return Provide(lambda: value, use_cache=True, sync_to_thread=False)
