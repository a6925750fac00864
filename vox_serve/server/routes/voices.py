"""Routes under /v1/audio/voices: register, list, show and delete voices."""

from __future__ import annotations

import io
import time
from typing import Annotated, Any

import msgspec
from litestar import Request, Response, delete, get, post, route
from litestar.datastructures import UploadFile
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery

from vox_serve.errors import InvalidRequest, UnspeakableText
from vox_serve.server import replies
from vox_serve.server.access.middleware import READ, access
from vox_serve.server.body import MULTIPART, invalid, read_form, refuse_files
from vox_serve.server.fields import words
from vox_serve.server.openapi.operation import described, request_body
from vox_serve.server.owner import Owner
from vox_serve.server.voices.registry import KnownVoice, Voices
from vox_serve.server.voices.store import (
    MAX_SPEAKER,
    MAX_TEXT_CHARACTERS,
    NAME,
    NAME_RULE,
    VoiceRecord,
)
from vox_serve.workers.engines import Engines

MAX_AUDIO_BYTES = 10 * 2**20
ALIASES = {"audio_sample": "audio", "transcript": "text"}
"""OpenAI's name for the sample, and another name for the text spoken in it."""
PATHS = ["/v1/audio/speech", "/v1/audio/voices", "/v1/audio/voices/{voice:str}"]
"""The paths with more than one handler."""


