"""Builds the OpenAPI document: Litestar describes the routes, msgspec the schemas it enforces."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs
import msgspec
from litestar import Litestar
from litestar.datastructures import UploadFile
from litestar.di import Provide
from litestar.openapi import OpenAPIConfig
from litestar.openapi.spec import License, Server, Tag
from litestar.types import ControllerRouterHandler

import vox_serve
from vox_serve.sampling import Allowed
from vox_serve.server import replies
from vox_serve.server.body import JSON_FIELDS
from vox_serve.server.openapi.operation import ERRORS, JSON
from vox_serve.server.requests import REQUEST_ID
from vox_serve.server.routes.generate import GenerateRequest
from vox_serve.server.routes.openai import SpeechBody
from vox_serve.server.routes.voices import ALIASES, VoiceForm

Json = dict[str, Any]
SCHEMAS = "#/components/schemas/"
DESCRIPTION = """Text in, speech out.

Which models, voices and speakers there are, and how long a text may be spoken, depends on what \
is loaded: see GET /models and GET /voices.  All errors have the same shape.  Text that is still \
being written is spoken over a WebSocket at `/v1/audio/stream`, which OpenAPI cannot describe; \
see docs/http-api.md.  Integers are written without a decimal point."""
TAGS = ("speech", "voices", "models", "server")
HEADERS: Json = {
    "X-Request-Id": {
        "description": "the request's id, also in the server's log",
        "required": True,
        "schema": {"type": "string", "pattern": f"^{REQUEST_ID.pattern}$"},
    },
    "X-Sample-Rate": {"description": "in Hz", "required": True, "schema": {"type": "integer"}},
    "X-Channels": {"required": True, "schema": {"type": "integer", "const": 1}},
    "X-Finish-Reason": {
        "description": "why the speech ended; on whole responses",
        "schema": {"enum": ["stop", "length", "inaudible"]},
    },
    "X-Seed": {
        "description": "the seed that was used; on whole responses",
        "schema": {"type": "integer", "minimum": 0},
    },
    "Cache-Control": {"description": "on streams", "schema": {"const": "no-cache"}},
    "X-Accel-Buffering": {
        "description": "on streams: tells proxies not to buffer",
        "schema": {"const": "no"},
    },
    "X-Text-Dropped": {
        "description": "how many characters of the text were left out",
        "schema": {"type": "integer", "minimum": 1},
    },
    "WWW-Authenticate": {"description": "how to send a key", "schema": {"type": "string"}},
    "X-Ignored-Fields": {
        "description": "the fields that changed nothing, if any",
        "schema": {"type": "string"},
    },
    "Retry-After": {
        "description": "in seconds; on 409 only if waiting can help",
        "schema": {"type": "integer", "minimum": 1},
    },
}
SECURITY_SCHEMES: Json = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
}
SECURITY: list[Json] = [{}, *({name: []} for name in SECURITY_SCHEMES)]
"""For operations that check keys; the first entry is for servers without keys."""
EVENT_KINDS = (replies.SpeechDelta, replies.SpeechDone, replies.Error)
EVENT: Json = {
    "description": "one event; an error is the last event, and then the connection is cut",
    "type": "object",
    "properties": {
        "data": {
            "type": "string",
            "contentMediaType": JSON,
            "contentSchema": {"anyOf": [{"$ref": SCHEMAS + k.__name__} for k in EVENT_KINDS]},
        }
    },
    "required": ["data"],
}
PATH_EXAMPLES = {
    "request_name": "my-request-1",
    "conversation": "morning",
    "voice": "anna",
    "name": "tts-1",
    "file": "page.js",
}


@attrs.define
class Document:
    """The document as JSON; empty until `write` is called."""

    content: bytes = b""

    def write(
        self,
        handlers: Sequence[ControllerRouterHandler],
        dependencies: Mapping[str, Provide],
        own: Mapping[str, Allowed],
    ) -> None:
        """Write the document for an application with these handlers.

        Args:
            own: sampling parameters that only some models have.
        """
        config = OpenAPIConfig(
            title="vox_serve",
            version=vox_serve.__version__,
            description=DESCRIPTION,
            license=License(name="Apache-2.0", identifier="Apache-2.0"),
            servers=[Server(url="/")],
            tags=[Tag(name=name) for name in TAGS],
            use_handler_docstrings=True,
        )
        # A separate application, because Litestar's OpenAPI support adds routes.
        app = Litestar(
            list(handlers),
            dependencies=dict(dependencies),
            openapi_config=config,
            logging_config=None,  # otherwise it would configure the process's logging
        )
        document = app.openapi_schema.to_schema()
        for operation in _operations(document):
            if "401" in operation["responses"]:
                operation["security"] = SECURITY
            for parameter in operation.get("parameters", ()):
                if parameter["in"] == "path":
                    parameter["schema"]["minLength"] = 1
                    parameter["example"] = PATH_EXAMPLES[parameter["name"]]
        document["components"] = {
            "schemas": _schemas(own),
            "securitySchemes": SECURITY_SCHEMES,
            "headers": HEADERS,
            "responses": {str(status): _error(status) for status in ERRORS},
        }
        for operation in _operations(document):
            for parameter in operation.get("parameters", ()):
                parameter["schema"] = _inlined(parameter["schema"], document)
        self.content = msgspec.json.encode(document)


def _inlined(schema: Json, document: Json) -> Json:
    """A parameter's schema; a reference to a body's field is replaced by the field's schema."""
    reference = schema.get("$ref", "")
    if "/properties/" not in reference:
        return schema
    found = document
    for key in reference.removeprefix("#/").split("/"):
        found = found[key]
    return copy.deepcopy(found)


