"""The OpenAPI 3.1 document: made of the routes, the structs, and `operations.py`."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Iterator
from typing import Any

import msgspec
from litestar import Litestar
from litestar.routes import HTTPRoute

import vox_serve
from vox_serve.server import replies
from vox_serve.server.openapi.operations import (
    ERRORS,
    EVENT_STREAM,
    JSON,
    OPERATIONS,
    Answer,
    Operation,
)
from vox_serve.server.requests import REQUEST_ID
from vox_serve.server.routes.generate import GenerateRequest
from vox_serve.server.routes.openai import SpeechBody
from vox_serve.server.routes.voices import MAX_AUDIO_BYTES
from vox_serve.server.voices.store import MAX_SPEAKER, MAX_TEXT_CHARACTERS, NAME, NAME_RULE

Json = dict[str, Any]
SCHEMAS = "#/components/schemas/"
DESCRIPTION = """Text in, speech out.

Which models, voices and speakers there are, and how long a text may be spoken, depends on what \
is loaded: GET /models and GET /voices tell.  Every error has one shape.  Text that is still being \
written is spoken over a WebSocket at `/v1/audio/stream`, which OpenAPI cannot describe: \
docs/http-api.md does.  Numbers of type integer are written without a decimal point."""
HEADERS: Json = {
    "X-Request-Id": {
        "description": "the request's id, also in the server's log",
        "required": True,
        "schema": {"type": "string", "pattern": f"^{REQUEST_ID.pattern}$"},
    },
    "X-Sample-Rate": {"description": "in Hz", "required": True, "schema": {"type": "integer"}},
    "X-Channels": {"required": True, "schema": {"type": "integer", "const": 1}},
    "X-Finish-Reason": {
        "description": "why the speech ended; on whole answers",
        "schema": {"enum": ["stop", "length"]},
    },
    "X-Seed": {
        "description": "the seed that was used; on whole answers",
        "schema": {"type": "integer", "minimum": 0},
    },
    "Cache-Control": {"description": "on streams", "schema": {"const": "no-cache"}},
    "X-Accel-Buffering": {
        "description": "on streams: proxies must not hold sound back",
        "schema": {"const": "no"},
    },
    "Retry-After": {
        "description": "seconds; on 409 only where waiting helps",
        "schema": {"type": "integer", "minimum": 1},
    },
}
PARAMETERS: Json = {
    "X-Request-Id": {
        "in": "header",
        "description": "an id of your choice, 1 to 128 of `A-Za-z0-9_.:=-`; others are replaced",
        "schema": {"type": "string"},
        "example": "my-request-1",
    },
    "model": {
        "in": "query",
        "description": "whose, where several models are served",
        "schema": {"type": "string"},
    },
}
EVENT_KINDS = (replies.SpeechDelta, replies.SpeechDone, replies.Error)
EVENT: Json = {
    "description": "one event; an error is the last, after which the connection is cut",
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
}


def document(app: Litestar) -> Json:
    """The OpenAPI document of the application.

    Raises:
        KeyError: `operations.OPERATIONS` lacks a route.
    """
    paths: dict[str, Json] = {}
    for method, path, summary in _routes(app):
        described = _operation(OPERATIONS[f"{method} {path}"], path)
        name = re.sub(r"\W+", "_", f"{method.lower()}{path}").rstrip("_")
        paths.setdefault(path, {})[method.lower()] = {
            "operationId": name,
            "summary": summary,
            **described,
        }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "vox_serve",
            "version": vox_serve.__version__,
            "description": DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name} for name in dict.fromkeys(o.tag for o in OPERATIONS.values())],
        "paths": paths,
        "components": {
            "schemas": _schemas(),
            "headers": HEADERS,
            "responses": {str(status): _error(status) for status in ERRORS},
        },
    }


def _routes(app: Litestar) -> Iterator[tuple[str, str, str]]:
    """Method, path and summary of each route that answers HTTP."""
    for route in sorted(app.routes, key=lambda route: route.path):
        if not isinstance(route, HTTPRoute):
            continue
        for handler in route.route_handlers:
            path = re.sub(r"\{(\w+):\w+\}", r"{\1}", route.path_format)
            summary = (inspect.getdoc(handler.fn) or "").partition("\n")[0]
            yield from ((m, path, summary) for m in sorted(handler.http_methods) if m != "OPTIONS")


def _operation(operation: Operation, path: str) -> Json:
    parameters = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {"type": "string", "minLength": 1},
            "example": PATH_EXAMPLES[name],
        }
        for name in re.findall(r"\{(\w+)\}", path)
    ]
    parameters += [{"name": name} | PARAMETERS[name] for name in operation.parameters]
    found: Json = {"tags": [operation.tag]}
    if parameters:
        found["parameters"] = parameters
    if operation.bodies:
        examples = {name: {"value": value} for name, value in operation.examples.items()}
        found["requestBody"] = {
            "required": True,
            "content": {
                media_type: {"schema": {"$ref": SCHEMAS + name}, "examples": examples}
                for media_type, name in operation.bodies.items()
            },
        }
    answers = {str(status): _answer(answer) for status, answer in operation.answers.items()}
    errors = {str(s): {"$ref": f"#/components/responses/{s}"} for s in operation.errors}
    return found | {"responses": answers | errors}


def _answer(answer: Answer) -> Json:
    found: Json = {"description": answer.text, "headers": _headers(*answer.headers)}
    content: Json = {}
    for media_type, kind in answer.content.items():
        content[media_type] = {"schema": {"type": "string"}}
        if kind is not None:
            content[media_type] = {"schema": {"$ref": SCHEMAS + kind.__name__}}
            content[media_type]["example"] = answer.example
        elif media_type == JSON:
            content[media_type] = {"schema": {"type": "object"}}
        elif media_type == EVENT_STREAM:
            content[media_type] = {"schema": EVENT}
        elif media_type.startswith("audio/"):
            content[media_type]["schema"]["format"] = "binary"
    return found | ({"content": content} if content else {})


def _error(status: int) -> Json:
    """An error answer; all have one shape."""
    headers = _headers("Retry-After") if status in (409, 429, 503) else _headers()
    content = {JSON: {"schema": {"$ref": f"{SCHEMAS}Error"}}}
    return {"description": ERRORS[status], "headers": headers, "content": content}


def _headers(*names: str) -> Json:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in ("X-Request-Id", *names)}


def _schemas() -> Json:
    """The schemas of all bodies, those of answers included."""
    sent = [a.content.values() for o in OPERATIONS.values() for a in o.answers.values()]
    kinds = {kind for values in sent for kind in values if kind is not None}
    ordered = sorted(kinds, key=lambda kind: kind.__name__)
    _, found = msgspec.json.schema_components(
        [GenerateRequest, SpeechBody, *EVENT_KINDS, *ordered], ref_template=SCHEMAS + "{name}"
    )
    for schema in found.values():
        schema["description"] = inspect.cleandoc(schema["description"]).partition("\n\n")[0]
        for field in schema.get("properties", {}).values():
            _tidy(field)
    generate = found[GenerateRequest.__name__]
    form = copy.deepcopy(generate)
    form["title"] = "GenerateForm"
    form["description"] += "  `context` is a JSON text."
    for field in form["properties"].values():
        _as_in_a_form(field)
    context = form["properties"]["context"]
    form["properties"]["context"] = {
        "type": "string",
        "contentMediaType": JSON,
        "contentSchema": {name: context[name] for name in ("type", "items", "maxItems")},
        "description": context["description"],
    }
    form["not"] = {"required": ["voice", "speaker"]}
    generate["not"] = {
        "required": ["voice", "speaker"],
        "properties": {"voice": {"type": "string"}, "speaker": {"type": "integer"}},
    }
    return found | {"GenerateForm": form, "VoiceForm": _voice_form()}


def _tidy(field: Json) -> None:
    """A field's description stands beside its type, not within one of its alternatives."""
    for alternative in field.get("anyOf", ()):
        if "description" in alternative:
            field["description"] = alternative.pop("description")


