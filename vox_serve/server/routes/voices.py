"""Routes under /v1/audio/voices: register a voice, look at one, forget one."""

from __future__ import annotations

import io
import re
import time
from typing import IO, Any

import msgspec
from litestar import Request, Response, delete, get, post, route
from litestar.datastructures import State, UploadFile
from litestar.params import FromPath, FromQuery

from vox_serve.errors import InvalidRequest, UnspeakableText
from vox_serve.server.body import MULTIPART, read_form
from vox_serve.server.voices.registry import Voices
from vox_serve.server.voices.store import (
    MAX_SPEAKER,
    NAME,
    NAME_RULE,
    VoiceRecord,
    VoiceUnusable,
    check_text,
)
from vox_serve.workers.engines import Engines

MAX_AUDIO_BYTES = 10 * 2**20
ALIASES = {"audio_sample": "audio", "transcript": "text"}
"""OpenAI's name of the sample, and the plain one of what is said in it."""
PATHS = ["/v1/audio/voices", "/v1/audio/voices/{voice:str}"]
FIELDS = ("name", "audio", "text", "speaker", "model", "consent")


@post("/v1/audio/voices", status_code=201)
async def add(request: Request[Any, Any, Any], state: State) -> dict[str, Any]:
    """Register a voice."""
    if not request.headers.get("content-type", "").lower().startswith(MULTIPART):
        raise InvalidRequest(f"send {MULTIPART} with name, audio and text")
    fields = await read_form(request)
    form = {ALIASES.get(name, name): value for name, value in fields.items()}
    if len(form) < len(fields):
        raise InvalidRequest("the sample or its text is given under two names")
    engines: Engines = state.engines
    voices: Voices = state.voices
    name, record, file = read_voice(form)
    client = engines.choose(record.model)
    request.scope["state"]["model"] = client.model
    if not client.admit().takes_context:
        raise UnspeakableText(
            f"{client.model} learns no voices: it was not trained to follow earlier speech",
            "model",
        )
    record = msgspec.structs.replace(record, model=client.model, created=int(time.time()))
    return await voices.add(client, name, record, file)


@get("/v1/audio/voices/{voice:str}")
async def show(
    state: State, voice: FromPath[str], model: FromQuery[str | None] = None
) -> dict[str, Any]:
    """One voice, registered or a model's own; `model` says whose, where several have it."""
    voices: Voices = state.voices
    return voices.find(voice, model)


@delete("/v1/audio/voices/{voice:str}", status_code=200)
async def remove(state: State, voice: FromPath[str]) -> dict[str, Any]:
    """Forget a registered voice."""
    voices: Voices = state.voices
    await voices.remove(voice)
    return {"id": voice, "object": "audio.voice", "deleted": True}


@route(PATHS, http_method="OPTIONS", status_code=204)
async def options(request: Request[Any, Any, Any]) -> Response[None]:
    """What a path is good for; of Litestar's own answer only its first handler is part."""
    here = request.scope["path_template"]
    methods = next(one.methods for one in request.app.routes if one.path_format == here)
    return Response(None, headers={"Allow": ", ".join(sorted(methods))})


def read_voice(form: dict[str, str | UploadFile]) -> tuple[str, VoiceRecord, IO[bytes]]:
    """Check a form's fields: the name, what the record holds, and the file of the sample.

    Raises:
        InvalidRequest: a field is missing, unknown or out of range; names it.
    """
    audio = form.get("audio")
    for field, value in form.items():
        if field not in FIELDS:
            raise InvalidRequest(f"unknown field {field!r}; there are {', '.join(FIELDS)}", field)
        if field != "audio" and not isinstance(value, str):
            raise InvalidRequest(f"{field} must be a plain form field, not a file", field)
    for field in ("name", "text"):
        if field not in form:
            raise InvalidRequest(f"{field} is required", field)
    if not isinstance(audio, UploadFile):
        raise InvalidRequest("audio is required: a file with a sample of the voice", "audio")
    name, speaker = str(form["name"]), str(form.get("speaker", "0"))
    if not NAME.fullmatch(name):
        raise InvalidRequest(f"name must be {NAME_RULE}", "name")
    if not re.fullmatch(r"[0-9]{1,3}", speaker):
        raise InvalidRequest(f"speaker must be an integer from 0 to {MAX_SPEAKER}", "speaker")
    size = audio.file.seek(0, io.SEEK_END)
    if size > MAX_AUDIO_BYTES:
        raise InvalidRequest(f"audio has {size} bytes; the limit is {MAX_AUDIO_BYTES}", "audio")
    audio.file.seek(0)
    try:
        text = check_text(str(form["text"]))
    except VoiceUnusable as error:
        raise InvalidRequest(str(error), "text") from error
    model = form.get("model")
    record = VoiceRecord(text=text, speaker=int(speaker), model=str(model) if model else None)
    return name, record, audio.file
