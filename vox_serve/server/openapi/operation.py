"""Details of a route for the OpenAPI document that its signature does not contain.

A route passes the result of `described` as its `operation_class`; Litestar derives the rest of the
document from paths, parameters and return types.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from inspect import cleandoc
from typing import Any

from litestar.openapi.spec import (
    Example,
    OpenAPIMediaType,
    OpenAPIResponse,
    Operation,
    Parameter,
    Reference,
    RequestBody,
    Schema,
)
from litestar.openapi.spec.enums import OpenAPIFormat, OpenAPIType

from vox_serve.audio.formats import FORMATS

JSON, EVENT_STREAM = "application/json", "text/event-stream"
ERRORS: Mapping[int, str] = {
    400: "A malformed request, an unknown field, a value out of range, or no `model` on a server "
    "of several",
    401: "The API key is missing or unknown; only on a server with keys",
    403: "The web page's origin or the name in `Host` is not allowed",
    404: "No voice, speaker, model, conversation or request has this name",
    408: "The body did not arrive within `--read-timeout` seconds",
    409: "A turn of the conversation is still being spoken, another open request has this id, or "
    "the name is taken",
    413: "The body is larger than the server's `--max-body-bytes`",
    422: "The model cannot speak this text, or it does not fit its context",
    429: "The queue is full, or a limit of the key is reached",
    499: "The request was ended by DELETE /requests/{id}",
    500: "The model failed on this request",
    503: "The server is loading, restarting, shutting down or dead",
    504: "The request took longer than the server's `--request-timeout`",
}
SPEAKING = tuple(ERRORS)
"""The errors of the routes that return speech."""
SOUND_HEADERS = (
    "X-Sample-Rate",
    "X-Channels",
    "X-Finish-Reason",
    "X-Seed",
    "Cache-Control",
    "X-Accel-Buffering",
    "X-Text-Dropped",
    "X-Ignored-Fields",
)
REQUEST_ID_HEADER = Parameter(
    name="X-Request-Id",
    param_in="header",
    description="an id of your choice, 1 to 128 of `A-Za-z0-9_.:=-`; others are replaced",
    schema=Schema(type=OpenAPIType.STRING),
    example="my-request-1",
)


def schema_reference(name: str) -> Reference:
    """A reference to a schema among the document's components."""
    return Reference(ref=f"#/components/schemas/{name}")


def request_body(examples: Mapping[str, Any], **schemas: str) -> RequestBody:
    """The request body of a route that decodes its own body.

    Args:
        examples: valid for every media type.
        schemas: names of the schemas for `json` and `form`.
    """
    media_types = {"json": JSON, "form": "multipart/form-data"}
    shown: dict[str, Example | Reference] = {
        name: Example(value=value) for name, value in examples.items()
    }
    content = {
        media_types[kind]: OpenAPIMediaType(schema=schema_reference(name), examples=shown)
        for kind, name in schemas.items()
    }
    return RequestBody(content=content, required=True)


def sound(*more: str) -> dict[str, OpenAPIMediaType]:
    """All audio media types; also `more` media types, whose content is events."""
    binary = Schema(type=OpenAPIType.STRING, format=OpenAPIFormat.BINARY)
    found = {one.media_type: OpenAPIMediaType(schema=binary) for one in FORMATS.values()}
    return found | {name: OpenAPIMediaType(schema=schema_reference("Event")) for name in more}


def described(
    *errors: int,
    body: RequestBody | None = None,
    content: Mapping[str, OpenAPIMediaType] | None = None,
    headers: tuple[str, ...] = (),
    parameters: tuple[Parameter, ...] = (),
) -> type[Operation]:
    """The operation class of a route.

    Args:
        errors: statuses from `ERRORS`.
        body: for a route that decodes its own body.
        content: of the response, if the return type does not define it.
        headers: names of response headers in the document, in addition to X-Request-Id.
        parameters: parameters missing from the route's signature.
    """

    @dataclass
    class Described(Operation):
        def __post_init__(self) -> None:
            self.request_body = body or self.request_body
            self.summary, _, _ = cleandoc(self.description or "").partition("\n")
            self.description = None
            answers: dict[str, OpenAPIResponse | Reference] = {
                status: self._answer(answer)
                for status, answer in (self.responses or {}).items()
                if isinstance(answer, OpenAPIResponse) and status != "400"  # Litestar's own error
            }
            for status in errors:
                answers[str(status)] = Reference(ref=f"#/components/responses/{status}")
            self.responses = answers
            self.parameters = [*(self.parameters or ()), *parameters] or None

        def _answer(self, answer: OpenAPIResponse) -> OpenAPIResponse:
            names = ("X-Request-Id", *headers)
            answer.headers = {n: Reference(ref=f"#/components/headers/{n}") for n in names}
            answer.content = dict(content) if content is not None else answer.content
            return answer

    return Described
