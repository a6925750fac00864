"""Shared by all speech routes: request fields, and the path from a request to its response.

A request is admitted, spoken and encoded.  However it ends, it is counted once.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import attrs
import msgspec
from litestar import Request, Response
from msgspec import Meta

from vox_serve.audio.formats import MAX_RATE, MIN_RATE, RATE_RULE, AudioFormat
from vox_serve.errors import InvalidRequest
from vox_serve.messages import EngineInfo, Finished, SpeechRequest
from vox_serve.sampling import RANGES
from vox_serve.server.access.bodies import release
from vox_serve.server.account import Account
from vox_serve.server.encoding import Encoding
from vox_serve.server.fields import CONVERSATION, CONVERSATION_RULE, Integer, one_of, sampling
from vox_serve.server.owner import Owner, owner_of
from vox_serve.server.requests import OpenRequests, request_id
from vox_serve.server.response import (
    EncodedStream,
    FileResponse,
    Framing,
    HeadersOnly,
    StreamResponse,
)
from vox_serve.server.stream import AudioStream, unless_gone
from vox_serve.text import Normalize, check_pronunciations, language_of
from vox_serve.workers.engines import Engines
from vox_serve.workers.interface import EngineClient

AnyRequest = Request[Any, Any, Any]
SPEAKER = "speaker id; GET /voices lists the model's; 0 if neither it nor `voice` is given"
VOICE = "a voice by name, instead of `speaker`; GET /voices lists them"
MAX_PARAMETERS = 32
MAX_PARAMETER_CHARACTERS = 10_000
"""Of a text; each parameter has a limit of its own."""
MODEL = "a name from GET /models; required if there are several"


class CommonFields(msgspec.Struct, kw_only=True):
    """The fields common to all speech requests."""

    conversation: (
        Annotated[
            str,
            Meta(
                description="an id; earlier turns with the same id come before this one",
                extra_json_schema={"pattern": f"^{CONVERSATION.pattern}$"},
            ),
        ]
        | None
    ) = None
    normalize: Annotated[
        str,
        one_of(
            [*Normalize],
            "`auto` writes numbers, signs and markup out as words; `strict` also refuses what "
            "cannot be spoken; `off` leaves the text unchanged",
        ),
    ] = "auto"
    pronunciations: (
        Annotated[
            dict[str, str],
            Meta(description="words, and respellings that correct their pronunciation"),
        ]
        | None
    ) = None
    language: (
        Annotated[
            str,
            Meta(
                max_length=40,
                pattern=r"^[A-Za-z0-9_-]*$",
                description="of the text, as a tag (`en-GB`): says how dates are read",
                extra={"rule": "a language tag such as en-GB"},
            ),
        ]
        | None
    ) = None
    sample_rate: (
        Annotated[
            int,
            Meta(
                ge=MIN_RATE,
                le=MAX_RATE,
                description="of the audio, in Hz; the model's if not given",
                extra={"rule": RATE_RULE},
            ),
        ]
        | None
    ) = None
    temperature: Annotated[float, sampling("temperature")] | None = None
    top_k: Annotated[int, sampling("top_k")] | None = None
    top_p: Annotated[float, sampling("top_p")] | None = None
    min_p: Annotated[float, sampling("min_p")] | None = None
    repetition_penalty: Annotated[float, sampling("repetition_penalty")] | None = None
    seed: Annotated[int, sampling("seed")] | None = None
    parameters: (
        Annotated[
            dict[str, int | float | Annotated[str, Meta(max_length=MAX_PARAMETER_CHARACTERS)]],
            Meta(
                max_length=MAX_PARAMETERS,
                description="parameters that only this model has; GET /models lists them",
                extra={"rule": f"an object of at most {MAX_PARAMETERS} numbers and texts"},
            ),
        ]
        | None
    ) = None
    max_seconds: (
        Annotated[
            float,
            Meta(
                gt=0,
                description="the longest audio, in seconds; at most `max_seconds` of GET /models",
                extra={"rule": "more than 0"},
            ),
        ]
        | None
    ) = None


class VoiceFields(CommonFields, kw_only=True):
    """The fields that choose a model and one of its voices."""

    speaker: Annotated[Integer, Meta(description=SPEAKER)] | None = None
    voice: Annotated[str, Meta(description=VOICE)] | None = None
    model: Annotated[str, Meta(description=MODEL)] | None = None


def given_sampling(body: CommonFields, info: EngineInfo) -> dict[str, Any]:
    """The parameters of the model that the request sets.

    The fields `language` and `instructions` set the parameters of these names, if the model has
    them.
    """
    given = {name: getattr(body, name) for name in RANGES if getattr(body, name) is not None}
    if body.language is not None and "language" in info.parameters:
        given["language"] = language_of(body.language)
    if (instructions := getattr(body, "instructions", None)) and "instructions" in info.parameters:
        given["instructions"] = instructions
    return given | (body.parameters or {})


def given_reading(body: CommonFields) -> dict[str, Any]:
    """The request's settings for text normalization."""
    return {
        "language": body.language,
        "normalize": Normalize(body.normalize),
        "pronunciations": body.pronunciations or {},
    }


