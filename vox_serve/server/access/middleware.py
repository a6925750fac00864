"""Accepts or refuses a request before its body is read.

By default, a route needs a key if the server has keys, and may not be used by pages of other
origins.  So new routes are safe until they are explicitly opened.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, cast

from litestar import Response
from litestar.datastructures import Headers
from litestar.enums import ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Receive, Scope, Send
from litestar.types import Message as AsgiMessage

from vox_serve.config import ServerConfig
from vox_serve.errors import RequestError
from vox_serve.server.access.bodies import Bodies
from vox_serve.server.access.keys import Keys
from vox_serve.server.access.sites import Sites
from vox_serve.server.errors import Unauthorized, answer_to
from vox_serve.server.owner import NOBODY, Owner

CLOSED, OPEN, READ, METRICS = "closed", "open", "read", "metrics"
"""Kinds of routes.  `open`: ignores keys; shows the server's state and its API.  `read`: changes
nothing and costs nothing; a key is optional, and shows the key's voices too.  `metrics`: open or
closed, as the server's settings say.  `closed`: all others."""


SUBPROTOCOL, KEY_SUBPROTOCOL = "vox-serve", "vox-serve-key"
"""Subprotocols that a web page offers with a WebSocket, because it cannot send a key in a header:
the first, which is accepted, and the second followed by a dot and the key in base64url."""


def access(kind: str) -> dict[str, Any]:
    """The `opt` of a route of this kind."""
    return {"access": kind}


class Access(ASGIMiddleware):
    """Checks host, origin and key, and enforces the limits on keys and bodies.

    Stores the `Owner` in `scope["auth"]`.
    """

    def __init__(self, server: ServerConfig, keys: Keys) -> None:
        self._sites = Sites(server)
        self._keys = keys
        self._bodies = Bodies(server.max_body_bytes, server.max_body_bytes_total)
        self._metrics = CLOSED if server.metrics_need_key else OPEN

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        if scope["type"] == ScopeType.HTTP:
            with self._let_in(scope), self._bodies.counted(scope, receive) as counted:
                await next_app(scope, counted, send)
            return
        with ExitStack() as stack:
            try:
                stack.enter_context(self._let_in(scope))
            except RequestError as error:
                await receive()  # websocket.connect
                await refuse_handshake(send, answer_to(error))
                return
            await next_app(scope, receive, send)

    def _let_in(self, scope: Scope) -> AbstractContextManager[None]:
        """Check a request; returns a context that counts it as open for its key.

        Raises:
            Forbidden: the host or origin is not allowed.
            Unauthorized: the key is missing or unknown.
            TooMany: on entering the context: the key exceeds one of its limits.
        """
        headers = Headers.from_scope(scope)
        websocket = scope["type"] == ScopeType.WEBSOCKET
        method = str(scope.get("method", ""))
        kind = _kind(scope["route_handler"].opt, method)
        if kind == METRICS:
            kind = self._metrics
        self._sites.check_host(headers)
        if kind == CLOSED:
            self._sites.check_origin(headers, websocket)
        scope["auth"] = owner = NOBODY if kind == OPEN else self._owner(headers, kind)
        # DELETE is always allowed, even for a key that exceeds its limits.
        if kind == CLOSED and owner.key and method != "DELETE":
            return self._keys.counted(owner.key)
        return nullcontext()

    def _owner(self, headers: Headers, kind: str) -> Owner:
        if not self._keys.required:
            return NOBODY
        key = _given_key(headers)
        if key is None and kind == READ:
            return NOBODY
        if key is None:
            raise Unauthorized("a key is required: Authorization: Bearer KEY, or X-Api-Key: KEY")
        name = self._keys.name_of(key)
        if name is None:
            raise Unauthorized("the key is unknown")
        return Owner(name)


def _kind(opt: Mapping[str, Any], method: str) -> str:
    return OPEN if method == "OPTIONS" else str(opt.get("access", CLOSED))


def _given_key(headers: Headers) -> str | None:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":  # a proxy may use other schemes for its own purposes
        return key.strip()
    for offered in headers.get("sec-websocket-protocol", "").split(","):
        marked, _, encoded = offered.strip().partition(".")
        if marked == KEY_SUBPROTOCOL:
            return _decoded(encoded)
    return headers.get("x-api-key")


def _decoded(text: str) -> str:
    """Decode a key from base64url without padding; invalid input gives "", which is never a key."""
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True).decode(
            "latin-1"
        )
    except ValueError:
        return ""


async def refuse_handshake(send: Send, answer: Response[bytes]) -> None:
    """Reject a WebSocket's handshake with an HTTP response."""
    headers = [(b"content-type", b"application/json")]
    headers += [(k.lower().encode(), v.encode()) for k, v in answer.headers.items()]
    start = {
        "type": "websocket.http.response.start",
        "status": answer.status_code,
        "headers": headers,
    }
    body = {"type": "websocket.http.response.body", "body": answer.content}
    await send(cast("AsgiMessage", start))
    await send(cast("AsgiMessage", body))
