"""Routes compatible with OpenAI's API: /v1/audio/speech, /v1/models and /v1/audio/models."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import msgspec
from litestar import Request, Response, get, post
from litestar.di import NamedDependency
from litestar.openapi.spec import Parameter, Reference, Schema
from litestar.openapi.spec.enums import OpenAPIType
from litestar.params import FromPath
from msgspec import Meta

from vox_serve.audio.formats import FORMATS, PCM_24K, find_format
from vox_serve.audio.stretch import MAX_SPEED, MIN_SPEED, check_speed
from vox_serve.errors import InvalidRequest, RequestError
from vox_serve.messages import SpeechRequest
from vox_serve.server import foreign, replies
from vox_serve.server.access.middleware import READ, access
from vox_serve.server.body import JSON_FIELDS, read_body, read_query
from vox_serve.server.errors import error_fields
from vox_serve.server.fields import one_of, words
from vox_serve.server.openapi.operation import (
    EVENT_STREAM,
    REQUEST_ID_HEADER,
    SOUND_HEADERS,
    SPEAKING,
    described,
    request_body,
    sound,
)
from vox_serve.server.requests import OpenRequests
from vox_serve.server.response import Framing
from vox_serve.server.speech import (
    CommonFields,
    IncomingRequest,
    SpeechOrder,
    answer,
    check_common,
    given_reading,
    given_sampling,
)
from vox_serve.server.stream import AudioStream
from vox_serve.server.voices.aliases import voice_of
from vox_serve.workers.engines import Engines
from vox_serve.workers.interface import EngineClient

MAX_INPUT_CHARACTERS = 4096
STREAM_FORMATS = ("audio", "sse")
DEFAULT_MODEL = "tts-1"
"""The model for GET requests that do not name one."""
MODELS = re.compile(r"(tts-1|tts-1-hd|gpt-4o-mini-tts)(-\d{4}(-\d\d-\d\d)?)?")
"""The names of OpenAI's models, with or without a date; here they mean the first model."""


class VoiceId(msgspec.Struct, forbid_unknown_fields=True):
    """A reference to a registered voice, in the form of OpenAI's API."""

    id: str


class SpeechBody(CommonFields, forbid_unknown_fields=True, kw_only=True):
    """The fields of POST /v1/audio/speech, described in docs/http-api.md."""

    model: Annotated[
        str, Meta(description="as for /generate; `tts-1` and similar names mean the first model")
    ]
    input: Annotated[str, words(MAX_INPUT_CHARACTERS, "the text to speak")]
    voice: Annotated[str | VoiceId, Meta(description="a voice by name, or an alias")]
    instructions: (
        Annotated[str, Meta(description="how to speak; ignored if the model cannot follow it")]
        | None
    ) = None
    response_format: (
        Annotated[str, one_of(FORMATS, "format of the audio; `mp3` by default")] | None
    ) = None
    speed: (
        Annotated[
            float,
            Meta(
                ge=MIN_SPEED,
                le=MAX_SPEED,
                description="speaking rate; the pitch is unchanged",
                extra={"rule": f"from {MIN_SPEED:g} to {MAX_SPEED:g}"},
            ),
        ]
        | None
    ) = None
    stream_format: (
        Annotated[str, one_of(STREAM_FORMATS, "the audio file, or server-sent events")] | None
    ) = None
    stream: (
        Annotated[bool, Meta(description="false: the whole file at once, with its length")] | None
    ) = None


class SpeechEvents(Framing):
    """Pieces of audio as server-sent events; the last event says how the speech ended."""

    def __init__(self, characters: int) -> None:
        super().__init__("text/event-stream")
        self._characters = characters

    def piece(self, audio: bytes) -> bytes:
        return _event(type="speech.audio.delta", audio=base64.b64encode(audio).decode())

    def end(self, stream: AudioStream) -> bytes:
        finished = stream.finished
        assert finished is not None  # otherwise the stream would have raised
        usage = {
            "input_tokens": self._characters,
            "output_tokens": finished.frames,
            "total_tokens": self._characters + finished.frames,
        }
        reason = finished.reason.value
        return _event(
            type="speech.audio.done", usage=usage, finish_reason=reason, seed=finished.seed
        )

    def failure(self, error: RequestError) -> bytes:
        return _event(error=error_fields(error))


def _event(**fields: Any) -> bytes:
    return b"data: " + msgspec.json.encode(fields) + b"\n\n"


EXAMPLES = {"mp3": {"model": "tts-1", "voice": "alloy", "input": "Good morning."}}


@post(
    "/v1/audio/speech",
    status_code=200,
    tags=["speech"],
    operation_class=described(
        *SPEAKING,
        body=request_body(EXAMPLES, json=SpeechBody.__name__),
        content=sound(EVENT_STREAM),
        headers=SOUND_HEADERS,
        parameters=(REQUEST_ID_HEADER,),
    ),
)
async def speech(
    request: Request[Any, Any, Any],
    engines: NamedDependency[Engines],
    open_requests: NamedDependency[OpenRequests],
) -> Response[bytes]:
    """Speak a text; the audio is sent as it is generated."""
    with _named_input():
        return await answer(request, engines, open_requests, _parse)


