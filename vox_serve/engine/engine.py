"""The engine: add, abort, step.  Plain and synchronous; the worker loop is around it.

A step is one sentence: schedule, run, postprocess.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable
from collections.abc import Sequence as Rows
from math import ceil, floor

import attrs
import torch

from vox_serve.config import EngineConfig
from vox_serve.engine.conversation import Conversations
from vox_serve.engine.encodings import Encodings
from vox_serve.engine.messages import (
    Audio,
    EngineInfo,
    Event,
    Failed,
    Finished,
    FinishReason,
    SpeechRequest,
    Started,
    Stats,
    StepOutput,
)
from vox_serve.engine.prefix_cache import shared_rows
from vox_serve.engine.runner import EmittedFrames, Frame, ModelRunner, run_isolated
from vox_serve.engine.scheduler import Scheduler
from vox_serve.engine.sequence import Sequence, Turn
from vox_serve.errors import (
    EngineError,
    InvalidRequest,
    NotFound,
    PromptTooLong,
    RequestError,
    SequenceFailed,
    UnspeakableText,
)
from vox_serve.model import CheckpointSpec, Model, Prompt
from vox_serve.text import likely_seconds
from vox_serve.voice import Segment, Voice

log = logging.getLogger("vox_serve.engine")


def runaway_seconds(text: str) -> float:
    """The cap that a text's length suggests: three times what it should take, and a bit."""
    return 2.0 + 3.0 * likely_seconds(text)


