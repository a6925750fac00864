"""The JSON that routes return, as structs; the OpenAPI document is generated from them."""

from __future__ import annotations

from typing import Any, Literal, get_type_hints

import msgspec

from vox_serve.messages import EngineInfo
from vox_serve.plugins import PluginInfo

Status = Literal["ready", "unloaded", "loading", "starting", "restarting", "draining", "dead"]


class Reply(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """A reply has only the declared fields."""


class ErrorDetails(Reply):
    """`param` names the invalid field, `code` the kind of error."""

    message: str
    type: Literal["invalid_request_error", "server_error"]
    param: str | None
    code: str


class Error(Reply):
    """Every error, on every route, has this shape."""

    error: ErrorDetails


class ReplicaHealth(Reply):
    """One worker's state; `reason` says why it ended or failed to load."""

    replica: int
    status: Status
    running: int
    waiting: int
    slots: int
    device: str | msgspec.UnsetType = msgspec.UNSET
    reason: str | msgspec.UnsetType = msgspec.UNSET


class ModelHealth(Reply):
    """One model's state: that of its best replica; `reason` says why it cannot speak."""

    model: str
    status: Status
    running: int
    waiting: int
    slots: int
    replicas: list[ReplicaHealth]
    reason: str | msgspec.UnsetType = msgspec.UNSET


class Health(Reply):
    """`status` is the worst status of any model."""

    status: Status
    models: list[ModelHealth]
    broken_plugins: dict[str, str]
    broken_voices: dict[str, str]


class Readiness(Reply):
    """Whether requests are accepted for every model."""

    status: Status


class NamedSpeaker(Reply):
    """A voice of one model."""

    name: str
    speaker: int


LOADED_FIELDS: list[tuple[str, Any]] = [
    ("name", str),
    ("voices", list[NamedSpeaker]),
    *((n, t) for n, t in get_type_hints(EngineInfo).items() if n not in ("model", "voices")),
]
LoadedModel = msgspec.defstruct("LoadedModel", LOADED_FIELDS, bases=(Reply,), kw_only=True)
LoadedModel.__doc__ = "What the engine reports about a loaded model."


class LoadedModels(Reply):
    """The loaded models; models that are still loading are left out."""

    models: list[LoadedModel]  # type: ignore[valid-type]  # built above from EngineInfo


class VoiceName(NamedSpeaker):
    """A voice and the model it belongs to."""

    model: str


class VoiceNames(Reply):
    """All voices, including registered ones."""

    voices: list[VoiceName]


class Plugins(Reply):
    """All plugins, including broken ones."""

    plugins: list[PluginInfo]


class Usage(Reply):
    """`input_tokens` counts characters of text, `output_tokens` frames of audio."""

    input_tokens: int
    output_tokens: int
    total_tokens: int


class SpeechDelta(Reply):
    """A piece of the audio file, in base64."""

    type: Literal["speech.audio.delta"]
    audio: bytes


class SpeechDone(Reply):
    """Everything has been sent."""

    type: Literal["speech.audio.done"]
    usage: Usage
    finish_reason: Literal["stop", "length", "inaudible"]
    seed: int


class OpenAIModel(Reply):
    """A model in the form of OpenAI's API."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class OpenAIModels(Reply):
    """The loaded models."""

    object: Literal["list"]
    data: list[OpenAIModel]


class ModelId(Reply):
    """A model in the form that Open WebUI expects."""

    id: str


class ModelIds(Reply):
    """The loaded models."""

    models: list[ModelId]


class Voice(Reply):
    """A voice.  Only registered voices have `text` and later fields; `kept`: survives a restart."""

    id: str
    object: Literal["audio.voice"]
    name: str
    model: str
    speaker: int
    text: str | msgspec.UnsetType = msgspec.UNSET
    seconds: float | msgspec.UnsetType = msgspec.UNSET
    created_at: int | msgspec.UnsetType | None = msgspec.UNSET
    kept: bool | msgspec.UnsetType = msgspec.UNSET


class Voices(Reply):
    """All voices, including registered ones, without aliases."""

    voices: list[Voice]


class VoiceDeleted(Reply):
    """The voice has been deleted."""

    id: str
    object: Literal["audio.voice"]
    deleted: bool
