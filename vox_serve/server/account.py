"""What becomes of one request: measured on the way, counted and logged once at its end."""

from __future__ import annotations

import logging
import time

from vox_serve.errors import PromptTooLong, RequestError, SequenceFailed
from vox_serve.messages import EngineInfo, Finished
from vox_serve.metrics import Metrics
from vox_serve.server.errors import ClientGone, meaning

log = logging.getLogger("vox_serve.requests")


class Account:
    """The account of one request, from its arrival to its end.

    Args:
        name: the id that its client knows.
        metrics: those of the engine that speaks it; of no engine while none is chosen.
        mode: `whole` or `stream`; known once the body is read.
        arrival: when it came in, by `time.monotonic`.
    """

    def __init__(
        self, name: str, metrics: Metrics, mode: str = "whole", arrival: float | None = None
    ) -> None:
        self.name = name
        self.metrics = metrics
        self.mode = mode
        self.arrival = time.monotonic() if arrival is None else arrival
        self.outcome: str | None = None
        """How it ended; None while it is open."""
        self._phase = "queued"
        self._admitted = False
        self._characters = 0
        self._byte_rate = 1.0
        self._bytes = 0
        self._first_audio = 0.0
        self._last_audio = 0.0
        self._underrun = 0.0

    @property
    def audio_seconds(self) -> float:
        """How long the sound so far takes to play."""
        return self._bytes / self._byte_rate

    def admitted(self, characters: int, info: EngineInfo) -> None:
        """An engine has taken it."""
        self._admitted = True
        self._characters = characters
        self._byte_rate = 2.0 * info.sample_rate
        self.metrics.text_characters_total().inc(characters)

    def started(self, queue_seconds: float) -> None:
        """It has a slot; the later parts of a long text do not count."""
        if self._phase == "queued":
            self._phase = "first_audio"
            self.metrics.queue_seconds().observe(queue_seconds)

    def heard(self, count: int) -> None:
        """`count` bytes of PCM are there."""
        now = time.monotonic()
        if not self._bytes:
            self._phase = "stream"
            self._first_audio = now
            self.metrics.time_to_first_audio_seconds(self.mode).observe(now - self.arrival)
        else:
            self.metrics.inter_chunk_gap_seconds().observe(now - self._last_audio)
            lateness = now - self._first_audio - self.audio_seconds
            self._underrun = max(self._underrun, lateness)
        self._last_audio = now
        self._bytes += count

    def end(self, error: BaseException | None = None, finished: Finished | None = None) -> None:
        """Count how it ended; the first call counts.

        Args:
            error: why; None if all was sent.
            finished: what the engine said last.
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
        if self._admitted:
            self._sum_up(error, finished)

    def _sum_up(self, error: BaseException | None, finished: Finished | None) -> None:
        metrics = self.metrics
        seconds, spent = self.audio_seconds, time.monotonic() - self.arrival
        reason = finished.reason.value if finished is not None else None
        if reason is None and self.outcome in ("cancelled", "timeout"):
            reason = "cancelled"
        elif reason is None and isinstance(error, SequenceFailed):
            reason = "error"
        if reason is not None:
            metrics.finished_total(reason).inc()
        if self.outcome == "ok":
            metrics.request_seconds().observe(spent)
            if seconds:
                metrics.real_time_factor().observe(spent / seconds)
        if self.mode == "stream" and seconds:
            metrics.stream_underrun_seconds().observe(self._underrun)
        log.info(
            "%s %s %s: %d characters, %.2f s of audio in %.2f s, first after %.3f s, finish %s",
            self.name,
            self.mode,
            self.outcome,
            self._characters,
            seconds,
            spent,
            self._first_audio - self.arrival if self._bytes else 0.0,
            reason or "-",
        )