def _operations(document: Json) -> Iterator[Json]:
    for methods in document["paths"].values():
        yield from methods.values()


def _error(status: int) -> Json:
    """The error response for a status; all have the same shape."""
    more = {401: "WWW-Authenticate", 409: "Retry-After", 429: "Retry-After", 503: "Retry-After"}
    names = ("X-Request-Id", more[status]) if status in more else ("X-Request-Id",)
    headers = {name: {"$ref": f"#/components/headers/{name}"} for name in names}
    content = {JSON: {"schema": {"$ref": f"{SCHEMAS}Error"}}}
    return {"description": ERRORS[status], "headers": headers, "content": content}


def _schemas(own: Mapping[str, Allowed]) -> Json:
    """The schemas of all request and response bodies."""
    kinds = [kind for kind in vars(replies).values() if _is_reply(kind)]
    _, found = msgspec.json.schema_components(
        [GenerateRequest, SpeechBody, VoiceForm, *kinds],
        ref_template=SCHEMAS + "{name}",
        schema_hook=_schema_of_file,
    )
    for schema in found.values():
        schema["description"] = inspect.cleandoc(schema["description"]).partition("\n\n")[0]
        for field in schema.get("properties", {}).values():
            _tidy(field)
    for body in ("GenerateRequest", "SpeechBody"):
        _declare(found[body]["properties"]["parameters"], own)
    found["GenerateForm"] = _generate_form(found["GenerateRequest"])
    found["GenerateRequest"]["not"] = {
        "required": ["voice", "speaker"],
        "properties": {"voice": {"type": "string"}, "speaker": {"type": "integer"}},
    }
    _allow_aliases(found["VoiceForm"])
    return found | {"Event": EVENT}


def _declare(field: Json, own: Mapping[str, Allowed]) -> None:
    """Add the parameters that only some models have to the schema of `parameters`."""
    schema = next(one for one in field["anyOf"] if one.get("type") == "object")
    schema["additionalProperties"] = False
    schema["properties"] = {name: allowed.schema for name, allowed in own.items()}


def _is_reply(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, replies.Reply) and kind is not replies.Reply


def _schema_of_file(kind: type) -> Json:
    if kind is UploadFile:
        return {"type": "string", "format": "binary"}
    raise NotImplementedError


def _tidy(field: Json) -> None:
    """Move a field's description from one of its alternatives to the field itself."""
    for alternative in field.get("anyOf", ()):
        if "description" in alternative:
            field["description"] = alternative.pop("description")


def _generate_form(body: Json) -> Json:
    """The schema of a JSON body's fields when they are sent as a form."""
    form = copy.deepcopy(body)
    form["title"] = "GenerateForm"
    form["description"] += "  `context`, `parameters` and `pronunciations` are JSON texts."
    for field in form["properties"].values():
        _as_in_a_form(field)
    for name in JSON_FIELDS:
        field = form["properties"][name]
        form["properties"][name] = {
            "type": "string",
            "contentMediaType": JSON,
            "contentSchema": {key: field[key] for key in field if key != "description"},
            "description": field["description"],
        }
    form["not"] = {"required": ["voice", "speaker"]}
    return form


def _as_in_a_form(field: Json) -> None:
    """Adapt a field's schema to forms, where `null` is ordinary text and 1 means true."""
    if field.get("default", ...) is None:
        del field["default"]
    alternatives = [one for one in field.get("anyOf", ()) if one != {"type": "null"}]
    if len(alternatives) == 1 and alternatives[0]["type"] not in ("number", "integer"):
        del field["anyOf"]
        field |= alternatives[0]
    if field.get("type") == "boolean":
        del field["type"]
        field["anyOf"] = [{"type": "boolean"}, {"enum": [0, 1]}]


def _allow_aliases(form: Json) -> None:
    """Let the voice form accept some fields under either of two names."""
    for field in form["properties"].values():
        _as_in_a_form(field)
    for alias, name in ALIASES.items():
        field = form["properties"][name]
        form["properties"][alias] = field | {"description": f"another name of `{name}`"}
        form["required"].remove(name)
        either = {"oneOf": [{"required": [name]}, {"required": [alias]}]}
        form.setdefault("allOf", []).append(either)
