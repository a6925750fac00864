"""What each error means to a client, and the common shape of all error responses.

{"error": {"message", "type", "param", "code"}}
"""

from __future__ import annotations

import logging
from asyncio import CancelledError
from http import HTTPStatus
from typing import Any

import attrs
import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException

from vox_serve.errors import (
    AlreadyExists,
    Cancelled,
    Conflict,
    InvalidRequest,
    NotFound,
    NothingToSpeak,
    PromptTooLong,
    QueueFull,
    RequestError,
    SequenceFailed,
    TimedOut,
    Unavailable,
    UnspeakableText,
)
from vox_serve.server.requests import request_id

MESSAGE_BYTES, PARAM_BYTES = 1400, 200  # as JSON, so that an error body stays under 2 KiB
AnyRequest = Request[Any, Any, Any]
log = logging.getLogger("vox_serve.server")


class ClientGone(Exception):  # an event, not an error
    """The client closed its connection, or stopped reading."""


class BodyTooSlow(RequestError):
    """The client did not send its body in time."""

    code = "request_timeout"


class Unauthorized(RequestError):
    """The request has no key, or an unknown one."""

    code = "invalid_api_key"


class Forbidden(RequestError):
    """The request comes from a web page that may not use this server, or names an unknown host."""

    code = "forbidden"


class TooMany(RequestError):
    """The client exceeds one of its limits.

    Args:
        retry_after: seconds after which a retry may succeed.
    """

    code = "rate_limit_exceeded"

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class BinaryMessage(InvalidRequest):
    """The client sent a binary WebSocket frame."""


class Malformed(InvalidRequest):
    """The client sent something that is not a message."""


class GoingAway(Unavailable):
    """A WebSocket session ends because the server shuts down."""


class InternalError(SequenceFailed):
    """An unexpected error."""

    code = "internal_error"


@attrs.frozen
class Meaning:
    """How an error is reported and counted.

    Args:
        status: HTTP status.
        close: WebSocket close code.
        outcome: how the request is counted; `error` is the server's fault, and becomes `rejected`
            for a request that was not admitted.
        retry_after: seconds after which a retry may succeed; None if waiting does not help.
        session_goes_on: in a WebSocket session, the error affects only one segment.
    """

    status: int
    close: int
    outcome: str
    retry_after: int | None = None
    session_goes_on: bool = False


MEANINGS: dict[type[BaseException], Meaning] = {
    Exception: Meaning(500, 1011, "error"),
    # The server stops and did not wait for the request any longer.
    CancelledError: Meaning(503, 1001, "error", retry_after=5),
    HTTPException: Meaning(400, 1008, "invalid"),  # carries its own status
    ClientGone: Meaning(499, 1000, "cancelled"),
    RequestError: Meaning(500, 1008, "error"),
    InvalidRequest: Meaning(400, 1008, "invalid"),
    BinaryMessage: Meaning(400, 1003, "invalid"),
    Malformed: Meaning(400, 1007, "invalid"),
    Unauthorized: Meaning(401, 1008, "invalid"),
    Forbidden: Meaning(403, 1008, "invalid"),
    NotFound: Meaning(404, 1008, "invalid"),
    BodyTooSlow: Meaning(408, 1008, "invalid"),
    Conflict: Meaning(409, 1013, "invalid", retry_after=1),
    AlreadyExists: Meaning(409, 1008, "invalid"),
    UnspeakableText: Meaning(422, 1008, "invalid", session_goes_on=True),
    NothingToSpeak: Meaning(422, 1008, "invalid", session_goes_on=True),
    PromptTooLong: Meaning(422, 1008, "invalid", session_goes_on=True),
    QueueFull: Meaning(429, 1013, "error", retry_after=1),
    TooMany: Meaning(429, 1013, "error", retry_after=1),
    Cancelled: Meaning(499, 1008, "cancelled"),
    SequenceFailed: Meaning(500, 1011, "error", session_goes_on=True),
    InternalError: Meaning(500, 1011, "error"),
    Unavailable: Meaning(503, 1013, "error", retry_after=5),
    GoingAway: Meaning(503, 1001, "error", retry_after=5),
    TimedOut: Meaning(504, 1013, "timeout"),
}
"""Add an entry for each new error; a class without one uses its base class's entry."""


def meaning(error: BaseException) -> Meaning:
    """The entry for the error's class or its nearest base class."""
    return next(MEANINGS[kind] for kind in type(error).__mro__ if kind in MEANINGS)


def error_object(
    status: int, message: str, code: str, param: str | None = None
) -> dict[str, str | None]:
    """The value of `error` in the body, limited in size."""
    return {
        "message": _cut(message, MESSAGE_BYTES),
        "type": "server_error" if status >= 500 else "invalid_request_error",
        "param": param and _cut(param, PARAM_BYTES),
        "code": code,
    }


def error_fields(error: RequestError) -> dict[str, str | None]:
    """The value of `error` in the body for this error."""
    return error_object(meaning(error).status, error.message, error.code, error.param)


def error_response(
    status: int, message: str, code: str, param: str | None = None, retry_after: int | None = None
) -> Response[bytes]:
    """An error as JSON, whatever the route's usual media type."""
    headers = {}
    if retry_after is not None:
        headers["Retry-After"] = str(retry_after)
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = 'Bearer realm="vox_serve"'
    body = msgspec.json.encode({"error": error_object(status, message, code, param)})
    return Response(body, status_code=status, media_type="application/json", headers=headers)


def _cut(text: str, limit: int) -> str:
    """Cut `text`, which may quote the client, to at most `limit` bytes of JSON."""
    text = text[:limit]
    while len(msgspec.json.encode(text)) > limit:
        text = text[: len(text) * 3 // 4]
    return text


def on_request_error(_: AnyRequest, error: RequestError) -> Response[bytes]:
    return answer_to(error)


def answer_to(error: RequestError) -> Response[bytes]:
    """The response to a request that failed with `error`."""
    found = meaning(error)
    retry_after = error.retry_after if isinstance(error, TooMany) else found.retry_after
    return error_response(found.status, error.message, error.code, error.param, retry_after)


def on_http_exception(_: AnyRequest, error: HTTPException) -> Response[bytes]:
    """Answer what Litestar rejects: unknown routes, wrong methods, bodies that are too large."""
    code = HTTPStatus(error.status_code).name.lower()
    response = error_response(error.status_code, error.detail or code, code)
    response.headers.update(error.headers or {})
    return response


def on_client_gone(_: AnyRequest, error: ClientGone) -> Response[bytes]:
    """No one receives this response; it exists for the metrics."""
    return error_response(meaning(error).status, "the client left", "client_gone")


def on_exception(request: AnyRequest, error: Exception) -> Response[bytes]:
    request_id(request.scope)
    template = request.scope.get("path_template")
    log.error("unhandled error on %s", template, exc_info=error)
    return error_response(500, "internal error; see the server's log", InternalError.code)
