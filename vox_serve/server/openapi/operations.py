"""What the OpenAPI document says of each route beyond what code tells by itself.

Paths, summaries, fields and bounds come from the routes and structs.  Here is the rest: what a
route answers with, when it refuses, and an example.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import msgspec

from vox_serve.audio.formats import FORMATS
from vox_serve.metrics import CONTENT_TYPE
from vox_serve.server import replies
from vox_serve.server.body import MULTIPART
from vox_serve.server.routes.generate import GenerateRequest
from vox_serve.server.routes.openai import SpeechBody

JSON, EVENT_STREAM = "application/json", "text/event-stream"
ERRORS: Mapping[int, str] = {
    400: "A malformed request, an unknown field, a value out of range; no `model` where there "
    "are several",
    404: "There is nothing of this name: voice, speaker, model, conversation or request",
    408: "The body did not come within `--read-timeout` seconds",
    409: "A turn of the conversation is still being spoken, another open request has this id, or "
    "the name is taken",
    413: "The body is larger than the server's `--max-body-bytes`",
    422: "The model cannot speak this text, or it does not fit its context",
    429: "The queue is full",
    499: "The request was ended by DELETE /requests/{id}",
    500: "The model failed on this request",
    503: "Loading, shutting down or dead",
    504: "Not done within the server's `--request-timeout`",
}
SPEAKING = tuple(ERRORS)
"""The errors of the routes that speak."""


@attrs.frozen
class Answer:
    """One way in which a route answers, errors apart.

    Args:
        text: when it does.
        content: media types, each with the struct that is sent as JSON, or None for bytes.
        example: of the JSON.
        headers: names out of `components.headers`, besides X-Request-Id.
    """

    text: str
    content: Mapping[str, type[msgspec.Struct] | None] = attrs.field(factory=dict)
    example: Any = None
    headers: tuple[str, ...] = ()


@attrs.frozen
class Operation:
    """One route.

    Args:
        answers: by status, errors apart.
        errors: statuses out of `ERRORS`.
        bodies: media types, each with the name of its schema.
        examples: of the body; they do for each media type.
        parameters: names out of `openapi.PARAMETERS`, besides those in the path.
    """

    tag: str
    answers: Mapping[int, Answer]
    errors: tuple[int, ...] = ()
    bodies: Mapping[str, str] = attrs.field(factory=dict)
    examples: Mapping[str, Any] = attrs.field(factory=dict)
    parameters: tuple[str, ...] = ()


def _json(kind: type[msgspec.Struct], example: Any, text: str = "As asked") -> Answer:
    return Answer(text, {JSON: kind}, example)


AUDIO: dict[str, type[msgspec.Struct] | None] = {
    audio_format.media_type: None for audio_format in FORMATS.values()
}
SOUND_HEADERS = (
    "X-Sample-Rate",
    "X-Channels",
    "X-Finish-Reason",
    "X-Seed",
    "Cache-Control",
    "X-Accel-Buffering",
)
MODEL_HEALTH = {"model": "demo", "status": "ready", "running": 0, "waiting": 0, "slots": 16}
HEALTH = {
    "status": "ready",
    "models": [MODEL_HEALTH],
    "broken_plugins": {},
    "broken_voices": {},
}
DEAD = HEALTH | {
    "status": "dead",
    "models": [MODEL_HEALTH | {"status": "dead", "reason": "the worker ended"}],
}
MODEL = {"id": "demo", "object": "model", "created": 1763812957, "owned_by": "vox_serve"}
VOICE = {
    "id": "anna",
    "object": "audio.voice",
    "name": "anna",
    "model": "csm-1b",
    "speaker": 0,
    "text": "Good morning, this is Anna.",
    "seconds": 2.1,
    "created_at": 1763812957,
    "kept": True,
}
LOADED = {
    "name": "csm-1b",
    "voices": [{"name": "conversational_a", "speaker": 0}],
    "kind": "csm",
    "summary": "Sesame CSM",
    "device": "cuda:0",
    "dtype": "bfloat16",
    "torch_version": "2.9.1",
    "weight_bytes": 3_300_000_000,
    "cache_bytes": 1_100_000_000,
    "num_slots": 16,
    "sample_rate": 24000,
    "frame_rate": 12.5,
    "num_codebooks": 32,
    "max_positions": 2048,
    "max_seconds": 90.0,
    "max_characters": None,
    "max_words": None,
    "takes_context": True,
    "sampling": {
        "temperature": 0.9,
        "top_k": 50,
        "top_p": 1.0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "seed": None,
    },
    "load_seconds": 7.5,
}


def clip() -> str:
    """A tenth of a second of sound as a WAV file whose bytes are all ASCII.

    So it can stand in JSON as it is, which has no other way to hold a file.
    """
    samples = bytes(0x60 + number % 16 for number in range(800))  # 8 bits each, at 8 kHz
    fmt = b"fmt \x10\0\0\0\x01\0\x01\0\x40\x1f\0\0\x40\x1f\0\0\x01\0\x08\0"
    data = b"data\x20\x03\0\0" + samples
    return (b"RIFF\x44\x03\0\0WAVE" + fmt + data).decode("ascii")


OPERATIONS: Mapping[str, Operation] = {
    "POST /generate": Operation(
        "speech",
        {200: Answer("There is sound", AUDIO, headers=SOUND_HEADERS)},
        SPEAKING,
        {JSON: GenerateRequest.__name__, MULTIPART: "GenerateForm"},
        {
            "whole": {"text": "Good morning.", "speaker": 0, "temperature": 0.8, "seed": 7},
            "streamed": {"text": "Good morning.", "streaming": True, "format": "flac"},
        },
        ("X-Request-Id",),
    ),
    "POST /v1/audio/speech": Operation(
        "speech",
        {200: Answer("There is sound", AUDIO | {EVENT_STREAM: None}, headers=SOUND_HEADERS)},
        SPEAKING,
        {JSON: SpeechBody.__name__},
        {"mp3": {"model": "tts-1", "voice": "alloy", "input": "Good morning."}},
        ("X-Request-Id",),
    ),
    "DELETE /requests/{request_name}": Operation("speech", {204: Answer("It has ended")}, (404,)),
    "DELETE /conversations/{conversation}": Operation(
        "speech", {204: Answer("It is forgotten")}, (400, 404, 503), parameters=("model",)
    ),
    "GET /v1/audio/voices": Operation("voices", {200: _json(replies.Voices, {"voices": [VOICE]})}),
    "POST /v1/audio/voices": Operation(
        "voices",
        {201: _json(replies.Voice, VOICE, "Requests may name the voice")},
        (400, 404, 408, 409, 413, 422, 429, 500, 503),
        {MULTIPART: "VoiceForm"},
        {"voice": {"name": "anna", "audio": clip(), "text": "Good morning, this is Anna."}},
    ),
    "GET /v1/audio/voices/{voice}": Operation(
        "voices", {200: _json(replies.Voice, VOICE)}, (400, 404), parameters=("model",)
    ),
    "DELETE /v1/audio/voices/{voice}": Operation(
        "voices",
        {
            200: _json(
                replies.VoiceDeleted, {"id": "anna", "object": "audio.voice", "deleted": True}
            )
        },
        (400, 404, 503),
    ),
    "GET /voices": Operation(
        "voices",
        {
            200: _json(
                replies.VoiceNames,
                {"voices": [{"name": "conversational_a", "speaker": 0, "model": "csm-1b"}]},
            )
        },
    ),
    "GET /models": Operation("models", {200: _json(replies.LoadedModels, {"models": [LOADED]})}),
    "GET /v1/models": Operation(
        "models", {200: _json(replies.OpenAIModels, {"object": "list", "data": [MODEL]})}
    ),
    "GET /v1/models/{name}": Operation("models", {200: _json(replies.OpenAIModel, MODEL)}, (404,)),
    "GET /v1/audio/models": Operation(
        "models", {200: _json(replies.ModelIds, {"models": [{"id": "demo"}]})}
    ),
    "GET /health": Operation(
        "server",
        {
            200: _json(replies.Health, HEALTH, "The server can become or is useful"),
            503: _json(
                replies.Health,
                DEAD,
                "An engine is dead",
            ),
        },
    ),
    "GET /ready": Operation(
        "server",
        {
            200: _json(replies.Readiness, {"status": "ready"}, "Requests are accepted"),
            503: attrs.evolve(
                _json(replies.Readiness, {"status": "starting"}, "They are not"),
                headers=("Retry-After",),
            ),
        },
    ),
    "GET /plugins": Operation(
        "server",
        {
            200: _json(
                replies.Plugins,
                {
                    "plugins": [
                        {
                            "name": "csm",
                            "version": "0.1.0",
                            "models": ["csm"],
                            "checkpoints": ["csm-1b"],
                            "error": None,
                        }
                    ]
                },
            )
        },
    ),
    "GET /metrics": Operation("server", {200: Answer("Prometheus text", {CONTENT_TYPE: None})}),
    "GET /openapi.json": Operation("server", {200: Answer("This document", {JSON: None})}),
    "GET /docs": Operation("server", {200: Answer("A page", {"text/html": None})}),
}
"""By method and path."""
