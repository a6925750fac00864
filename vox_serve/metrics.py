"""Every Prometheus metric by name, on a registry of its own; one process owns it.

No label ever holds a voice, request id, text, path or key.  docs/metrics.md lists the same
names; a test holds the two together.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, Generic, TypeVar

# Read by prometheus_client when it is imported: `_created` series double the exposition and
# promtool dislikes them.
os.environ.setdefault("PROMETHEUS_DISABLE_CREATED_SERIES", "True")

from prometheus_client import (  # after the variable above
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

PREFIX = "vox_serve_"
CONTENT_TYPE = "text/plain; version=0.0.4"
MODES = ("whole", "stream")
OUTCOMES = ("ok", "rejected", "invalid", "cancelled", "timeout", "error")
REASONS = ("stop", "length", "cancelled", "error")
PHASES = ("prefill", "emit", "advance", "codec")
REJECTIONS = ("queue_full", "draining", "engine_down", "too_long")
ENGINE_ERRORS = ("non_finite", "exception", "out_of_memory", "hang")
SOURCES = ("prefilled", "restored")
DISCONNECTS = ("queued", "first_audio", "stream")

FIRST_AUDIO = (0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2, 5, 10, 30)
QUEUE = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 30, 60)
REQUEST = (0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300)
STEP = (0.001, 0.002, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 5)
REAL_TIME = (0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1, 1.25, 1.5, 2, 5)
GAP = (0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.12, 0.16, 0.24, 0.5, 1, 2)
UNDERRUN = (0, 0.01, 0.05, 0.1, 0.2, 0.5, 1, 5)
BATCH = (1, 2, 4, 8, 16, 32, 64, 128, 256)


M = TypeVar("M", Counter, Gauge, Histogram)


class Registry:
    """The metrics of one server: every model's series lie in the same families."""

    def __init__(self) -> None:
        self.collector = CollectorRegistry()
        self._families: dict[str, Any] = {}

    def family(
        self, kind: type[M], name: str, help: str, labels: Sequence[str] = (), **settings: Any
    ) -> M:
        """A metric by its name without the prefix; made when it is first asked for."""
        if name not in self._families:
            self._families[name] = kind(
                PREFIX + name, help, ("model", *labels), registry=self.collector, **settings
            )
        found: M = self._families[name]
        return found

    def exposition(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self.collector)


class Series(Generic[M]):
    """A metric with its `model` label filled in.

    Call it with the values of the other labels, in their order.  All series of a named model
    are there from the start, at 0.
    """

    def __init__(self, metric: M, model: str, labels: Mapping[str, Sequence[str]]) -> None:
        self._metric: M = metric
        self._model = model
        self._values = set(product(*labels.values()))
        self._made: dict[tuple[str, ...], M] = {}
        for values in self._values if model else ():
            self(*values)

    def __call__(self, *values: str) -> M:
        if values not in self._made:
            if values not in self._values:
                raise KeyError(values)
            self._made[values] = self._metric.labels(self._model, *values)
        return self._made[values]


class Metrics:
    """All metrics of one model; attribute names are the metric names without the prefix.

    Args:
        model: value of the `model` label.  The empty one is for what concerns no model, in a
            server of several; its series are made only when there is something to count.
        registry: shared with the other models of the server.
    """

    def __init__(self, model: str, registry: Registry | None = None) -> None:
        self.model = model
        self.registry = registry or Registry()
        self.requests_total = self._counter(
            "requests_total", "Requests by how they ended.", mode=MODES, outcome=OUTCOMES
        )
        self.finished_total = self._counter(
            "finished_total", "Sequences by finish reason.", reason=REASONS
        )
        self.time_to_first_audio_seconds = self._histogram(
            "time_to_first_audio_seconds",
            "From the request's arrival to its first sound.",
            FIRST_AUDIO,
            mode=MODES,
        )
        self.queue_seconds = self._histogram(
            "queue_seconds", "Time that a request waited for a slot.", QUEUE
        )
        self.request_seconds = self._histogram(
            "request_seconds", "From a request's arrival to its last sound.", REQUEST
        )
        self.engine_step_seconds = self._histogram(
            "engine_step_seconds", "Time of one engine step by phase.", STEP, phase=PHASES
        )
        self.real_time_factor = self._histogram(
            "real_time_factor", "Time to speak a request over the length of its audio.", REAL_TIME
        )
        self.inter_chunk_gap_seconds = self._histogram(
            "inter_chunk_gap_seconds", "Time between two pieces of one request's audio.", GAP
        )
        self.stream_underrun_seconds = self._histogram(
            "stream_underrun_seconds",
            "Worst lateness of a stream's audio against its playback.",
            UNDERRUN,
        )
        self.audio_seconds_total = self._counter("audio_seconds_total", "Seconds of audio made.")
        self.frames_total = self._counter("frames_total", "Frames of codes made.")
        self.text_characters_total = self._counter(
            "text_characters_total", "Characters of text accepted."
        )
        self.reserved_codes_total = self._counter(
            "reserved_codes_total", "Codes outside the codec's codebooks, kept from it."
        )
        self.prompt_positions_total = self._counter(
            "prompt_positions_total",
            "Positions of prompts: run, or restored from a voice's or conversation's kept prefix.",
            source=SOURCES,
        )
        self.batch_size = self._histogram("batch_size", "Rows of one engine step.", BATCH)
        self.requests_running = self._gauge("requests_running", "Requests that have a slot.")
        self.requests_waiting = self._gauge("requests_waiting", "Requests that wait for a slot.")
        self.slots_used = self._gauge("slots_used", "Slots in use.")
        self.slots = self._gauge("slots", "Slots there are.")
        self.engine_up = self._gauge("engine_up", "1 while the engine worker lives.")
        self.engine_last_step_timestamp_seconds = self._gauge(
            "engine_last_step_timestamp_seconds", "Unix time of the engine's last sign of life."
        )
        self.ready = self._gauge("ready", "1 while requests are accepted.")
        self.admission_rejections_total = self._counter(
            "admission_rejections_total", "Requests refused at the door.", reason=REJECTIONS
        )
        self.engine_errors_total = self._counter(
            "engine_errors_total", "Errors inside the engine.", kind=ENGINE_ERRORS
        )
        self.client_disconnects_total = self._counter(
            "client_disconnects_total", "Clients that left early, by when.", phase=DISCONNECTS
        )
        family = self.registry.family
        self.http_responses_total = family(
            Counter, "http_responses_total", "HTTP responses.", ("route", "code")
        )
        self.plugin_errors_total = family(
            Counter, "plugin_errors_total", "Plugins that could not be loaded.", ("plugin",)
        )
        self.build_info = family(
            Gauge,
            "build_info",
            "Always 1; the labels say what runs.",
            ("version", "torch", "device"),
        )

    def _counter(self, name: str, help: str, **labels: tuple[str, ...]) -> Series[Counter]:
        return self._bind(self.registry.family(Counter, name, help, tuple(labels)), labels)

    def _gauge(self, name: str, help: str) -> Series[Gauge]:
        return self._bind(self.registry.family(Gauge, name, help), {})

    def _histogram(
        self, name: str, help: str, buckets: tuple[float, ...], **labels: tuple[str, ...]
    ) -> Series[Histogram]:
        made = self.registry.family(Histogram, name, help, tuple(labels), buckets=buckets)
        return self._bind(made, labels)

    def _bind(self, metric: M, labels: Mapping[str, Sequence[str]]) -> Series[M]:
        return Series(metric, self.model, labels)
