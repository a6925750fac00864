"""POST /generate: text in, speech out."""

from __future__ import annotations

import asyncio
import io
from typing import Annotated, Any

import msgspec
from litestar import Request, Response, post
from litestar.datastructures import State

from vox_serve.audio import AudioUnreadable, read_audio
from vox_serve.audio.formats import FORMATS, AudioFormat, find_format
from vox_serve.errors import InvalidRequest
from vox_serve.messages import EngineInfo, SpeechRequest
from vox_serve.server.body import read_body
from vox_serve.server.fields import Integer, one_of, words
from vox_serve.server.response import Framing
from vox_serve.server.speech import (
    Call,
    CommonFields,
    Order,
    answer,
    check_common,
    given_reading,
    given_sampling,
)
from vox_serve.server.voices.store import MAX_SPEAKER
from vox_serve.voice import Segment

MAX_TEXT_CHARACTERS = 10_000
MAX_CONTEXT_SEGMENTS = 32
SPEAKER = "speaker id; GET /voices lists the model's; 0 if neither it nor `voice` is given"
VOICE = "a voice by name, instead of `speaker`; GET /voices lists them"
MODEL = "a name out of GET /models; required if there are several"


class ContextTurn(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One earlier turn; `audio` is base64 in JSON, of any format that libsndfile reads."""

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
        bytes, msgspec.Meta(description="how it sounded: a file of any format libsndfile reads")
    ]


class GenerateRequest(CommonFields, forbid_unknown_fields=True, kw_only=True):
    """The fields of POST /generate; docs/http-api.md says what each means."""

    text: Annotated[str, words(MAX_TEXT_CHARACTERS, "what to say")]
    speaker: Annotated[Integer, msgspec.Meta(description=SPEAKER)] | None = None
    streaming: Annotated[bool, msgspec.Meta(description="send audio as it is made")] = False
    voice: Annotated[str, msgspec.Meta(description=VOICE)] | None = None
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
    format: Annotated[str, one_of(FORMATS, "of the audio")] = "wav"
    model: Annotated[str, msgspec.Meta(description=MODEL)] | None = None


@post("/generate", status_code=200)
async def generate(request: Request[Any, Any, Any], state: State) -> Response[bytes]:
    """Speak a text; answers once the first sound is there."""
    return await answer(request, state, _take)


async def _take(call: Call) -> Order:
    body = await read_body(call.request, GenerateRequest, form=True)
    call.account.mode = "stream" if body.streaming else "whole"
    audio_format = check(body)
    client, info = call.choose(body.model)
    context: tuple[Segment, ...] = ()
    if body.context:
        context = await asyncio.to_thread(read_context, body.context, info)
    speech = SpeechRequest(
        id=call.engine_id,
        text=body.text,
        speaker=body.speaker or 0,
        voice=body.voice,
        context=context,
        sampling=given_sampling(body),
        **given_reading(body),
        max_seconds=body.max_seconds,
        conversation=body.conversation,
        arrival=call.account.arrival,
    )
    framing = Framing(audio_format.media_type) if body.streaming else None
    return Order(client, info, speech, audio_format, framing)


def check(body: GenerateRequest) -> AudioFormat:
    """Check what msgspec did not, and needs no model.  Raises InvalidRequest."""
    if body.voice is not None and body.speaker is not None:
        raise InvalidRequest("give voice or speaker, not both", "voice")
    check_common(body)
    return find_format(body.format, "format")


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
