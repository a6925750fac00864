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
from vox_serve.engine.runner import EmittedFrames, Frame, ModelRunner, run_isolated
from vox_serve.engine.scheduler import Scheduler
from vox_serve.engine.sequence import Sequence
from vox_serve.errors import (
    EngineError,
    InvalidRequest,
    NotFound,
    PromptTooLong,
    SequenceFailed,
    UnspeakableText,
)
from vox_serve.model import CheckpointSpec, Model
from vox_serve.voice import Voice

log = logging.getLogger("vox_serve.engine")


def likely_seconds(text: str) -> float:
    """How long a text takes to speak, from its length: a rough figure, on the long side.

    English is spoken at about 15 characters a second; bytes instead of characters make
    scripts with a sound per character come out right; a digit is a word.
    """
    digits = sum(c.isdigit() for c in text)
    return 0.5 + 0.08 * len(text.encode()) + 0.4 * digits


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
        self.runner = ModelRunner(model, config.max_batch_size)
        self.defaults = model.default_sampling.merged(config.sampling)
        self._events: list[Event] = []
        self._phases: dict[str, float] = {}
        self._errors: list[str] = []

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

    def prepare(self, request: SpeechRequest) -> Sequence:
        """Check a request and build its prompt; touches nothing that `step` uses.

        Encoding context audio takes long, so the worker may call this in another thread.

        Raises:
            RequestError: it cannot be spoken; says which field and which limit.
        """
        self._check_text(request.text)
        voice = self._voice(request)
        sampling = self.defaults.merged(request.sampling)
        if request.context and self.checkpoint and not self.checkpoint.takes_context:
            raise UnspeakableText("this voice was not trained to follow context", "context")
        prompt = self.model.prompt(request.text, voice, request.context)
        cap = self._frame_cap(request, len(prompt))
        seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        return Sequence(request.id, prompt, sampling, seed, cap, arrival=request.arrival)

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
            voices=tuple((voice.name, voice.speaker) for voice in model.voices),
            sampling=self.defaults,
            load_seconds=load_seconds,
        )

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
        voices = self.model.voices
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
        elif frame.end:
            self._finish(sequence, FinishReason.STOP)
        else:
            sequence.frames += 1
            if frame.pcm:
                self._events.append(Audio(sequence.id, frame.pcm))
            if sequence.frames >= sequence.max_frames:
                self._finish(sequence, FinishReason.LENGTH)

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        self.scheduler.finish(sequence, reason)
        self._events.append(Finished(sequence.id, reason, sequence.frames, sequence.seed))

    def _fail(self, sequence: Sequence, error: Exception) -> None:
        log.error("request %s failed", sequence.id, exc_info=error)
        self._errors.append(_error_kind(error))
        self.runner.clear(sequence)
        self.scheduler.finish(sequence, FinishReason.ERROR)
        message = f"the model failed while it spoke ({type(error).__name__}); see the server's log"
        self._events.append(Failed(sequence.id, SequenceFailed(message)))

    def _report(self, frames: Rows[Frame]) -> StepOutput:
        sounded = [frame for frame in frames if frame.finite and not frame.end]
        stats = attrs.evolve(
            self.stats,
            batch_size=len(frames),
            frames=len(sounded),
            reserved_codes=sum(frame.reserved for frame in sounded),
            phase_seconds=tuple(self._phases.items()),
            errors=tuple(self._errors),
        )
        output = StepOutput(tuple(self._events), stats)
        self._events, self._phases, self._errors = [], {}, []
        return output


class NonFiniteLogits(ArithmeticError):
    """A row's logits or samples held NaN or infinity."""


def _error_kind(error: Exception) -> str:
    if isinstance(error, NonFiniteLogits):
        return "non_finite"
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return "out_of_memory"
    return "exception"
