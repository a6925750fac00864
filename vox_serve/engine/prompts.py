"""Requests to sequences: texts, voices, context and conversations become prompts.

Touches nothing that a step uses, so that long ones may be prepared in a thread beside it.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence as Rows
from math import ceil, floor

import attrs
import torch

from vox_serve.config import EngineConfig
from vox_serve.engine.context_encoder import ContextEncoder
from vox_serve.engine.conversation import Conversations
from vox_serve.engine.sequence import Sequence, Turn
from vox_serve.errors import (
    InvalidRequest,
    NotFound,
    PromptTooLong,
    RequestError,
    UnspeakableText,
)
from vox_serve.messages import SpeechRequest
from vox_serve.model import CheckpointSpec, Model, Prompt
from vox_serve.text import likely_seconds
from vox_serve.voice import Segment, Voice


def runaway_seconds(text: str) -> float:
    """The cap that a text's length suggests: three times what it should take, and a bit."""
    return 2.0 + 3.0 * likely_seconds(text)


class Prompts:
    """Args: a loaded model; caps and sampling defaults; limits of the text, if any are named."""

    def __init__(
        self, model: Model, config: EngineConfig, checkpoint: CheckpointSpec | None
    ) -> None:
        self.model = model
        self.config = config
        self.checkpoint = checkpoint
        self.defaults = model.default_sampling.merged(config.sampling)
        self.conversations = Conversations(config.conversation_timeout, config.max_conversations)
        self.voices: dict[str, Voice] = {}
        """Those that were added while it runs, by name."""
        self._encodings = ContextEncoder(model.codec, model.device)
        self.takes_context = self._takes_context()

    def prepare(self, request: SpeechRequest) -> Sequence:
        """Check a request and build its prompt; encoding its context may take seconds.

        Raises:
            RequestError: it cannot be spoken; says which field and which limit.
        """
        request = self._normalised(request)
        for text in (request.text, *request.following):
            self._check_text(text)
        voice = self._voice(request)
        sampling = self.defaults.merged(request.sampling)
        if request.context or request.conversation is not None:
            self._require_context("context" if request.context else "conversation")
        for text in request.following:
            self._prompt(attrs.evolve(request, text=text, max_seconds=None), voice, ())
        seed = secrets.randbits(53) if sampling.seed is None else sampling.seed
        if request.conversation is None:
            context = self._encoded(request, voice, ())
            prompt, cap = self._prompt(request, voice, context)
            turn = None
        else:
            conversation = self.conversations.begin(request.conversation, request.id)
            try:
                context = self._encoded(request, voice, conversation.turns)
                prompt, cap, context = self._fit(request, voice, context)
            except BaseException:
                self.conversations.end(conversation)
                raise
            turn = Turn(conversation, request.text, voice, context)
        return Sequence(
            request.id,
            prompt,
            sampling,
            seed,
            cap,
            continues=request.continues,
            more=request.more,
            turn=turn,
            arrival=request.arrival,
        )

    def release(self, sequence: Sequence) -> None:
        """Let go of a sequence that was prepared and is not going to be queued."""
        if sequence.turn is not None:
            self.conversations.end(sequence.turn.conversation)

    def add_voice(self, name: str, speaker: int, segments: Rows[Segment]) -> None:
        """Make a voice known, in the place of one of its name; may take seconds.

        Raises:
            RequestError: the model has no such speaker, takes no context, has a voice of its
                own of this name, or the segments do not fit.
        """
        if any(voice.name == name for voice in self.model.voices):
            raise InvalidRequest(f"{name!r} is a voice of the model itself", "name")
        self._require_context("voice")
        self._voice(SpeechRequest("", "", speaker))
        segments = self._normalised(SpeechRequest("", "a", context=tuple(segments))).context
        voice = Voice(name, speaker, segments)
        self.model.prompt("a", attrs.evolve(voice, segments=self._silent(segments)), ())
        encoded = tuple(self._encodings.encode(segment) for segment in segments)
        self.voices[name] = attrs.evolve(voice, segments=encoded)

    def remove_voice(self, name: str) -> bool:
        """Forget an added voice; requests that have begun keep it.  False if there is none."""
        return self.voices.pop(name, None) is not None

    def _normalised(self, request: SpeechRequest) -> SpeechRequest:
        front_end = self.checkpoint and self.checkpoint.front_end
        if not front_end or not request.text.strip():  # which is refused as it is
            return request

        def read(text: str) -> str:
            return front_end.read(text).text

        context = tuple(attrs.evolve(s, text=read(s.text)) for s in request.context)
        if request.read:
            return attrs.evolve(request, context=context)
        following = tuple(map(read, request.following))
        return attrs.evolve(
            request, text=read(request.text), following=following, context=context, read=True
        )

    def _takes_context(self) -> bool:
        """Does the model speak after earlier turns?  Asked of it, with one frame of codes."""
        codec, voice = self.model.codec, self.model.voices[0]
        if self.checkpoint is not None and not self.checkpoint.takes_context:
            return False
        codes = torch.zeros(codec.num_codebooks, codec.frames_per_step, dtype=torch.int64)
        try:
            self.model.prompt("a", voice, (Segment(voice.speaker, "a", codes=codes),))
        except RequestError:
            return False
        return True

    def _require_context(self, field: str) -> None:
        if not self.takes_context:
            raise UnspeakableText("this model was not trained to follow earlier turns", field)

    def _encoded(
        self, request: SpeechRequest, voice: Voice, turns: Rows[Segment]
    ) -> tuple[Segment, ...]:
        """The turns, then the request's context as codes.

        Its positions are counted before anything is encoded: that is the dear part.
        """
        if not request.context:
            return tuple(turns)
        for segment in request.context:
            if segment.codes is None and (segment.audio is None or not len(segment.audio)):
                raise InvalidRequest("each context segment needs audio", "context")
        self._prompt(request, voice, self._silent(request.context))
        return (*turns, *map(self._encodings.encode, request.context))

    def _silent(self, segments: Rows[Segment]) -> tuple[Segment, ...]:
        """Segments with codes of the right length, whatever they say."""
        books, size = self.model.codec.num_codebooks, self.model.codec.frame_size
        return tuple(
            segment
            if segment.codes is not None or segment.audio is None
            else attrs.evolve(
                segment,
                audio=None,
                codes=torch.zeros(books, -(-len(segment.audio) // size), dtype=torch.int64),
            )
            for segment in segments
        )

    def _prompt(
        self, request: SpeechRequest, voice: Voice, context: Rows[Segment]
    ) -> tuple[Prompt, int]:
        prompt = self.model.prompt(request.text, voice, context)
        return prompt, self._frame_cap(request, len(prompt))

    def _fit(
        self, request: SpeechRequest, voice: Voice, context: tuple[Segment, ...]
    ) -> tuple[Prompt, int, tuple[Segment, ...]]:
        """The prompt with as many turns as fit; the older half goes first.

        By half, because every turn that falls out moves all positions, and what is cached of
        them is lost: so that is rare.  What the request itself brought stays.
        """
        while True:
            try:
                return *self._prompt(request, voice, context), context
            except PromptTooLong:
                spare = len(context) - len(request.context)
                if spare == 0:
                    raise
                context = context[(spare + 1) // 2 :]

    def _check_text(self, text: str) -> None:
        if not text.strip():
            raise InvalidRequest("text is empty", "text")
        limits = self.checkpoint
        if limits and limits.max_characters and len(text) > limits.max_characters:
            raise UnspeakableText(
                f"text has {len(text)} characters; this voice speaks "
                f"{limits.max_characters} at once",
                "text",
            )
        if limits and limits.max_words and len(text.split()) > limits.max_words:
            raise UnspeakableText(
                f"text has {len(text.split())} words; this voice speaks {limits.max_words} at once",
                "text",
            )

    def _voice(self, request: SpeechRequest) -> Voice:
        voices = (*self.model.voices, *self.voices.values())
        for voice in voices:
            if request.voice is None and voice.speaker == request.speaker:
                return voice
            if request.voice == voice.name:
                return voice
        if request.voice is not None:
            names = ", ".join(voice.name for voice in voices)
            raise NotFound(f"unknown voice {request.voice!r}; this model has {names}", "voice")
        speakers = ", ".join(str(n) for n in sorted({voice.speaker for voice in voices}))
        raise NotFound(f"unknown speaker {request.speaker}; this model has {speakers}", "speaker")

    def _frame_cap(self, request: SpeechRequest, prompt_length: int) -> int:
        """The most frames that the request may have; refuses what cannot fit the context."""
        rate = self.model.codec.frame_rate
        room = self.model.max_positions - prompt_length
        if request.max_seconds is not None:
            if not 0 < request.max_seconds <= self.config.max_seconds:
                raise InvalidRequest(
                    f"max_seconds must be more than 0 and at most {self.config.max_seconds:g}",
                    "max_seconds",
                )
            # Rounded first: 0.56 s x 12.5 is a hair above 7 frames in floating point.
            needed = cap = max(1, floor(round(request.max_seconds * rate, 6)))
            field = "max_seconds"
        else:
            needed = ceil(likely_seconds(request.text) * rate)
            cap = min(
                ceil(runaway_seconds(request.text) * rate), floor(self.config.max_seconds * rate)
            )
            field = "text"
        if needed > room:
            raise PromptTooLong(
                f"{field} asks for some {needed} frames of audio, but beside a prompt of "
                f"{prompt_length} positions the context of {self.model.max_positions} holds "
                f"{max(room, 0)} ({max(room, 0) / rate:.1f} s)",
                field,
            )
        return max(1, min(cap, room))
