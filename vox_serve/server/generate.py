"""POST /generate: text in, speech out."""

from __future__ import annotations

import asyncio
import io
import re
import time
import uuid
from typing import Annotated, Any

import msgspec
from litestar import Request, Response, post
from litestar.datastructures import State
from litestar.exceptions import HTTPException, InternalServerException
from litestar.types import Scope

from vox_serve.audio import AudioUnreadable, read_audio
from vox_serve.engine.client import EngineClient
from vox_serve.engine.engines import Engines
from vox_serve.engine.messages import EngineInfo, SpeechRequest
from vox_serve.errors import InvalidRequest, RequestError
from vox_serve.sampling import RANGES
from vox_serve.server.audio import FORMATS, AudioFormat
from vox_serve.server.parts import parts
from vox_serve.server.stream import (
    AudioResponse,
    AudioStream,
    ClientGone,
    is_client_error,
    unless_gone,
)
from vox_serve.voice import Segment

MAX_TEXT_CHARACTERS = 10_000
MAX_CONTEXT_SEGMENTS = 32
CONVERSATION = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
MULTIPART = "multipart/form-data"
Integer = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
"""JSON bounds no integer; one of 400 digits is no speaker, and overflows a float."""


class ContextTurn(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One earlier turn; `audio` is base64 in JSON, of any format that libsndfile reads."""

    speaker: Integer
    text: str
    audio: bytes


class GenerateRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The fields of POST /generate; docs/http-api.md says what each means."""

    text: str
    speaker: Integer | None = None
    streaming: bool = False
    voice: str | None = None
    context: list[ContextTurn] | None = None
    conversation: str | None = None
    temperature: float | None = None
    top_k: Integer | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: Integer | None = None
    max_seconds: float | None = None
    format: str = "wav"
    model: str | None = None


@post("/generate", status_code=200)
async def generate(request: Request[Any, Any, Any], state: State) -> Response[bytes]:
    """Speak a text; answers once the first sound is there."""
    arrival = time.monotonic()
    request_id = request.scope["state"]["request_id"] = uuid.uuid4().hex
    engines: Engines = state.engines
    metrics, mode = engines.metrics, "whole"
    try:
        body = await read_body(request)
        mode = "stream" if body.streaming else "whole"
        audio_format = check(body)
        client = engines.choose(body.model)
        metrics = client.metrics
        request.scope["state"]["model"] = client.model
        info = client.admit()
        context: tuple[Segment, ...] = ()
        if body.context:
            context = await asyncio.to_thread(read_context, body.context, info)
        speech = SpeechRequest(
            id=request_id,
            text=body.text,
            speaker=body.speaker or 0,
            voice=body.voice,
            context=context,
            sampling=given_sampling(body),
            max_seconds=body.max_seconds,
            conversation=body.conversation,
            arrival=arrival,
        )
        stream = AudioStream(client, info, parts(speech, info), mode, arrival)
    except (RequestError, HTTPException) as error:
        rejected = isinstance(error, RequestError) and not is_client_error(error)
        metrics.requests_total(mode, "rejected" if rejected else "invalid").inc()
        raise
    except ClientGone:
        metrics.requests_total(mode, "cancelled").inc()
        metrics.client_disconnects_total("queued").inc()
        raise
    try:
        if body.streaming:
            return await _streamed(request, stream, audio_format, info, client)
        return await _whole(request, stream, audio_format, info)
    except BaseException:
        stream.close()
        raise


async def _streamed(
    request: Request[Any, Any, Any],
    stream: AudioStream,
    audio_format: AudioFormat,
    info: EngineInfo,
    client: EngineClient,
) -> Response[bytes]:
    first = await unless_gone(request.receive, stream.next())

    def on_cut(scope: Scope) -> None:
        template = str(scope.get("path_template", ""))
        client.metrics.http_responses_total.labels(client.model, template, "cut").inc()

    headers = _headers(stream, info) | {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    timeout = client.server.send_timeout
    return AudioResponse(stream, first, audio_format, info.sample_rate, timeout, headers, on_cut)


async def _whole(
    request: Request[Any, Any, Any],
    stream: AudioStream,
    audio_format: AudioFormat,
    info: EngineInfo,
) -> Response[bytes]:
    async def gather() -> bytes:
        pieces = []
        while (pcm := await stream.next()) is not None:
            pieces.append(pcm)
        return b"".join(pieces)

    pcm = await unless_gone(request.receive, gather())
    stream.close("ok")
    headers = _headers(stream, info)
    content = audio_format.header(info.sample_rate, len(pcm)) + pcm
    return Response(content, status_code=200, media_type=audio_format.media_type, headers=headers)


def _headers(stream: AudioStream, info: EngineInfo) -> dict[str, str]:
    headers = {
        "X-Request-Id": stream.id,
        "X-Sample-Rate": str(info.sample_rate),
        "X-Channels": "1",
    }
    if stream.finished is not None:  # a stream is seldom at its end by now
        headers["X-Finish-Reason"] = stream.finished.reason.value
        headers["X-Seed"] = str(stream.finished.seed)
    return headers


async def read_body(request: Request[Any, Any, Any]) -> GenerateRequest:
    """Decode the body, JSON or multipart form.

    Raises:
        InvalidRequest: it is malformed; names the field.
        HTTPException: it is too large.
        ClientGone: the client left before all of it was there.
    """
    try:
        if request.headers.get("content-type", "").lower().startswith(MULTIPART):
            return msgspec.convert(await _form(request), GenerateRequest, strict=False)
        return msgspec.json.decode(await request.body(), type=GenerateRequest)
    except msgspec.DecodeError as error:
        raise _invalid(error) from error
    except InternalServerException:  # what Litestar makes of a client that left
        raise ClientGone from None
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply") from None
    except (UnicodeError, LookupError) as error:
        raise InvalidRequest(f"the body's text encoding is wrong ({error})") from error


async def _form(request: Request[Any, Any, Any]) -> dict[str, object]:
    try:
        form = await request.form()
    except HTTPException as error:
        if error.status_code != 400:
            raise
        raise InvalidRequest(f"the multipart body cannot be read: {error.detail}") from error
    except ValueError as error:
        raise InvalidRequest(f"the multipart body cannot be read: {error}") from error
    fields: dict[str, object] = {}
    for name, value in form.multi_items():
        if name in fields:
            raise InvalidRequest(f"{name} is given more than once", name)
        if not isinstance(value, str):
            raise InvalidRequest(f"{name} must be a plain form field, not a file", name)
        fields[name] = value
    if "context" in fields:  # a list has no spelling of its own in a form: it comes as JSON
        try:
            fields["context"] = msgspec.json.decode(str(fields["context"]))
        except msgspec.DecodeError as error:
            raise InvalidRequest(f"context is not JSON: {error}", "context") from error
    return fields


def _invalid(error: msgspec.DecodeError) -> InvalidRequest:
    """Name the field, which msgspec gives as a path at the end or in backquotes."""
    message = str(error)
    if not isinstance(error, msgspec.ValidationError):
        return InvalidRequest(f"the body is not JSON: {message}")
    text, _, path = message.partition(" - at `")
    field = re.match(r"\$\.?(\w+)", path) or re.search(r"field `([^`]*)`", text)
    where = path.rstrip("`").removeprefix("$.")
    return InvalidRequest(f"{where}: {text}" if where else text, field[1] if field else None)


def check(body: GenerateRequest) -> AudioFormat:
    """Check all that can be checked without the model.  Raises InvalidRequest."""
    if not body.text.strip():
        raise InvalidRequest("text is empty", "text")
    if len(body.text) > MAX_TEXT_CHARACTERS:
        raise InvalidRequest(
            f"text has {len(body.text)} characters; the limit is {MAX_TEXT_CHARACTERS}", "text"
        )
    if body.voice is not None and body.speaker is not None:
        raise InvalidRequest("give voice or speaker, not both", "voice")
    if body.format not in FORMATS:
        raise InvalidRequest(
            f"format must be one of {', '.join(FORMATS)}, not {body.format[:40]!r}", "format"
        )
    if len(body.context or ()) > MAX_CONTEXT_SEGMENTS:
        raise InvalidRequest(f"context may hold {MAX_CONTEXT_SEGMENTS} segments", "context")
    if body.conversation is not None and not CONVERSATION.fullmatch(body.conversation):
        raise InvalidRequest(
            "conversation must be 1 to 128 letters, digits, '_', '-', '.' or ':'", "conversation"
        )
    for turn in body.context or ():
        if not turn.text.strip():
            raise InvalidRequest("context: a segment's text is empty", "context")
        if not 0 <= turn.speaker <= 999:
            raise InvalidRequest("context: speaker must be from 0 to 999", "context")
    for name, value in given_sampling(body).items():
        RANGES[name].check(name, value)
    return FORMATS[body.format]


def given_sampling(body: GenerateRequest) -> dict[str, Any]:
    """The sampling parameters that the request names."""
    return {name: getattr(body, name) for name in RANGES if getattr(body, name) is not None}


def read_context(turns: list[ContextTurn], info: EngineInfo) -> tuple[Segment, ...]:
    """Decode the turns' audio; what cannot fit the context is refused while it is read."""
    seconds_left = info.max_positions / info.frame_rate
    segments = []
    for number, turn in enumerate(turns):
        try:
            audio = read_audio(io.BytesIO(turn.audio), info.sample_rate, seconds_left)
        except AudioUnreadable as error:
            raise InvalidRequest(f"context[{number}]: {error}", "context") from error
        seconds_left -= len(audio) / info.sample_rate
        segments.append(Segment(turn.speaker, turn.text, audio))
    return tuple(segments)