class Engine:
    """Speaks requests with one model.

    Args:
        model: a loaded model.
        config: slots, caps and sampling defaults.
        checkpoint: limits of the text, where the checkpoint names them.
    """

    def __init__(
        self, model: Model, config: EngineConfig, checkpoint: CheckpointSpec | None = None
    ) -> None:
        self.model = model
        self.config = config
        self.checkpoint = checkpoint
        self.scheduler = Scheduler(config.max_batch_size)
        self.runner = ModelRunner(model, config.max_batch_size, config.prefix_cache_mib * 2**20)
        self.defaults = model.default_sampling.merged(config.sampling)
        self.conversations = Conversations(config.conversation_timeout, config.max_conversations)
        self.voices: dict[str, Voice] = {}
        """Those that were added while it runs, by name."""
        self.takes_context = self._takes_context()
        self._encodings = Encodings(model.codec)
        self._events: list[Event] = []
        self._phases: dict[str, float] = {}
        self._errors: list[str] = []
        self._prefilled = self._restored = 0

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work or bool(self._events)

    @property
    def stats(self) -> Stats:
        """The queue and the batch as they are now."""
        return Stats(running=len(self.scheduler.running), waiting=len(self.scheduler.waiting))

    def add(self, request: SpeechRequest) -> None:
        """Queue a request.  Raises RequestError if it cannot be spoken."""
        self.enqueue(self.prepare(request))

    def prepare(self, request: SpeechRequest, voice: Voice | None = None) -> Sequence:
        """Check a request and build its prompt; touches nothing that `step` uses.

        Encoding context audio takes long, so the worker may call this in another thread.

        Args:
            voice: what the request's own names mean, if that is settled already.

        Raises:
            RequestError: it cannot be spoken; says which field and which limit.
        """
        request = self._normalised(request)
        fresh = () if request.continues else request.later
        for text in (request.text, *fresh):
            self._check_text(text)
        voice = voice or self._voice(request)
        sampling = self.defaults.merged(request.sampling)
        if request.context or request.conversation is not None:
            self._require_context("context" if request.context else "conversation")
        for text in fresh:
            self._prompt(attrs.evolve(request, text=text, max_seconds=None), voice, ())
        seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        if request.conversation is None:
            context = self._encoded(request, voice, ())
            prompt, cap = self._prompt(request, voice, context)
            turn = None
        else:
            conversation = self.conversations.begin(request.conversation)
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
            request=request,
            voice=voice,
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

    def enqueue(self, sequence: Sequence) -> None:
        """Queue what `prepare` made.  Raises InvalidRequest if its id is open already."""
        if sequence.id in self.scheduler:
            raise InvalidRequest(f"a request with the id {sequence.id!r} is open already", "id")
        self.scheduler.add(sequence)

    def abort(self, request_id: str) -> None:
        """End a request whose client left; its slot is free at once.  Unknown ids are ignored."""
        sequence = self.scheduler.find(request_id)
        if sequence is not None:
            self._finish(sequence, FinishReason.CANCELLED)

    def step(self) -> StepOutput:
        """Bring every running sequence one frame further, and let waiting ones in."""
        batch = self.scheduler.schedule()
        self._run("advance", self.runner.advance, batch.running)
        self._admit(batch.joining)
        rows = [s for s in (*batch.running, *batch.joining) if s.finish_reason is None]
        frames = self._speak(rows)
        for sequence, frame in frames.items():
            self._postprocess(sequence, frame)
        return self._report(list(frames.values()))

    def warm_up(self) -> None:
        """Sound twice, so that the first request finds everything allocated and loaded."""
        prompt = self.model.prompt("a", self.model.voices[0], ())
        frames = 2 * self.model.codec.frames_per_step
        self.scheduler.add(Sequence("warm-up", prompt, self.defaults, seed=0, max_frames=frames))
        while self.scheduler.has_work:
            output = self.step()
            for event in output.events:
                if isinstance(event, Failed):
                    raise EngineError(f"the warm-up failed: {event.error.message}")

    def info(self, name: str, kind: str, load_seconds: float) -> EngineInfo:
        """What the server tells about this engine."""
        model, codec, checkpoint = self.model, self.model.codec, self.checkpoint
        return EngineInfo(
            model=name,
            kind=kind,
            summary=checkpoint.summary if checkpoint else "",
            device=str(model.device),
            dtype=str(model.dtype).removeprefix("torch."),
            torch_version=str(torch.__version__),  # its own class would bring torch along
            weight_bytes=model.weight_bytes,
            cache_bytes=self.runner.cache_bytes,
            num_slots=self.scheduler.num_slots,
            sample_rate=codec.sample_rate,
            frame_rate=codec.frame_rate,
            num_codebooks=model.num_codebooks,
            max_positions=model.max_positions,
            max_seconds=self.config.max_seconds,
            max_characters=checkpoint.max_characters if checkpoint else None,
            max_words=checkpoint.max_words if checkpoint else None,
            takes_context=self.takes_context,
            voices=tuple((voice.name, voice.speaker) for voice in model.voices),
            sampling=self.defaults,
            load_seconds=load_seconds,
        )

    def _normalised(self, request: SpeechRequest) -> SpeechRequest:
        normalise = self.checkpoint and self.checkpoint.normalise
        if not normalise or not request.text.strip():  # which is refused as it is
            return request
        return attrs.evolve(
            request,
            text=normalise(request.text),
            later=tuple(map(normalise, request.later)),
            context=tuple(attrs.evolve(s, text=normalise(s.text)) for s in request.context),
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

    def _admit(self, joining: Rows[Sequence]) -> None:
        now = time.monotonic()
        for sequence in joining:
            self.runner.assign(sequence)
            self._events.append(Started(sequence.id, now - sequence.arrival))
        self._run("prefill", self.runner.prefill, joining)
        for sequence in joining:
            self._restored += sequence.restored
            self._prefilled += len(sequence.prompt) - sequence.restored

    def _speak(self, rows: Rows[Sequence]) -> dict[Sequence, Frame]:
        """Emit a frame for every row and decode it; rows that raise end here."""
        parts: list[tuple[Rows[Sequence], EmittedFrames]] = []
        self._run("emit", lambda part: parts.append((part, self.runner.emit(part))), rows)
        rows = [sequence for part, _ in parts for sequence in part]
        if not rows:
            return {}
        emitted = EmittedFrames.joined([each for _, each in parts])
        frames: dict[Sequence, Frame] = {}

        def decode(part: Rows[Sequence]) -> None:
            chosen = emitted if len(part) == len(rows) else emitted.row(rows.index(part[0]))
            frames.update(zip(part, self.runner.decode(part, chosen), strict=True))

        self._run("codec", decode, rows)
        return frames

    def _run(
        self, phase: str, run: Callable[[Rows[Sequence]], object], rows: Rows[Sequence]
    ) -> None:
        if not rows:
            return
        start = time.perf_counter()
        for sequence, error in run_isolated(run, rows).items():
            self._fail(sequence, error)
        self._phases[phase] = time.perf_counter() - start

    def _postprocess(self, sequence: Sequence, frame: Frame) -> None:
        if not frame.finite:
            self._fail(sequence, NonFiniteLogits("logits or samples were not finite"))
            return
        if sequence.frames == 0 and sequence.restored < sequence.prompt.shared:
            # Only now: a prompt that gives no finite frame must not be kept for others.
            self.runner.keep(sequence, sequence.prompt.inputs, sequence.prompt.shared)
        if frame.end:
            self._finish(sequence, FinishReason.STOP)
        else:
            sequence.frames += 1
            if sequence.turn is not None:
                sequence.turn.codes.append(frame.codes)
            if frame.pcm:
                self._events.append(Audio(sequence.id, frame.pcm))
            if sequence.frames >= sequence.max_frames:
                self._finish(sequence, FinishReason.LENGTH)

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        self._remember(sequence, reason)
        self.scheduler.finish(sequence, reason)
        spoken = sequence.before + sequence.frames
        capped = sequence.capped or reason is FinishReason.LENGTH
        try:
            following = self._following(sequence, reason)
        except RequestError as error:
            self._events.append(Failed(sequence.id, error.plain()))
        except Exception as error:  # the model is a plugin: it may raise anything
            log.error("request %s cannot go on", sequence.id, exc_info=error)
            self._errors.append(_error_kind(error))
            self._events.append(Failed(sequence.id, _failure(error)))
        else:
            if following is None:
                if capped and reason is FinishReason.STOP:
                    reason = FinishReason.LENGTH  # an earlier part was
                self._events.append(Finished(sequence.id, reason, spoken, sequence.seed))
            else:
                following.before, following.capped = spoken, capped
                self.scheduler.add(following)

    def _following(self, sequence: Sequence, reason: FinishReason) -> Sequence | None:
        """The next part of a long text, in what is left of the seconds that its client allowed."""
        request = sequence.request
        if request is None or not request.later or reason is FinishReason.CANCELLED:
            return None
        left = request.max_seconds
        if left is not None:
            rate = self.model.codec.frame_rate
            left -= sequence.frames / rate
            if reason is FinishReason.LENGTH or left * rate < 1:
                return None
        text, *later = request.later
        remembered = request.conversation is not None
        return self.prepare(
            attrs.evolve(
                request,
                text=text,
                later=tuple(later),
                context=() if remembered else request.context,
                # One seed for all, so that the one that is told repeats them all.
                sampling={**request.sampling, "seed": sequence.seed},
                max_seconds=left,
                continues=True,
            ),
            sequence.voice,
        )

    def _remember(self, sequence: Sequence, reason: FinishReason) -> None:
        """Add what was said to its conversation, and keep the slot's positions for the next."""
        turn = sequence.turn
        if turn is None:
            return
        if reason not in (FinishReason.STOP, FinishReason.LENGTH) or not turn.codes:
            self.conversations.end(turn.conversation)
            return
        said = Segment(turn.voice.speaker, turn.text, codes=torch.tensor(turn.codes).T)
        turns = (*turn.before, said)
        self.conversations.end(turn.conversation, turns)
        # A cap ends before the last frame is fed back.
        fed = len(turn.codes) - (reason is FinishReason.LENGTH)
        try:
            following = self.model.prompt(turn.text, turn.voice, turns)
        except Exception as error:  # noqa: BLE001  # full, most likely: the next turn has fewer
            log.debug("%s is not kept: %r", sequence.id, error)
            return
        length = len(sequence.prompt)
        if shared_rows(following.inputs, sequence.prompt.inputs) == length:
            self.runner.keep(sequence, following.inputs, length + fed)

    def _fail(self, sequence: Sequence, error: Exception) -> None:
        log.error("request %s failed", sequence.id, exc_info=error)
        self._errors.append(_error_kind(error))
        self.runner.clear(sequence)
        self.release(sequence)
        self.scheduler.finish(sequence, FinishReason.ERROR)
        self._events.append(Failed(sequence.id, _failure(error)))

    def _report(self, frames: Rows[Frame]) -> StepOutput:
        sounded = [frame for frame in frames if frame.finite and not frame.end]
        stats = attrs.evolve(
            self.stats,
            batch_size=len(frames),
            frames=len(sounded),
            reserved_codes=sum(frame.reserved for frame in sounded),
            prefilled=self._prefilled,
            restored=self._restored,
            phase_seconds=tuple(self._phases.items()),
            errors=tuple(self._errors),
        )
        output = StepOutput(tuple(self._events), stats)
        self._events, self._phases, self._errors = [], {}, []
        self._prefilled = self._restored = 0
        return output


class NonFiniteLogits(ArithmeticError):
    """A row's logits or samples held NaN or infinity."""


def _failure(error: Exception) -> SequenceFailed:
    return SequenceFailed(
        f"the model failed while it spoke ({type(error).__name__}); see the server's log"
    )


def _error_kind(error: Exception) -> str:
    if isinstance(error, NonFiniteLogits):
        return "non_finite"
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return "out_of_memory"
    return "exception"
