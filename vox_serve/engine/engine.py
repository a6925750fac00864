"""The engine: add, abort, step.  Plain and synchronous; the worker's loop calls it.

A step does three things: schedule, run, postprocess.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Rows

import attrs
import torch

from vox_serve.config import EngineConfig
from vox_serve.engine.frames import Frame, FrameReader
from vox_serve.engine.gpu_memory import GPUMemory
from vox_serve.engine.pacing import Pacing
from vox_serve.engine.prefix_cache import shared_rows
from vox_serve.engine.prompts import Prompts, as_arrays
from vox_serve.engine.runner import ModelRunner, run_isolated
from vox_serve.engine.scheduler import Scheduler
from vox_serve.engine.sequence import Sequence
from vox_serve.errors import (
    EngineError,
    InvalidRequest,
    RequestError,
    SequenceFailed,
    TimedOut,
)
from vox_serve.messages import (
    Audio,
    EngineInfo,
    Event,
    Failed,
    Finished,
    FinishReason,
    Said,
    SpeechRequest,
    Started,
    Stats,
    StepOutput,
)
from vox_serve.model import CheckpointSpec, Model
from vox_serve.voice import Segment

log = logging.getLogger("vox_serve.engine")


class Engine:
    """Speaks requests with one model.

    Args:
        model: a loaded model.
        config: slots, caps and sampling defaults.
        checkpoint: limits of the text, if the model was chosen by an alias.
        runner: runs the model; a simulation passes its own.
        clock: returns the time in seconds; a simulation passes its own.
    """

    def __init__(
        self,
        model: Model,
        config: EngineConfig,
        checkpoint: CheckpointSpec | None = None,
        *,
        runner: ModelRunner | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.model = model
        self.config = config
        self.checkpoint = checkpoint
        self._clock = clock
        self.scheduler = Scheduler(config.max_batch_size, config.deterministic, clock)
        self.runner = runner or ModelRunner(
            model,
            config.max_batch_size,
            config.prefix_cache_mib * 2**20,
            config.deterministic,
            bool(config.adapters),
        )
        self.prompts = Prompts(model, config, checkpoint)
        self._in_flight: deque[tuple[list[Sequence], FrameReader]] = deque()
        self._step_seconds = 0.0
        self._events: list[Event] = []
        self._phases: dict[str, float] = {}
        self._errors: list[str] = []
        self._prefilled = self._restored = self._hits = self._misses = 0
        self._gpu_memory = GPUMemory(model.device)

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work or bool(self._events or self._in_flight)

    @property
    def stats(self) -> Stats:
        """The current queue, batch and caches."""
        return Stats(
            running=len(self.scheduler.running),
            waiting=len(self.scheduler.waiting),
            prefixes=len(self.runner.prefixes),
            prefix_bytes=self.runner.prefixes.num_bytes,
            conversations=len(self.prompts.conversations),
        )

    def add(self, request: SpeechRequest) -> None:
        """Queue a request.  Raises RequestError if it cannot be spoken."""
        self.enqueue(self.prompts.prepare(request))

    def enqueue(self, sequence: Sequence) -> None:
        """Queue a prepared sequence.  Raises InvalidRequest if its id is already open."""
        if sequence.id in self.scheduler:
            raise InvalidRequest(f"a request with the id {sequence.id!r} is already open", "id")
        if sequence.live is not None:
            sequence.live.since = self._clock()
        self.scheduler.add(sequence)

    def more_text(self, request_id: str, text: str, end: bool) -> None:
        """Add to the text of a request that waits for it; ignored if it has ended.

        An error ends the request, as in a step.
        """
        sequence = self.scheduler.find(request_id)
        if sequence is None or sequence.live is None or sequence.live.ended:
            return
        sequence.live.since = self._clock()
        failed = run_isolated(lambda rows: self._grow(rows[0], text, end), [sequence])
        for error in failed.values():
            if isinstance(error, RequestError):
                self._refuse(sequence, error.plain())
            else:
                self._fail(sequence, error)
        if not failed and end and sequence.frames >= sequence.max_frames:
            self._finish(sequence, FinishReason.LENGTH)

    def _grow(self, sequence: Sequence, text: str, end: bool) -> None:
        before = self.prompts.grow(sequence, text, end)
        if sequence.slot >= 0:
            self.runner.put_text(sequence, before)

    def abort(self, request_id: str) -> None:
        """End a request whose client left, and free its slot.  Unknown ids are ignored."""
        sequence = self.scheduler.find(request_id)
        if sequence is not None:
            self._finish(sequence, FinishReason.CANCELLED)
        self.scheduler.release(request_id)  # it may have been between two parts of a text
        self.prompts.conversations.release(request_id)

    def step(self) -> StepOutput:
        """Generate one frame for every running sequence, and admit waiting ones."""
        began = self._clock()
        admitted = self.scheduler.schedule()
        self._run("advance", self.runner.advance, self.scheduler.speaking())
        self._admit(admitted)
        self._prefill()
        launched = self._launch(self.scheduler.speaking())
        frames = self._collect(launched)
        self._pause()
        self._step_seconds = self._clock() - began
        return self._report(frames)

    def warm_up(self) -> None:
        """Run two codec steps, so that everything is allocated before the first request."""
        prompt = self.model.prompt(
            "a", self.model.voices[0], context=(), parameters=self.prompts.defaults
        )
        self.runner.warm_up(prompt.inputs)
        frames = 2 * self.model.codec.frames_per_step
        self.scheduler.add(
            Sequence("warm-up", prompt, self.prompts.defaults, seed=0, max_frames=frames)
        )
        while self.scheduler.has_work:
            output = self.step()
            for event in output.events:
                if isinstance(event, Failed):
                    raise EngineError(f"the warm-up failed: {event.error.message}")

    def info(
        self, name: str, kind: str, load_seconds: float, languages: tuple[str, ...] = ()
    ) -> EngineInfo:
        """What the server reports about this engine."""
        model, codec, checkpoint = self.model, self.model.codec, self.checkpoint
        return EngineInfo(
            model=name,
            kind=kind,
            summary=checkpoint.summary if checkpoint else "",
            device=str(model.device),
            dtype=str(model.dtype).removeprefix("torch."),
            torch_version=str(
                torch.__version__
            ),  # a plain str, because unpickling its class would import torch
            weight_bytes=model.weight_bytes,
            cache_bytes=self.runner.cache_bytes,
            num_slots=self.scheduler.num_slots,
            sample_rate=codec.sample_rate,
            frame_rate=codec.frame_rate,
            frame_width=codec.frame_width,
            max_positions=model.max_positions,
            max_seconds=self.config.max_seconds,
            max_characters=checkpoint.max_characters if checkpoint else None,
            max_words=checkpoint.max_words if checkpoint else None,
            takes_context=self.prompts.takes_context,
            takes_voices=self.prompts.takes_voices,
            takes_live_text=self.prompts.takes_live_text,
            voices=self.prompts.voices.names,
            languages=languages,
            sampling=attrs.asdict(self.prompts.defaults),
            parameters={n: a.schema for n, a in self.prompts.defaults.allowed().items()},
            load_seconds=load_seconds,
        )

    def _admit(self, admitted: Rows[Sequence]) -> None:
        now = self._clock()
        for sequence in admitted:
            codec = self.model.codec
            sequence.pacing = Pacing(codec.frames_per_step / codec.frame_rate)
            self.runner.assign(sequence)
            self._events.append(Started(sequence.id, now - sequence.arrival))
        self._run("prefill", lambda rows: [self.runner.restore(s) for s in rows], admitted)
        self._restored += sum(s.restored for s in admitted)
        self._hits += sum(s.restored > 0 for s in admitted)
        self._misses += sum(s.restored == 0 for s in admitted)

    def _prefill(self) -> None:
        rows, most = self.scheduler.prefilling()
        before = sum(s.prefilled for s in rows)
        self._run("prefill", lambda part: self.runner.prefill(part, most), rows)
        self._prefilled += sum(s.prefilled for s in rows) - before

    def _launch(self, rows: Rows[Sequence]) -> bool:
        """Start a frame of every row; rows that raise are ended.  False if no row is left."""
        rows = self._run("emit", self.runner.emit, rows)
        rows = self._run("codec", self.runner.decode, rows)
        if not rows:
            return False
        self._in_flight.append((rows, self.runner.collect(rows)))
        for sequence in rows:
            sequence.launched += 1
        return True

    def _collect(self, launched: bool) -> list[Frame]:
        """Read the frames that are due: on a CPU at once, on a GPU one step later."""
        start = self._clock()
        read: list[Frame] = []
        while len(self._in_flight) > (self.runner.frames_behind if launched else 0):
            rows, reader = self._in_flight.popleft()
            for sequence, frame in zip(rows, reader.frames(), strict=True):
                # It may have ended since, and its slot may have a new owner.
                if sequence.finish_reason is None:
                    read.append(frame)
                    self._postprocess(sequence, frame)
        if read:
            self._took("codec", start)
        return read

    def _run(
        self, phase: str, run: Callable[[Rows[Sequence]], object], rows: Rows[Sequence]
    ) -> list[Sequence]:
        """Run a step function; rows that raise are ended, the others returned."""
        if not rows:
            return []
        start = self._clock()
        with self.prompts.calls.of(phase):
            failed = run_isolated(run, rows)
        for sequence, error in failed.items():
            self._fail(sequence, error)
        self._took(phase, start)
        return [sequence for sequence in rows if sequence not in failed]

    def _took(self, phase: str, start: float) -> None:
        self._phases[phase] = self._phases.get(phase, 0.0) + self._clock() - start

    def _postprocess(self, sequence: Sequence, frame: Frame) -> None:
        if not frame.finite:
            self._fail(sequence, NonFiniteLogits("logits or samples were not finite"))
            return
        if sequence.frames == 0 and sequence.restored < sequence.prompt.shared:
            # Only now, because a prompt that gives no finite frame must not be cached.
            self.runner.keep(sequence, sequence.prompt.inputs, sequence.prompt.shared)
        if frame.end:
            self._finish(sequence, FinishReason.STOP)
        else:
            sequence.frames += 1
            if sequence.turn is not None:
                sequence.turn.codes.append(frame.codes)
            self._deliver(sequence, frame.pcm)
            if sequence.frames >= sequence.max_frames and not sequence.open:
                self._finish(sequence, FinishReason.LENGTH)

    def _deliver(self, sequence: Sequence, pcm: bytes) -> None:
        if pcm and sequence.pacing is not None:
            # A codec that takes R frames at once returns sound in every R-th step.
            pace = self._step_seconds * self.model.codec.frames_per_step
            sounded = sequence.pacing.add(pcm, self._clock(), pace)
            if sounded:
                self._events.append(Audio(sequence.id, sounded))

    def _pause(self) -> None:
        """Send all audio of sequences that wait for text; end those that have waited too long."""
        now = self._clock()
        for sequence in [*self.scheduler.running.values(), *self.scheduler.waiting]:
            live = sequence.live
            if live is None or live.request.waits is None:
                continue
            if not sequence.waits_for_text:
                live.since = now
                continue
            if sequence.pacing is not None and (rest := sequence.pacing.rest()):
                self._events.append(Audio(sequence.id, rest))
            if now - live.since > live.request.waits:
                limit = live.request.waits
                self._refuse(sequence, TimedOut(f"no text came for {limit:g} seconds", "text"))

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """Free the slot, remember the turn, and report the end."""
        more = sequence.more and reason is not FinishReason.CANCELLED
        self._remember(sequence, reason, sequence.id if more else None)
        rest = sequence.pacing.rest() if sequence.pacing is not None else b""
        if rest and reason is not FinishReason.CANCELLED:
            self._events.append(Audio(sequence.id, rest))
        self.scheduler.finish(sequence, reason)
        frames = max(0, sequence.frames - sequence.prompt.unheard)
        self._events.append(Finished(sequence.id, reason, frames, sequence.seed, more))

    def _remember(self, sequence: Sequence, reason: FinishReason, kept_for: str | None) -> None:
        """Add the turn to its conversation, and cache the slot's positions for the next one."""
        turn = sequence.turn
        if turn is None:
            return
        if reason not in (FinishReason.STOP, FinishReason.LENGTH) or not turn.codes:
            self.prompts.conversations.end(turn.conversation, kept_for=kept_for)
            return
        said = Segment(turn.voice.speaker, turn.text, codes=torch.tensor(turn.codes).T)
        turns = (*turn.before, said)
        self.prompts.conversations.end(turn.conversation, turns, kept_for)
        added = tuple(map(as_arrays, turns[turn.kept :]))
        self._events.append(Said(sequence.id, turn.kept, added))
        # At the length limit, the last frame has not been fed back.
        fed = len(turn.codes) - (reason is FinishReason.LENGTH)
        try:
            with self.prompts.calls.of("prompt"):
                following = self.model.prompt(
                    turn.text, turn.voice, context=turns, parameters=sequence.sampling
                )
        except Exception as error:  # noqa: BLE001  # most likely the context is full; the next turn drops some
            log.debug("%s is not kept: %s", sequence.id, type(error).__name__)
            return
        length = len(sequence.prompt)
        if shared_rows(following.inputs, sequence.prompt.inputs) == length:
            self.runner.keep(sequence, following.inputs, length + fed)

    def _fail(self, sequence: Sequence, error: BaseException) -> None:
        log.error("the request failed", exc_info=error, extra={"request_id": sequence.id})
        self._errors.append(_error_kind(error))
        if sequence.slot >= 0:
            self.runner.clear(sequence)
        self._refuse(sequence, _failure(error))

    def _refuse(self, sequence: Sequence, error: RequestError) -> None:
        """End a sequence with an error, and free its slot."""
        self.prompts.release(sequence)
        self.scheduler.finish(sequence, FinishReason.ERROR)
        self._events.append(Failed(sequence.id, error))

    def _report(self, frames: Rows[Frame]) -> StepOutput:
        sounded = [frame for frame in frames if frame.finite and not frame.end]
        stats = attrs.evolve(
            self.stats,
            batch_size=len(frames),
            frames=len(sounded),
            reserved_codes=sum(frame.reserved for frame in sounded),
            prefilled=self._prefilled,
            restored=self._restored,
            hits=self._hits,
            misses=self._misses,
            device_memory=self._gpu_memory.look(),
            phase_seconds=tuple(self._phases.items()),
            errors=tuple(self._errors),
        )
        output = StepOutput(tuple(self._events), stats)
        self._events, self._phases, self._errors = [], {}, []
        self._prefilled = self._restored = self._hits = self._misses = 0
        return output


class NonFiniteLogits(ArithmeticError):
    """A row's logits or samples contained NaN or infinity."""


def _failure(error: BaseException) -> SequenceFailed:
    return SequenceFailed(
        f"the model failed while it spoke ({type(error).__name__}); see the server's log"
    )


def _error_kind(error: BaseException) -> str:
    if isinstance(error, NonFiniteLogits):
        return "non_finite"
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return "out_of_memory"
    return "exception"