def check_common(body: CommonFields) -> None:
    """Check what msgspec cannot check, before a model is chosen.  Raises InvalidRequest."""
    if body.normalize not in [*Normalize]:
        raise InvalidRequest(
            f"normalize must be auto, strict or off, not {body.normalize[:200]!r}", "normalize"
        )
    check_pronunciations(body.pronunciations or {})
    for name in RANGES.keys() & (body.parameters or {}).keys():
        raise InvalidRequest(f"parameters: {name} must be a field of the body", "parameters")
    if body.conversation is not None and not CONVERSATION.fullmatch(body.conversation):
        raise InvalidRequest(f"conversation must be {CONVERSATION_RULE}", "conversation")


def check_voice(body: VoiceFields) -> None:
    """Like `check_common`, and reject voice together with speaker.  Raises InvalidRequest."""
    if body.voice is not None and body.speaker is not None:
        raise InvalidRequest("give voice or speaker, not both", "voice")
    check_common(body)


@attrs.define
class IncomingRequest:
    """A request that is being read."""

    request: AnyRequest
    engines: Engines
    account: Account

    @property
    def owner(self) -> Owner:
        return self.account.owner

    def conversation(self, body: CommonFields) -> str | None:
        """The inner name of the request's conversation."""
        return None if body.conversation is None else self.owner.own(body.conversation)

    @property
    def engine_id(self) -> str:
        """An id for the engine, new on each access because clients reuse their ids."""
        return f"{self.account.name}/{uuid.uuid4().hex[:12]}"

    @property
    def foreign(self) -> bool:
        """Whether fields of other servers are accepted."""
        return not self.engines.server.strict_fields

    def choose(self, model: str | None) -> tuple[EngineClient, EngineInfo]:
        """Choose the engine; from here on its metrics count this request.

        Raises:
            NotFound, InvalidRequest: as `Engines.choose`.
            Unavailable, QueueFull: the engine does not accept requests.
        """
        client = self.engines.choose(model)
        self.account.metrics = client.metrics
        self.request.scope["state"]["model"] = client.model
        return client, client.check_room()


@attrs.frozen
class SpeechOrder:
    """What to speak, by which engine, and how to deliver it.

    Args:
        speed: speaking rate; the pitch is unchanged.
        framing: how a stream is written to the body; None for a whole response.
    """

    client: EngineClient
    info: EngineInfo
    speech: SpeechRequest
    audio_format: AudioFormat
    framing: Framing | None
    speed: float = 1.0