class VoiceForm(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A new voice: a sample and its transcript."""

    name: Annotated[
        str,
        msgspec.Meta(pattern=f"^{NAME.pattern}$", description=NAME_RULE, extra={"rule": NAME_RULE}),
    ]
    audio: Annotated[
        UploadFile,
        msgspec.Meta(
            description=f"a file of up to {MAX_AUDIO_BYTES >> 20} MiB and 30 s, in any format "
            "that libsndfile reads"
        ),
    ]
    text: Annotated[str, words(MAX_TEXT_CHARACTERS, "what is said in the sample")]
    speaker: Annotated[
        int,
        msgspec.Meta(
            ge=0,
            le=MAX_SPEAKER,
            description="the model's speaker id that the voice uses",
            extra={"rule": f"an integer from 0 to {MAX_SPEAKER}"},
        ),
    ] = 0
    model: (
        Annotated[
            str,
            msgspec.Meta(description="the model that it is for; required if there are several"),
        ]
        | None
    ) = None
    consent: Annotated[str, msgspec.Meta(description="accepted and ignored")] | None = None


def clip() -> str:
    """A tenth of a second of audio as a WAV file whose bytes are all ASCII.

    JSON cannot contain binary data, but it can contain this file unchanged.
    """
    samples = bytes(0x60 + number % 16 for number in range(800))  # 8 bits each, at 8 kHz
    fmt = b"fmt \x10\0\0\0\x01\0\x01\0\x40\x1f\0\0\x40\x1f\0\0\x01\0\x08\0"
    data = b"data\x20\x03\0\0" + samples
    return (b"RIFF\x44\x03\0\0WAVE" + fmt + data).decode("ascii")


EXAMPLE = {"name": "anna", "audio": clip(), "text": "Good morning, this is Anna."}


@post(
    "/v1/audio/voices",
    status_code=201,
    tags=["voices"],
    operation_class=described(
        *(400, 401, 403, 404, 408, 409, 413, 422, 429, 500, 503),
        body=request_body({"voice": EXAMPLE}, form=VoiceForm.__name__),
    ),
)
async def add(
    request: Request[Any, Any, Any],
    engines: NamedDependency[Engines],
    registered: NamedDependency[Voices],
    owner: NamedDependency[Owner],
) -> replies.Voice:
    """Register a voice."""
    form = await read_voice(request, engines.server.read_timeout)
    client = engines.choose(form.model or None).base
    request.scope["state"]["model"] = client.model
    if not client.admit().takes_voices:
        raise UnspeakableText(f"{client.model} cannot learn voices from clips", "model")
    record = VoiceRecord(
        text=form.text.strip(),
        speaker=form.speaker,
        model=client.model,
        created=int(time.time()),
    )
    return _shown(await registered.add(owner, client, form.name, record, form.audio.file))


@get("/v1/audio/voices", tags=["voices"], opt=access(READ), operation_class=described(401, 403))
async def listed(
    registered: NamedDependency[Voices], owner: NamedDependency[Owner]
) -> replies.Voices:
    """The voices of every model, including registered ones, without aliases."""
    return replies.Voices(voices=list(map(_shown, registered.listed(owner))))


@get(
    "/v1/audio/voices/{voice:str}",
    tags=["voices"],
    opt=access(READ),
    operation_class=described(400, 401, 403, 404),
)
async def show(
    registered: NamedDependency[Voices],
    owner: NamedDependency[Owner],
    voice: FromPath[str],
    model: FromQuery[str | None] = None,
) -> replies.Voice:
    """One voice, registered or built in; `model` is required if several models have it."""
    return _shown(registered.find(owner, voice, model))


@delete(
    "/v1/audio/voices/{voice:str}",
    status_code=200,
    tags=["voices"],
    operation_class=described(400, 401, 403, 404, 503),
)
async def remove(
    registered: NamedDependency[Voices],
    owner: NamedDependency[Owner],
    voice: FromPath[str],
) -> replies.VoiceDeleted:
    """Delete a registered voice."""
    await registered.remove(owner, voice)
    return replies.VoiceDeleted(id=voice, object="audio.voice", deleted=True)


@route(PATHS, http_method="OPTIONS", status_code=204, include_in_schema=False)
async def options(request: Request[Any, Any, Any]) -> Response[None]:
    """The methods of a path; Litestar's default lists only the first handler's."""
    here = request.scope["path_template"]
    methods = next(one.methods for one in request.app.routes if one.path_format == here)
    return Response(None, headers={"Allow": ", ".join(sorted(methods))})


def _shown(voice: KnownVoice) -> replies.Voice:
    found = replies.Voice(
        id=voice.name,
        object="audio.voice",
        name=voice.name,
        model=voice.client.model,
        speaker=voice.speaker,
    )
    if voice.registered is not None:
        record = voice.registered.record
        found.text, found.created_at = record.text, record.created
        found.seconds, found.kept = round(voice.registered.seconds, 3), voice.registered.kept
    return found


async def read_voice(request: Request[Any, Any, Any], timeout: float) -> VoiceForm:
    """Read the form of a new voice.

    Raises:
        InvalidRequest: the body is not a form, or a field is missing, unknown or out of range.
        BodyTooSlow, HTTPException, ClientGone: as `read_form`.
    """
    if not request.headers.get("content-type", "").lower().startswith(MULTIPART):
        raise InvalidRequest(f"send {MULTIPART} with name, audio and text")
    fields = await read_form(request, timeout)
    form = {ALIASES.get(name, name): value for name, value in fields.items()}
    if len(form) < len(fields):
        raise InvalidRequest("the sample or its text is given under two names")
    refuse_files(form, "audio")
    if not isinstance(form.get("audio"), UploadFile):
        raise InvalidRequest("audio is required: a file with a sample of the voice", "audio")
    try:
        read = msgspec.convert(form, VoiceForm, strict=False)
    except msgspec.ValidationError as error:
        raise invalid(error, VoiceForm, form=True) from error
    if not NAME.fullmatch(read.name):  # a pattern's `$` also matches before a final newline
        raise InvalidRequest(f"name must be {NAME_RULE}", "name")
    size = read.audio.file.seek(0, io.SEEK_END)
    if size > MAX_AUDIO_BYTES:
        raise InvalidRequest(f"audio has {size} bytes; the limit is {MAX_AUDIO_BYTES}", "audio")
    read.audio.file.seek(0)
    return read
