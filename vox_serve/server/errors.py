"""Every error answer, in one shape: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException

from vox_serve.errors import RequestError
from vox_serve.server.stream import ClientGone

CLIENT_CLOSED_REQUEST = 499
STATUS = {
    "invalid_request": 400,
    "not_found": 404,
    "request_timeout": 408,
    "conflict": 409,
    "already_exists": 409,
    "unspeakable_text": 422,
    "prompt_too_long": 422,
    "queue_full": 429,
    "cancelled": CLIENT_CLOSED_REQUEST,
    "generation_failed": 500,
    "unavailable": 503,
    "timeout": 504,
}
RETRY_AFTER_SECONDS = {"conflict": 1, "queue_full": 1, "unavailable": 5}
MESSAGE_BYTES, PARAM_BYTES = 1400, 200  # as JSON: an error body stays under 2 KiB
AnyRequest = Request[Any, Any, Any]
log = logging.getLogger("vox_serve.server")


def error_object(
    status: int, message: str, code: str, param: str | None = None
) -> dict[str, str | None]:
    """What stands under `error`, bounded in size."""
    return {
        "message": _cut(message, MESSAGE_BYTES),
        "type": "server_error" if status >= 500 else "invalid_request_error",
        "param": param and _cut(param, PARAM_BYTES),
        "code": code,
    }


def error_response(
    status: int, message: str, code: str, param: str | None = None
) -> Response[bytes]:
    """An error as JSON, whatever media type the route has otherwise."""
    headers = {}
    if code in RETRY_AFTER_SECONDS:
        headers["Retry-After"] = str(RETRY_AFTER_SECONDS[code])
    if status == HTTPStatus.REQUEST_TIMEOUT:
        headers["Connection"] = "close"  # the rest of the body is not waited for
    body = msgspec.json.encode({"error": error_object(status, message, code, param)})
    return Response(body, status_code=status, media_type="application/json", headers=headers)


def _cut(text: str, limit: int) -> str:
    """A beginning of `text` that takes at most `limit` bytes as JSON: it may echo the client."""
    text = text[:limit]
    while len(msgspec.json.encode(text)) > limit:
        text = text[: len(text) * 3 // 4]
    return text


def on_request_error(_: AnyRequest, error: RequestError) -> Response[bytes]:
    return error_response(STATUS.get(error.code, 500), error.message, error.code, error.param)


def on_http_exception(_: AnyRequest, error: HTTPException) -> Response[bytes]:
    """What Litestar itself refuses: unknown routes, methods, bodies that are too large."""
    code = HTTPStatus(error.status_code).name.lower()
    response = error_response(error.status_code, error.detail or code, code)
    response.headers.update(error.headers or {})
    return response


def on_client_gone(_: AnyRequest, __: ClientGone) -> Response[bytes]:
    """Nobody hears this; it is for the metrics."""
    return error_response(CLIENT_CLOSED_REQUEST, "the client left", "client_gone")


def on_exception(request: AnyRequest, error: Exception) -> Response[bytes]:
    log.error("unhandled error on %s", request.url.path, exc_info=error)
    return error_response(500, "internal error; the server's log has it", "internal_error")