def _as_in_a_form(field: Json) -> None:
    """The schema of a field in a form: the word null is a text like others, and 1 is true."""
    if field.get("default", ...) is None:
        del field["default"]
    alternatives = [one for one in field.get("anyOf", ()) if one != {"type": "null"}]
    if len(alternatives) == 1 and alternatives[0]["type"] not in ("number", "integer"):
        del field["anyOf"]
        field |= alternatives[0]
    if field.get("type") == "boolean":
        del field["type"]
        field["anyOf"] = [{"type": "boolean"}, {"enum": [0, 1]}]


def _voice_form() -> Json:
    """The form of a new voice; `voices.read_voice` reads it by hand, because of the file."""
    text = {"type": "string", "minLength": 1, "maxLength": MAX_TEXT_CHARACTERS, "pattern": r"\S"}
    audio = {"type": "string", "format": "binary"}
    sample = f"a file of up to {MAX_AUDIO_BYTES >> 20} MiB and 30 s, of any format libsndfile reads"
    return {
        "title": "VoiceForm",
        "description": "A new voice: a sample, and what is said in it.",
        "type": "object",
        "properties": {
            "name": {"type": "string", "pattern": f"^{NAME.pattern}$", "description": NAME_RULE},
            "audio": audio | {"description": sample},
            "audio_sample": audio | {"description": "another name of `audio`"},
            "text": text | {"description": "what is said in the sample"},
            "transcript": text | {"description": "another name of `text`"},
            "speaker": {
                "type": "integer",
                "minimum": 0,
                "maximum": MAX_SPEAKER,
                "default": 0,
                "description": "which of the model's speakers it is spoken as",
            },
            "model": {
                "type": "string",
                "description": "whose voice it is; required if there are several models",
            },
            "consent": {"type": "string", "description": "accepted and ignored"},
        },
        "required": ["name"],
        "allOf": [
            {"oneOf": [{"required": ["audio"]}, {"required": ["audio_sample"]}]},
            {"oneOf": [{"required": ["text"]}, {"required": ["transcript"]}]},
        ],
        "additionalProperties": False,
    }
