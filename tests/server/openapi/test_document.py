"""The OpenAPI document is complete, has nothing superfluous, and its examples work."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import jsonschema_rs
import msgspec
import pytest
from litestar import Litestar
from litestar.routes import HTTPRoute

from tests.conftest import TONE, RunningServer
from tests.glide import GlideParameters
from tests.server.test_bad_requests import check_error
from tests.test_docs import section
from vox_serve.audio.formats import FORMATS
from vox_serve.config import ServerConfig
from vox_serve.plugins import load_plugins
from vox_serve.sampling import RANGES
from vox_serve.server.app import create_app
from vox_serve.server.routes import generate, openai
from vox_serve.server.routes.generate import GenerateRequest
from vox_serve.server.routes.openai import SpeechBody
from vox_serve.server.routes.voices import ALIASES, VoiceForm, clip
from vox_serve.server.websocket.route import PATH
from vox_serve.workers.engines import Engines

Json = dict[str, Any]


@pytest.fixture(scope="module")
def app() -> Litestar:
    engines = Engines([TONE], ServerConfig(), load_plugins(TONE.plugins), in_thread=True)
    return create_app(engines)


@pytest.fixture(scope="module")
def document(tone_server: RunningServer) -> Json:
    response = tone_server.http.get("/openapi.json")
    assert response.headers["content-type"] == "application/json"
    found: Json = response.json()
    return found


def operations(document: Json) -> dict[str, Json]:
    return {
        f"{method.upper()} {path}": operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


def test_the_document_has_exactly_the_routes_of_the_application(
    app: Litestar, document: Json
) -> None:
    routes, others = set(), []
    for route in app.routes:
        if isinstance(route, HTTPRoute):
            path = re.sub(r":\w+\}", "}", route.path_format)
            routes |= {f"{method} {path}" for method in route.methods if method != "OPTIONS"}
        else:
            others.append(route.path)
    assert set(operations(document)) == routes
    assert others == [PATH]
    assert f"`{PATH}`" in document["info"]["description"]


def test_schemas_are_valid_and_references_resolve(document: Json) -> None:
    for schema in document["components"]["schemas"].values():
        jsonschema_rs.Draft202012Validator(schema | {"components": document["components"]})
    for reference in set(re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(document))):
        found = document
        for key in reference.split("/"):
            found = found[key]
    names = [operation["operationId"] for operation in operations(document).values()]
    assert len(set(names)) == len(names)


def test_every_operation_has_a_description(document: Json) -> None:
    for name, operation in operations(document).items():
        assert operation["summary"], name
        assert all(one["schema"] for one in operation.get("parameters", ())), name


@pytest.mark.parametrize("kind", [GenerateRequest, SpeechBody])
def test_every_field_has_a_description_and_its_limits(document: Json, kind: type) -> None:
    fields = document["components"]["schemas"][kind.__name__]["properties"]
    assert fields.keys() == {field.name for field in msgspec.structs.fields(kind)}
    assert [name for name, field in fields.items() if not field.get("description")] == []
    for name, allowed in RANGES.items():
        number = fields[name]["anyOf"][0]
        assert (number["minimum"], number["maximum"]) == (allowed.low, allowed.high)
        assert number["type"] == ("integer" if allowed.kind is int else "number")
    choice = fields["format"] if kind is GenerateRequest else fields["response_format"]["anyOf"][0]
    assert choice["enum"] == list(FORMATS)


def test_parameters_of_only_some_models_are_declared() -> None:
    engines = Engines([TONE], ServerConfig(), load_plugins(TONE.plugins), in_thread=True)
    engines.own_parameters = GlideParameters.allowed()
    app = create_app(engines)
    schemas = json.loads(app.dependencies["document"].dependency().content)["components"]["schemas"]
    steps = {"type": "integer", "minimum": 1, "maximum": 3, "description": "halvings of the noise"}
    for body in ("GenerateRequest", "SpeechBody"):
        field = schemas[body]["properties"]["parameters"]["anyOf"][0]
        assert field["properties"]["steps"] == steps
        assert field["properties"]["language"]["enum"] == ["auto", "de", "en"]
        assert field["properties"]["instructions"]["maxLength"] == 20
        assert field["additionalProperties"] is False


def test_forms_have_the_fields_that_are_read(document: Json) -> None:
    schemas = document["components"]["schemas"]
    form, body = schemas["GenerateForm"], schemas["GenerateRequest"]
    assert form["properties"].keys() == body["properties"].keys()
    assert form["required"] == body["required"]
    voice = schemas["VoiceForm"]["properties"]
    assert voice.keys() == {*VoiceForm.__struct_fields__, *ALIASES}
    assert [name for name in voice if f"`{name}`" not in section("Voices")] == []


@pytest.mark.parametrize("route", ["POST /generate", "POST /v1/audio/speech"])
def test_statuses_and_headers_agree_with_the_guide(document: Json, route: str) -> None:
    answers = operations(document)[route]["responses"]
    listed = set(re.findall(r"^\| (\d{3}) \|", section("POST /generate"), re.MULTILINE))
    assert set(answers) == listed - {"405"}, "405 does not belong to an operation"
    assert all(f"`{header}`" in section("POST /generate") for header in answers["200"]["headers"])
    sound = {name for name in answers["200"]["content"] if name.startswith("audio/")}
    assert sound == {one.media_type for one in FORMATS.values()}


BODIES = [
    (route, media_type, example)
    for route, media_types, examples in (
        ("POST /generate", ("application/json", "multipart/form-data"), generate.EXAMPLES),
        ("POST /v1/audio/speech", ("application/json",), openai.EXAMPLES),
        ("POST /v1/audio/voices", ("multipart/form-data",), ("voice",)),
    )
    for media_type in media_types
    for example in examples
]


def test_every_body_has_examples(document: Json) -> None:
    found = [
        (name, media_type, example)
        for name, operation in operations(document).items()
        for media_type, body in operation.get("requestBody", {"content": {}})["content"].items()
        for example in body["examples"]
    ]
    assert sorted(found) == sorted(BODIES)


@pytest.mark.parametrize(("route", "media_type", "example"), BODIES)
def test_examples_work(
    tone_server: RunningServer, document: Json, route: str, media_type: str, example: str
) -> None:
    operation = operations(document)[route]
    body = operation["requestBody"]["content"][media_type]["examples"][example]["value"]
    path = route.partition(" ")[2]
    if media_type == "application/json":
        response = tone_server.http.post(path, json=body)
    else:
        parts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in body.items()}
        files = {k: (None, v) if k != "audio" else ("a.wav", v.encode()) for k, v in parts.items()}
        response = tone_server.http.post(path, files=files)
    assert response.is_success, response.text
    assert str(response.status_code) in operation["responses"]


def test_the_sample_is_a_file_of_ascii_characters() -> None:
    assert json.loads(json.dumps(clip())).encode() == clip().encode("ascii")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text": " "}, "text must be 1 to 10000 characters, not only spaces"),
        ({"text": "\x1c\x85"}, "text must be 1 to 10000 characters, not only spaces"),
        ({"text": "5", "top_p": 2}, "top_p must be from 0.01 to 1"),
        ({"text": "5", "seed": -1}, "seed must be from 0 to 9223372036854775807"),
        ({"text": "5", "max_seconds": 0}, "max_seconds must be more than 0"),
        ({"text": "5", "speaker": 2**64}, "speaker must be from -2^63 to 2^63 - 1"),
        ({"text": "5", "conversation": "a\n"}, "conversation must be 1 to 128 letters"),
        (
            {"text": "5", "context": [{"speaker": 1000, "text": "a", "audio": ""}]},
            "context[0].speaker must be from 0 to 999",
        ),
        ({"text": "5", "top_k": 1.5}, "top_k: Expected `int | null`, got `float`"),
    ],
)
def test_a_violated_limit_is_described_in_words(
    tone_server: RunningServer, fields: Json, message: str
) -> None:
    param = next(reversed(fields))
    response = tone_server.http.post("/generate", json=fields)
    assert check_error(response, 400, param, "invalid_request").startswith(message)


def allowed(response: httpx.Response) -> set[str]:
    return set(response.headers["allow"].replace(" ", "").split(","))


def test_every_path_lists_its_methods(tone_server: RunningServer, document: Json) -> None:
    for path, methods in document["paths"].items():
        here = re.sub(r"\{\w+\}", "x", path)
        known = {method.upper() for method in methods} | {"OPTIONS"}
        known |= {"HEAD"} if "GET" in known else set()
        response = tone_server.http.options(here)
        assert response.status_code == 204
        assert allowed(response) == known, path
        refused = tone_server.http.patch(here)
        check_error(refused, 405, code="method_not_allowed")
        assert allowed(refused) == known, path
