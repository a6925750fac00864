"""Turns requests into sequences: text, voice, context and conversation become a prompt.

Shares no state with a step, so long prompts may be prepared in a thread during a step.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence as Rows
from math import ceil, floor
from typing import Any

import attrs
import torch

from vox_serve.codec import EncodingCodec
from vox_serve.config import EngineConfig
from vox_serve.conversation import Conversations
from vox_serve.engine.calls import Calls
from vox_serve.engine.context_encoder import ContextEncoder
from vox_serve.engine.sequence import Live, Sequence, Turn
from vox_serve.engine.voices import Voices
from vox_serve.errors import (
    ConfigError,
    InvalidRequest,
    NotFound,
    PromptTooLong,
    UnspeakableText,
)
from vox_serve.messages import SpeechRequest
from vox_serve.model import CheckpointSpec, LiveText, Model, Prompt
from vox_serve.sampling import Parameters
from vox_serve.text import likely_seconds
from vox_serve.voice import Segment, Voice


def runaway_seconds(text: str) -> float:
    """The default cap: two seconds more than three times the likely length."""
    return 2.0 + 3.0 * likely_seconds(text)


def as_tensors(segment: Segment) -> Segment:
    """The segment with codes as a tensor: int64, or float32 for latents."""
    codes = torch.as_tensor(segment.codes)
    return attrs.evolve(segment, codes=codes if codes.is_floating_point() else codes.long())


def as_arrays(segment: Segment) -> Segment:
    """The segment with codes as a NumPy array: int32, or float32 for latents."""
    codes = torch.as_tensor(segment.codes)
    narrow: Any = codes.float() if codes.is_floating_point() else codes.int()
    return attrs.evolve(segment, audio=None, codes=narrow.cpu().numpy())


class Prompts:
    """Args: a loaded model; caps and sampling defaults; the checkpoint's text limits, if any."""

    def __init__(
        self, model: Model, config: EngineConfig, checkpoint: CheckpointSpec | None
    ) -> None:
        self.model = model
        self.config = config
        self.checkpoint = checkpoint
        try:
            self.defaults = model.default_sampling.merged(config.sampling)
        except InvalidRequest as error:
            raise ConfigError(error.message) from error
        self.conversations = Conversations(config.conversation_timeout, config.max_conversations)
        trained = checkpoint is None or checkpoint.takes_context
        self.takes_context = model.takes_context and trained
        self.takes_live_text = model.takes_live_text
        self.takes_voices = isinstance(model.codec, EncodingCodec) and trained
        self.calls = Calls()
        """The model's calls in progress, in any thread."""
        self._encoder = ContextEncoder(model.codec, model.device, self.calls)
        self.voices = Voices(model.voices, self._encoder, self.build)

    def prepare(self, request: SpeechRequest) -> Sequence:
        """Check a request and build its prompt; encoding its context may take seconds.

        Raises:
            RequestError: it cannot be spoken; names the field and the limit.
        """
        adapter = self._adapter(request)
        for text in (request.text, *request.following):
            self._check_text(text.rstrip())
        # A long text keeps the voice that it began with, even if that is removed or replaced.
        kept = self.conversations.kept_voice(request.id) if request.continues else None
        voice = kept or self.voices.choose(request.voice, request.speaker)
        sampling = self.defaults.merged(request.sampling)
        if request.waits is not None:
            self._require_live(request)
        if request.context or request.conversation is not None:
            self.require_context("context" if request.context else "conversation")
        for text in request.following:
            part = attrs.evolve(request, text=text, max_seconds=None)
            self._prompt(part, voice, (), sampling)
        seed = secrets.randbits(53) if sampling.seed is None else sampling.seed
        if request.conversation is None:
            context = self._encoded(request, voice, (), sampling)
            prompt, cap = self._prompt(request, voice, context, sampling)
            turn = None
        else:
            if request.turns is not None:  # the server keeps it, and lets one turn speak at a time
                self.conversations.forget(request.conversation)
            conversation = self.conversations.begin(request.conversation, request.id)
            if request.turns is not None:
                conversation.turns = tuple(map(as_tensors, request.turns))
            try:
                context = self._encoded(request, voice, conversation.turns, sampling)
                prompt, cap, context = self._fit(request, voice, context, sampling)
            except BaseException:
                self.conversations.end(conversation)
                raise
            conversation.voice = voice
            earlier = len(context) - len(request.context)
            turn = Turn(conversation, request.text, voice, context, earlier)
        live = None
        if request.waits is not None:
            live = Live(request, voice, context, *self._tokens(request.text, end=False))
        return Sequence(
            request.id,
            prompt,
            sampling,
            seed,
            cap,
            continues=request.continues,
            more=request.more,
            adapter=adapter,
            turn=turn,
            live=live,
            arrival=request.arrival,
        )

    def build(
        self,
        text: str,
        voice: Voice,
        context: Rows[Segment],
        parameters: Parameters | None = None,
    ) -> Prompt:
        """Build the model's prompt; without `parameters`, with the defaults.

        Raises:
            UnspeakableText: the model cannot speak the text, or the prompt does not fit.
        """
        with self.calls.of("prompt"):
            prompt = self.model.prompt(
                text, voice, context=context, parameters=parameters or self.defaults
            )
        prompt.require_room(self.model.max_positions, "context" if context else "voice")
        return prompt

    def grow(self, sequence: Sequence, text: str, end: bool) -> int:
        """Add to the text of an open sequence.

        Returns:
            the number of tokens that `Prompt.later` had before.

        Raises:
            RequestError: as `prepare`; the sequence must end.
        """
        live, prompt = sequence.live, sequence.prompt
        assert live is not None
        request = attrs.evolve(live.request, text=live.request.text + text)
        self._check_text(request.text.rstrip())  # more text follows a space at the end
        tokens, live.rest = self._tokens(live.rest + text, end)
        live.tokens += tokens
        before = 0 if prompt.later is None else len(prompt.later)
        if not prompt.inputs:
            prompt = self._build_live(live.tokens, end, live.voice, live.context, sequence.sampling)
        elif tokens:
            added = torch.tensor(tokens, dtype=torch.int64)
            later = added if prompt.later is None else torch.cat([prompt.later, added])
            prompt = attrs.evolve(prompt, later=later)
            prompt.require_room(self.model.max_positions, "text")
        sequence.max_frames = self._frame_cap(request, prompt)
        sequence.prompt, live.request, live.ended = prompt, request, end
        if sequence.turn is not None:
            sequence.turn.text = request.text
        return before

    def _adapter(self, request: SpeechRequest) -> int:
        """The number of the request's adapter, from 1; 0 if it has none.  Raises NotFound."""
        if request.adapter is None:
            return 0
        names = [*self.config.adapters]
        if request.adapter not in names:
            raise NotFound(f"unknown adapter {request.adapter[:200]!r}", "model")
        return names.index(request.adapter) + 1

    def release(self, sequence: Sequence) -> None:
        """Release a prepared sequence that will not be queued."""
        if sequence.turn is not None:
            self.conversations.end(sequence.turn.conversation)

    def require_context(self, field: str) -> None:
        """Raise UnspeakableText, about `field`, unless the model takes context."""
        if not self.takes_context:
            raise UnspeakableText("this model was not trained to follow earlier turns", field)

    def require_voices(self) -> None:
        """Raise UnspeakableText unless the model learns voices from clips."""
        if not self.takes_voices:
            raise UnspeakableText("this model cannot learn voices from clips", "voice")

    def _require_live(self, request: SpeechRequest) -> None:
        if not self.takes_live_text:
            raise UnspeakableText("this model needs a text that is complete", "text")
        if request.context or request.following:
            raise InvalidRequest("a text that grows takes no context and no parts", "context")

    def _tokens(self, text: str, end: bool) -> tuple[list[int], str]:
        assert isinstance(self.model, LiveText)
        with self.calls.of("prompt"):
            return self.model.tokens(text, end)

    def _build_live(
        self,
        tokens: Rows[int],
        end: bool,
        voice: Voice,
        context: Rows[Segment],
        sampling: Parameters,
    ) -> Prompt:
        assert isinstance(self.model, LiveText)
        with self.calls.of("prompt"):
            prompt = self.model.live_prompt(
                tokens, end, voice, context=context, parameters=sampling
            )
        prompt.require_room(self.model.max_positions, "context" if context else "voice")
        return prompt

    def _encoded(
        self,
        request: SpeechRequest,
        voice: Voice,
        turns: Rows[Segment],
        sampling: Parameters,
    ) -> tuple[Segment, ...]:
        """The turns, then the request's context as codes.

        Positions are counted first, because encoding is the costly part.
        """
        if not request.context:
            return tuple(turns)
        for segment in request.context:
            if segment.codes is None and (segment.audio is None or not len(segment.audio)):
                raise InvalidRequest("each context segment needs audio", "context")
        blank = [self._encoder.blank(segment) for segment in request.context]
        self._prompt(request, voice, blank, sampling)
        return (*turns, *map(self._encoder.encode, request.context))

    def _prompt(
        self,
        request: SpeechRequest,
        voice: Voice,
        context: Rows[Segment],
        sampling: Parameters,
    ) -> tuple[Prompt, int]:
        if request.waits is None:
            prompt = self.build(request.text, voice, context, sampling)
        else:
            tokens, _ = self._tokens(request.text, end=False)
            prompt = self._build_live(tokens, False, voice, context, sampling)
        return prompt, self._frame_cap(request, prompt)

    def _fit(
        self,
        request: SpeechRequest,
        voice: Voice,
        context: tuple[Segment, ...],
        sampling: Parameters,
    ) -> tuple[Prompt, int, tuple[Segment, ...]]:
        """The prompt with as many turns as fit; the older half is dropped first.

        Dropping a turn moves all positions and invalidates their cache, so half of the turns are
        dropped at once, which happens rarely.  The request's own context stays.
        """
        while True:
            try:
                return *self._prompt(request, voice, context, sampling), context
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
                f"text has {len(text)} characters; this voice speaks at most "
                f"{limits.max_characters} at once",
                "text",
            )
        if limits and limits.max_words and len(text.split()) > limits.max_words:
            raise UnspeakableText(
                f"text has {len(text.split())} words; this voice speaks at most "
                f"{limits.max_words} at once",
                "text",
            )

    def _frame_cap(self, request: SpeechRequest, prompt: Prompt) -> int:
        """The most frames that the request may have.  Raises RequestError if they cannot fit."""
        rate = self.model.codec.frame_rate
        room = self.model.max_positions - len(prompt) - prompt.unheard
        if request.max_seconds is not None:
            if not 0 < request.max_seconds <= self.config.max_seconds:
                raise InvalidRequest(
                    f"max_seconds must be more than 0 and at most {self.config.max_seconds:g}",
                    "max_seconds",
                )
            # Rounded first: 0.56 s x 12.5 is slightly above 7 frames in floating point.
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
                f"{field} asks for about {needed} frames of audio, but after a prompt of "
                f"{len(prompt)} positions the context of {self.model.max_positions} has room for "
                f"{max(room, 0)} ({max(room, 0) / rate:.1f} s)",
                field,
            )
        return max(1, min(cap, room)) + prompt.unheard
