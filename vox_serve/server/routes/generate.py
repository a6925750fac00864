"""POST /generate: text in, speech out."""

from __future__ import annotations

import io
from typing import Annotated, Any

import msgspec
from litestar import Request, Response, post
from litestar.di import NamedDependency

from vox_serve.audio import AudioUnreadable
from vox_serve.audio.formats import FORMATS, find_format
from vox_serve.errors import InvalidRequest
from vox_serve.messages import EngineInfo, SpeechRequest
from vox_serve.server import foreign
from vox_serve.server.body import read_body
from vox_serve.server.fields import one_of, words
from vox_serve.server.openapi.operation import (
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
    IncomingRequest,
    SpeechOrder,
    VoiceFields,
    answer,
    check_voice,
    given_reading,
    given_sampling,
)
from vox_serve.server.voices.aliases import voice_named
from vox_serve.server.voices.store import MAX_SPEAKER
from vox_serve.voice import Segment
from vox_serve.workers.engines import Engines
from vox_serve.workers.jobs import Jobs
from vox_serve.workers.reading import read_clip

MAX_TEXT_CHARACTERS = 10_000
MAX_CONTEXT_SEGMENTS = 32


class ContextTurn(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """An earlier turn; `audio` is a file in any format that libsndfile reads, in base64."""

    speaker: Annotated[
        int,
        msgspec.Meta(
            ge=0,
            le=MAX_SPEAKER,
            description="who spoke",
            extra={"rule": f"from 0 to {MAX_SPEAKER}"},
        ),
    ]
    text: Annotated[str, words(MAX_TEXT_CHARACTERS, "what was said")]
    audio: Annotated[
        bytes,
        msgspec.Meta(description="how it sounded: a file in any format that libsndfile reads"),
    ]


class GenerateRequest(VoiceFields, forbid_unknown_fields=True, kw_only=True):
    """The fields of POST /generate, described in docs/http-api.md."""

    text: Annotated[str, words(MAX_TEXT_CHARACTERS, "the text to speak")]
    streaming: Annotated[bool, msgspec.Meta(description="send audio as it is generated")] = False
    context: (
        Annotated[
            list[ContextTurn],
            msgspec.Meta(
                max_length=MAX_CONTEXT_SEGMENTS,
                description="earlier turns, oldest first",
                extra={"rule": f"at most {MAX_CONTEXT_SEGMENTS} segments"},
            ),
        ]
        | None
    ) = None
    format: Annotated[str, one_of(FORMATS, "format of the audio")] = "wav"


EXAMPLES = {
    "whole": {"text": "Good morning.", "speaker": 0, "temperature": 0.8, "seed": 7},
    "streamed": {"text": "Good morning.", "streaming": True, "format": "flac"},
}


@post(
    "/generate",
    status_code=200,
    tags=["speech"],
    operation_class=described(
        *SPEAKING,
        body=request_body(EXAMPLES, json=GenerateRequest.__name__, form="GenerateForm"),
        content=sound(),
        headers=SOUND_HEADERS,
        parameters=(REQUEST_ID_HEADER,),
    ),
)
async def generate(
    request: Request[Any, Any, Any],
    engines: NamedDependency[Engines],
    open_requests: NamedDependency[OpenRequests],
) -> Response[bytes]:
    """Speak a text; responds once the first audio is ready."""
    return await answer(request, engines, open_requests, _parse)


async def _parse(incoming: IncomingRequest) -> SpeechOrder:
    body = await read_body(
        incoming.request,
        GenerateRequest,
        incoming.engines.server.read_timeout,
        form=True,
        foreign=foreign.GENERATE if incoming.foreign else None,
    )
    incoming.account.mode = "stream" if body.streaming else "whole"
    check_voice(body)
    audio_format = find_format(body.format, "format").at(body.sample_rate)
    client, info = incoming.choose(body.model)
    context: tuple[Segment, ...] = ()
    if body.context:
        context = await read_context(body.context, info, incoming.engines.clips)
    speech = SpeechRequest(
        id=incoming.engine_id,
        text=body.text,
        speaker=body.speaker or 0,
        voice=None if body.voice is None else voice_named(client, body.voice, incoming.owner),
        context=context,
        sampling=given_sampling(body, info),
        **given_reading(body),
        max_seconds=body.max_seconds,
        conversation=incoming.conversation(body),
        arrival=incoming.account.arrival,
    )
    framing = Framing(audio_format.media_type) if body.streaming else None
    return SpeechOrder(client, info, speech, audio_format, framing)


async def read_context(
    turns: list[ContextTurn], info: EngineInfo, clips: Jobs
) -> tuple[Segment, ...]:
    """Decode the turns' audio; audio too long for the context is rejected while it is read."""
    seconds_left = info.max_positions / info.frame_rate
    segments = []
    for number, turn in enumerate(turns):
        try:
            file = io.BytesIO(turn.audio)
            audio = await read_clip(clips, file, info.sample_rate, seconds_left)
        except AudioUnreadable as error:
            raise InvalidRequest(f"context[{number}]: {error}", "context") from error
        seconds_left -= len(audio) / info.sample_rate
        segments.append(Segment(turn.speaker, turn.text, audio))
    return tuple(segments)