QUERY = tuple(
    Parameter(
        name=name,
        param_in="query",
        required=name in ("input", "voice"),
        schema=Schema(type=OpenAPIType.STRING)
        if name == "voice"
        else Reference(ref=f"#/components/schemas/{SpeechBody.__name__}/properties/{name}"),
    )
    for name in SpeechBody.__struct_fields__
    if name not in JSON_FIELDS
)


@get(
    "/v1/audio/speech",
    tags=["speech"],
    operation_class=described(
        *(status for status in SPEAKING if status not in (408, 413)),
        content=sound(EVENT_STREAM),
        headers=SOUND_HEADERS,
        parameters=(*QUERY, REQUEST_ID_HEADER),
    ),
)
async def speech_at_address(
    request: Request[Any, Any, Any],
    engines: NamedDependency[Engines],
    open_requests: NamedDependency[OpenRequests],
) -> Response[bytes]:
    """Speak a text from the query string, for players that accept only a URL."""
    with _named_input():
        return await answer(request, engines, open_requests, _parse_query)


@contextmanager
def _named_input() -> Iterator[None]:
    """Make errors about the text name this route's field."""
    try:
        yield
    except RequestError as error:
        if error.param == "text" and not isinstance(error, InvalidRequest):
            # The engine says `text`; an InvalidRequest already names a field of this body.
            error.param = "input"
        raise


async def _parse(incoming: IncomingRequest) -> SpeechOrder:
    incoming.account.mode = "stream"
    timeout = incoming.engines.server.read_timeout
    names = foreign.SPEECH if incoming.foreign else None
    return _order(incoming, await read_body(incoming.request, SpeechBody, timeout, foreign=names))


async def _parse_query(incoming: IncomingRequest) -> SpeechOrder:
    incoming.account.mode = "stream"
    names = foreign.SPEECH if incoming.foreign else None
    body = read_query(incoming.request, SpeechBody, {"model": DEFAULT_MODEL}, names)
    return _order(incoming, body)


def _order(incoming: IncomingRequest, body: SpeechBody) -> SpeechOrder:
    name = body.response_format or "mp3"
    audio_format = find_format(name, "response_format")
    if audio_format.name == "pcm" and body.sample_rate is None:
        audio_format = PCM_24K
    else:
        audio_format = audio_format.at(body.sample_rate)
    speed = 1.0 if body.speed is None else body.speed
    _check(body, speed)
    client, info = incoming.choose(served(incoming.engines, body.model))
    if body.instructions and "instructions" not in info.parameters:
        incoming.request.scope["state"]["ignored"].append("instructions")
    wanted = body.voice if isinstance(body.voice, str) else body.voice.id
    request = SpeechRequest(
        id=incoming.engine_id,
        text=body.input,
        voice=voice_of(client, wanted, incoming.owner),
        sampling=given_sampling(body, info),
        **given_reading(body),
        max_seconds=body.max_seconds,
        conversation=incoming.conversation(body),
        arrival=incoming.account.arrival,
    )
    framing: Framing | None = Framing(audio_format.media_type)
    if body.stream_format == "sse":
        framing = SpeechEvents(len(body.input))
    elif body.stream is False:
        framing = None
        incoming.account.mode = "whole"
    return SpeechOrder(client, info, request, audio_format, framing, speed)


def _check(body: SpeechBody, speed: float) -> None:
    if body.stream_format not in (None, *STREAM_FORMATS):
        raise InvalidRequest(
            f"stream_format must be one of {', '.join(STREAM_FORMATS)}, "
            f"not {body.stream_format[:40]!r}",
            "stream_format",
        )
    check_speed(speed)
    check_common(body)


def served(engines: Engines, model: str) -> str:
    """The name of a served model; the names of OpenAI's models mean the first."""
    names = [client.model for client in engines.models]
    return names[0] if model not in names and MODELS.fullmatch(model) else model


@get("/v1/models", tags=["models"], opt=access(READ), operation_class=described(401, 403))
async def models(engines: NamedDependency[Engines]) -> replies.OpenAIModels:
    """The loaded models, in the form of OpenAI's API."""
    data = [_model(client, engines) for client in engines.loaded]
    return replies.OpenAIModels(object="list", data=data)


@get(
    "/v1/models/{name:path}",
    tags=["models"],
    opt=access(READ),
    operation_class=described(401, 403, 404),
)
async def model(engines: NamedDependency[Engines], name: FromPath[str]) -> replies.OpenAIModel:
    """One model, by any name that a request may use for it."""
    client = engines.choose(served(engines, name.removeprefix("/")))
    return _model(client, engines)


def _model(client: EngineClient, engines: Engines) -> replies.OpenAIModel:
    return replies.OpenAIModel(
        id=client.model, object="model", created=engines.created, owned_by="vox_serve"
    )


@get("/v1/audio/models", tags=["models"], opt=access(READ), operation_class=described(401, 403))
async def audio_models(engines: NamedDependency[Engines]) -> replies.ModelIds:
    """The loaded models, in the form that Open WebUI expects."""
    return replies.ModelIds(models=[replies.ModelId(id=c.model) for c in engines.loaded])