async def answer(
    request: AnyRequest,
    engines: Engines,
    open_requests: OpenRequests,
    parse: Callable[[IncomingRequest], Awaitable[SpeechOrder]],
) -> Response[bytes]:
    """Respond to a request once its first audio is ready.

    Args:
        open_requests: lists the request while it is open.
        parse: reads and checks the request; raises RequestError, HTTPException or ClientGone.
    """
    account = Account(request_id(request.scope), engines.metrics, owner=owner_of(request.scope))
    try:
        order = await parse(IncomingRequest(request, engines, account))
        release(request.scope)
        speech = await _split(order, request)
        if request.scope["state"].get("head"):
            account.end()
            kind = (
                order.audio_format.media_type if order.framing is None else order.framing.media_type
            )
            return HeadersOnly(kind, _headers(request, account, speech, order))
        encoding = None
        if order.framing is not None:
            encoding = Encoding(order.audio_format, order.info.sample_rate, order.speed)
        stream = AudioStream(order.client, order.info, speech, account, open_requests)
    except Exception as error:
        account.end(error)
        raise
    if encoding is None:
        return await _whole(request, stream, order)
    return await _streamed(request, EncodedStream(stream, encoding), order)


def ignored_fields(request: AnyRequest, order: SpeechOrder) -> list[str]:
    """The fields that had no effect."""
    ignored = list(request.scope["state"].get("ignored", ()))
    spoken = "language" in order.info.parameters
    if not spoken and not order.client.front_end.speaks(order.speech.language):
        ignored.append("language")
    return ignored


async def _split(order: SpeechOrder, request: AnyRequest) -> SpeechRequest:
    """Split the request into parts; holds a place in the queue meanwhile.

    Raises:
        RequestError: the queue is full, or the text cannot be normalised.
        ClientGone: the client left.
    """
    with order.client.reserve():
        reading = order.client.reader.split(order.speech, order.info)
        return await unless_gone(request.receive, reading)


async def _streamed(
    request: AnyRequest, audio: EncodedStream, order: SpeechOrder
) -> Response[bytes]:
    assert order.framing is not None
    try:
        first = await unless_gone(request.receive, audio.next())
        headers = _headers(request, audio.stream.account, audio.stream.request, order)
        headers |= _ended(audio.stream.finished)  # rarely known by now
        return StreamResponse(audio, first, order.framing, order.client, headers)
    except BaseException as error:
        audio.close(error)
        raise


async def _whole(request: AnyRequest, stream: AudioStream, order: SpeechOrder) -> Response[bytes]:
    async def gather() -> bytes:
        pieces = []
        while (pcm := await stream.next()) is not None:
            pieces.append(pcm)
        pcm = b"".join(pieces)
        rate = order.info.sample_rate
        with stream.account.busy("encode"):
            content = await asyncio.to_thread(order.audio_format.whole, rate, pcm, order.speed)
        await stream.next()  # returns None, or raises if the request was cancelled meanwhile
        return content

    try:
        content = await unless_gone(request.receive, gather())
        headers = _headers(request, stream.account, stream.request, order)
        headers |= _ended(stream.finished)
        kind = order.audio_format.media_type
        return FileResponse(stream, content, kind, order.client, headers)
    except BaseException as error:
        stream.close(error)
        raise


def _headers(
    request: AnyRequest, account: Account, speech: SpeechRequest, order: SpeechOrder
) -> dict[str, str]:
    headers = {
        "X-Request-Id": account.name,
        "X-Sample-Rate": str(order.audio_format.rate(order.info.sample_rate)),
        "X-Channels": "1",
    }
    if ignored := ignored_fields(request, order):
        headers["X-Ignored-Fields"] = ", ".join(ignored)
    if speech.dropped:
        headers["X-Text-Dropped"] = str(speech.dropped)
    if order.framing is not None:
        headers |= {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    if request.method == "GET":  # for players: no seeking, no caching
        headers |= {"Cache-Control": "no-cache", "Accept-Ranges": "none"}
    return headers


def _ended(finished: Finished | None) -> dict[str, str]:
    """The headers that are known once the speech has ended."""
    if finished is None:
        return {}
    return {"X-Finish-Reason": finished.reason.value, "X-Seed": str(finished.seed)}
