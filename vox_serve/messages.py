"""The messages between the server and the engine worker.  Does not import torch.

To the worker: `Add`, `MoreText`, `Abort`, `Forget`, `AddVoice`, `RemoveVoice`, `Shutdown`.  From
the worker: `Ready` or `LoadFailed` once; then one `StepOutput` per engine step (or when idle), with
the events of all its sequences; and `Alive` several times a second, whatever the engine is doing.
From a cluster, `Changed` when its replicas do.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import attrs

from vox_serve.errors import RequestError
from vox_serve.text import Normalize
from vox_serve.voice import Segment

KEPT_SECONDS = 0.25
"""How long a slot is reserved for the next part of a text.  For a client that reads, the part comes
within milliseconds; one that does not read must not block a slot."""
LONG_TEXT_CHARACTERS = 1000
"""Longer texts take over 5 ms to normalise and cut, so that is done in a thread."""


class FinishReason(StrEnum):
    """Why a sequence ended."""

    STOP = "stop"  # the model ended it
    LENGTH = "length"  # the frame cap was reached
    INAUDIBLE = "inaudible"  # the model ended it, and its audio is inaudible
    CANCELLED = "cancelled"  # aborted, for example because the client left
    ERROR = "error"


@attrs.frozen(eq=False)
class SpeechRequest:
    """A request in the form that the engine takes.

    Args:
        id: unique among open requests.
        text: what to say.
        speaker: speaker id; its first voice is used.  Ignored if `voice` is given.
        voice: name of a voice.
        context: earlier turns; audio is float32 at the model's sample rate.
        sampling: the parameters that the client gave.
        max_seconds: cap on the audio; None derives one from the text's length.
        conversation: its turns come before `context`, and this turn is added to it.
        turns: the conversation so far, codes as NumPy arrays; None: what the engine remembers.
        following: texts that will follow under this id.  They are checked now, so that a text that
            cannot be spoken is refused before any audio is sent.
        pauses: seconds of silence before the text, after it, and after each of `following`; empty:
            none.  `parts.Parts` inserts them, not the engine.
        more: another request with this id follows: the conversation stays busy in between, and
            a place at the head of the queue is kept for a short time.
        continues: this follows a request with the same id, or audio that the client already hears,
            so it goes to the head of the queue.
        waits: the text is not complete, and the request may wait this many seconds for more of it
            (`MoreText`); None: the text is complete.
        normalize: how much the text front end may change.
        language: the text's language tag, which decides how dates are read; None: the model's.
        pronunciations: spellings that take precedence over the server's.
        dropped: the number of characters that the front end left out.
        adapter: name of the adapter that speaks; None: the base speaks.
        arrival: when the request arrived, by `time.monotonic`.
    """

    id: str
    text: str
    speaker: int = 0
    voice: str | None = None
    context: tuple[Segment, ...] = ()
    sampling: Mapping[str, Any] = attrs.field(factory=dict)
    max_seconds: float | None = None
    conversation: str | None = None
    turns: tuple[Segment, ...] | None = None
    following: tuple[str, ...] = ()
    pauses: tuple[float, ...] = ()
    more: bool = False
    continues: bool = False
    waits: float | None = None
    normalize: Normalize = Normalize.AUTO
    language: str | None = None
    pronunciations: Mapping[str, str] = attrs.field(factory=dict)
    dropped: int = 0
    adapter: str | None = None
    arrival: float = attrs.field(factory=time.monotonic)

    @property
    def characters(self) -> int:
        """Characters in `text` and `following`."""
        return len(self.text) + sum(map(len, self.following))


@attrs.frozen
class Add:
    request: SpeechRequest


@attrs.frozen
class MoreText:
    """Further text of a request that waits for it; ignored if the request has ended.

    Args:
        text: may be empty.
        end: no more follows.
    """

    request_id: str
    text: str
    end: bool = False


@attrs.frozen
class Abort:
    request_id: str


@attrs.frozen
class Forget:
    """Drop what the worker remembers of a conversation."""

    conversation: str


@attrs.frozen(eq=False)
class AddVoice:
    """Add a voice, or replace the one with the same name; answered by `Done`."""

    request_id: str
    name: str
    speaker: int
    segments: tuple[Segment, ...]


@attrs.frozen
class RemoveVoice:
    """Forget a voice; answered by `Done`."""

    request_id: str
    name: str


@attrs.frozen
class Shutdown:
    pass


@attrs.frozen
class Started:
    """The sequence left the queue and got a slot."""

    request_id: str
    queue_seconds: float


@attrs.frozen
class Audio:
    """A piece of audio: signed 16-bit little-endian mono samples."""

    request_id: str
    pcm: bytes


@attrs.frozen(eq=False)
class Said:
    """A turn of a conversation; comes before its `Finished`.

    Args:
        kept: how many of the latest turns still fit before this one.
        segments: the request's own context and what was said, codes as NumPy arrays.
    """

    request_id: str
    kept: int
    segments: tuple[Segment, ...]


@attrs.frozen
class Finished:
    request_id: str
    reason: FinishReason
    frames: int
    seed: int
    more: bool = False
    """Another request with this id follows."""


@attrs.frozen
class Failed:
    request_id: str
    error: RequestError


@attrs.frozen
class Done:
    """The requested action is done, unless there is an error.

    `found` is False if its target does not exist.
    """

    request_id: str
    found: bool
    error: RequestError | None = None
    voices: tuple[tuple[str, int], ...] | None = None
    """Names and speakers of all voices, after one was added or removed."""


Event = Started | Audio | Said | Finished | Failed | Done


@attrs.frozen
class EngineInfo:
    """What the server reports about a loaded model."""

    model: str
    kind: str
    summary: str
    device: str
    dtype: str
    torch_version: str
    weight_bytes: int
    cache_bytes: int
    num_slots: int
    sample_rate: int
    frame_rate: float
    frame_width: int
    max_positions: int
    max_seconds: float
    max_characters: int | None
    max_words: int | None
    takes_context: bool
    takes_voices: bool
    takes_live_text: bool
    voices: tuple[tuple[str, int], ...]
    languages: tuple[str, ...]
    sampling: Mapping[str, float | str | None]
    parameters: Mapping[str, Mapping[str, Any]]
    """A JSON Schema of each."""
    load_seconds: float
    base: str | None = None
    """The model whose weights an adapter shares; None: this is not an adapter."""


@attrs.frozen
class Ready:
    info: EngineInfo


@attrs.frozen
class Changed:
    """What serves the model now: in a cluster, replicas come and go, and are updated."""

    info: EngineInfo


@attrs.frozen
class LoadFailed:
    message: str


@attrs.frozen
class Stats:
    """The engine's state after a step, and what the step did.

    Args:
        prefilled, restored: prompt positions run through the model, and taken from cached prefixes.
        hits, misses: prompts with and without a cached prefix.
        prefixes, prefix_bytes: the number of cached prefixes, and their size.
        device_memory: bytes in use and free on the GPU; None if this step did not measure it.
    """

    running: int = 0
    waiting: int = 0
    batch_size: int = 0
    frames: int = 0
    reserved_codes: int = 0
    prefilled: int = 0
    restored: int = 0
    hits: int = 0
    misses: int = 0
    prefixes: int = 0
    prefix_bytes: int = 0
    conversations: int = 0
    device_memory: tuple[int, int] | None = None
    phase_seconds: tuple[tuple[str, float], ...] = ()
    errors: tuple[str, ...] = ()


@attrs.frozen
class StepOutput:
    """Everything that one engine step (or an idle loop) reports."""

    events: tuple[Event, ...] = ()
    stats: Stats = Stats()


@attrs.frozen
class Alive:
    """The worker's heartbeat.

    Args:
        calls: a unique number and the name of each call of the model in progress.
    """

    calls: tuple[tuple[int, str], ...] = ()


ToWorker = Add | MoreText | Abort | Forget | AddVoice | RemoveVoice | Shutdown
FromWorker = Ready | Changed | LoadFailed | StepOutput | Alive
