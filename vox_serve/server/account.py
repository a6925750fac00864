"""Measures a request while it runs; counts, logs and traces it once when it ends."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from typing import Any

from vox_serve.errors import PromptTooLong, RequestError, SequenceFailed
from vox_serve.messages import EngineInfo, Finished, FinishReason, SpeechRequest
from vox_serve.metrics import Metrics
from vox_serve.parts import private_conversation
from vox_serve.server import traces
from vox_serve.server.errors import ClientGone, meaning
from vox_serve.server.owner import NOBODY, Owner
from vox_serve.server.traces import Phase

log = logging.getLogger("vox_serve.requests")


class Account:
    """Everything that is recorded about one request, from its arrival to its end.

    Args:
        name: the request id that the client sees.
        metrics: of the engine that speaks it; the server's until an engine is chosen.
        mode: `whole` or `stream`; set once the body has been read.
        arrival: time of arrival, by `time.monotonic`.
        owner: the sender.
    """

    def __init__(
        self,
        name: str,
        metrics: Metrics,
        mode: str = "whole",
        arrival: float | None = None,
        owner: Owner = NOBODY,
    ) -> None:
        self.name = name
        self.owner = owner
        self.metrics = metrics
        self.mode = mode
        self.arrival = time.monotonic() if arrival is None else arrival
        self.outcome: str | None = None
        """How it ended; None while it is open."""
        self._traceparent = traces.parent()
        self._phases: dict[str, Phase] = {}
        self._phase = "queued"
        self._admitted = False
        self._asked: dict[str, Any] = {}
        """The facts about the request that may be logged."""
        self._byte_rate = 1.0
        self._bytes = 0
        self._first_audio = 0.0
        self._last_audio = 0.0
        self._underrun = 0.0

    @property
    def audio_seconds(self) -> float:
        """Duration of the audio so far."""
        return self._bytes / self._byte_rate

    def admitted(self, request: SpeechRequest, info: EngineInfo, log_text: bool = False) -> None:
        """Record that an engine has accepted the request.

        Args:
            log_text: whether its text may be logged.
        """
        self._admitted = True
        self._byte_rate = 2.0 * info.sample_rate
        self.metrics.text_characters_total().inc(request.characters)
        private = private_conversation(request.id)
        self._asked = {
            "characters": request.characters,
            "voice": _voice_class(request, info),
            "context": bool(request.context),
            "conversation": request.conversation not in (None, private),
            "text": " ".join((request.text, *request.following)) if log_text else None,
        }

    def more_text(self, text: str) -> None:
        """Record that the request's text has grown."""
        self.metrics.text_characters_total().inc(len(text))
        self._asked["characters"] += len(text)
        if self._asked["text"] is not None:
            self._asked["text"] += text

    def started(self, queue_seconds: float) -> None:
        """Record that it got a slot; calls for later parts of a long text are ignored."""
        if self._phase == "queued":
            self._phase = "first_audio"
            self.metrics.queue_seconds().observe(queue_seconds)
            # The event arrives only with the first audio, so use the duration that the engine
            # measured, by the same clock.
            self._passed("queue", self.arrival, self.arrival + queue_seconds)

    def heard(self, count: int) -> None:
        """Record that `count` bytes of PCM have arrived."""
        now = time.monotonic()
        if not self._bytes:
            self._phase = "stream"
            self._first_audio = now
            self.metrics.time_to_first_audio_seconds(self.mode).observe(now - self.arrival)
            queue = self._phases.get("queue")
            self._passed("prefill", queue.end if queue else self.arrival, now)
            self._passed("first_audio", self.arrival, now)
        else:
            self.metrics.inter_chunk_gap_seconds().observe(now - self._last_audio)
            lateness = now - self._first_audio - self.audio_seconds
            self._underrun = max(self._underrun, lateness)
        self._last_audio = now
        self._bytes += count

    @contextlib.contextmanager
    def busy(self, name: str) -> Iterator[None]:
        """Time the block as part of the phase `name`: `encode` or `send`."""
        start = time.monotonic()
        try:
            yield
        finally:
            end = time.monotonic()
            phase = self._phases.setdefault(name, Phase(name, start, end, 0.0))
            phase.end = end
            phase.busy += end - start

    def end(self, error: BaseException | None = None, finished: Finished | None = None) -> None:
        """Record how it ended; calls after the first are ignored.

        Args:
            error: why it ended; None if everything was sent.
            finished: the engine's last event.
        """
        if self.outcome is not None:
            return
        outcome = "ok" if error is None else meaning(error).outcome
        if outcome == "error" and not self._admitted and isinstance(error, RequestError):
            outcome = "rejected"
        self.outcome = outcome
        metrics = self.metrics
        metrics.requests_total(self.mode, outcome).inc()
        if isinstance(error, ClientGone):
            metrics.client_disconnects_total(self._phase).inc()
        if isinstance(error, PromptTooLong):
            metrics.admission_rejections_total("too_long").inc()
        spent = time.monotonic() - self.arrival
        reason = self._reason(error, finished) if self._admitted else None
        if self._admitted:
            self._count(spent, reason)
        self._tell(spent, reason, error)

    def _reason(self, error: BaseException | None, finished: Finished | None) -> str | None:
        """Why the audio ended."""
        if finished is not None:
            return finished.reason.value
        if self.outcome in ("cancelled", "timeout"):
            return "cancelled"
        return "error" if isinstance(error, SequenceFailed) else None

    def _count(self, spent: float, reason: str | None) -> None:
        metrics, seconds = self.metrics, self.audio_seconds
        if reason is not None:
            metrics.finished_total(reason).inc()
        if reason == FinishReason.INAUDIBLE:
            metrics.inaudible_total().inc()
            log.warning(
                "%d characters became %.2f s of silence",
                self._asked["characters"],
                seconds,
                extra={"request_id": self.name, "fields": {"model": metrics.model}},
            )
        if self.outcome == "ok":
            metrics.request_seconds().observe(spent)
            if seconds:
                metrics.real_time_factor().observe(spent / seconds)
        if self.mode == "stream" and seconds:
            metrics.stream_underrun_seconds().observe(self._underrun)

    def _tell(self, spent: float, reason: str | None, error: BaseException | None) -> None:
        """Write the log line and the trace."""
        problem = None if error is None else str(getattr(error, "code", type(error).__name__))
        first = self._first_audio - self.arrival if self._bytes else None
        facts: dict[str, Any] = {
            "model": self.metrics.model,
            "key": self.owner.key or None,
            "mode": self.mode,
            "outcome": self.outcome,
            **self._asked,
            "audio_seconds": round(self.audio_seconds, 3),
            "seconds": round(spent, 4),
            "first_audio_seconds": None if first is None else round(first, 4),
            "late_seconds": round(self._underrun, 4) if self.mode == "stream" else None,
            "finish": reason,
            "error": problem,
        }
        text = self._asked.get("text")
        busy = {f"{name}_seconds": round(one.busy, 4) for name, one in self._phases.items()}
        log.info(
            "%s %s: %d characters, %.2f s of audio in %.2f s, first after %.3f s, finish %s%s",
            self.mode,
            self.outcome,
            self._asked.get("characters", 0),
            self.audio_seconds,
            spent,
            first or 0.0,
            reason or problem or "-",
            f", text {text!r}" if text is not None else "",
            extra={"request_id": self.name, "fields": {**busy, **facts}},
        )
        failed = problem if self.outcome in ("error", "timeout") else None
        facts = {"request_id": self.name, **facts, "text": None}
        traces.record(self._traceparent, self.arrival, self._phases.values(), facts, failed)

    def _passed(self, name: str, start: float, end: float) -> None:
        self._phases[name] = Phase(name, start, end, end - start)


def _voice_class(request: SpeechRequest, info: EngineInfo) -> str:
    """The kind of voice requested.  The name is not logged, because it may be a person's."""
    if request.voice is None:
        return "speaker"
    return "own" if request.voice in dict(info.voices) else "registered"
