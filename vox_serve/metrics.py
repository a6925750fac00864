"""All Prometheus metrics as rows of a table, in a separate registry owned by one process.

No label ever holds a voice, request id, text, path or key.  docs/metrics.md lists the same
names; a test checks that the two agree.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
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
    ProcessCollector,
    generate_latest,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

PREFIX = "vox_serve_"
CONTENT_TYPE = "text/plain; version=0.0.4"
MODES = ("whole", "stream")
OUTCOMES = ("ok", "rejected", "invalid", "cancelled", "timeout", "error")
REASONS = ("stop", "length", "inaudible", "cancelled", "error")
PHASES = ("prefill", "emit", "advance", "codec")
REJECTIONS = ("queue_full", "draining", "engine_down", "too_long")
ENGINE_ERRORS = ("non_finite", "exception", "out_of_memory", "hang")
SOURCES = ("prefilled", "restored")
RESULTS = ("hit", "miss")
MEMORY = ("weights", "slots", "prefixes")
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
    """The metrics of one server; all models share the same families."""

    def __init__(self) -> None:
        self.collector = CollectorRegistry()
        self._families: dict[str, Any] = {}
        self._processes = Processes()
        self.collector.register(self._processes)

    def family(
        self, kind: type[M], name: str, help: str, labels: Sequence[str], **settings: Any
    ) -> M:
        """A metric by its name without the prefix; created at first use."""
        if name not in self._families:
            self._families[name] = kind(
                PREFIX + name, help, labels, registry=self.collector, **settings
            )
        found: M = self._families[name]
        return found

    def watch_process(self, model: str, process: str, pid: int | None, replica: str = "") -> None:
        """Report a process's memory, descriptors and start time, replacing an earlier process."""
        self._processes.watch(model, process, replica, pid)

    def exposition(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self.collector)


class Processes(Collector):
    """prometheus_client's process metrics, with the labels `model`, `process` and, for
    a worker, `replica`.

    They are read from /proc: without it, or once a process has ended, there are no series.
    """

    def __init__(self) -> None:
        self._readers: dict[tuple[str, str, str], ProcessCollector] = {}

    def watch(self, model: str, process: str, replica: str, pid: int | None) -> None:
        reader = ProcessCollector(PREFIX.rstrip("_"), pid=lambda: str(pid), registry=None)
        self._readers[model, process, replica] = reader

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for (model, process, replica), reader in self._readers.items():
            labels = {"model": model, "process": process}
            if replica:
                labels["replica"] = replica
            for found in reader.collect():
                made = Metric(found.name, found.documentation, found.type)
                samples = families.setdefault(found.name, made).samples
                samples += [sample._replace(labels=labels) for sample in found.samples]
        yield from families.values()


class Series(Generic[M]):
    """A metric with its labels `model` and, if it has one, `replica` filled in.

    Call it with the values of the other labels, in their order.  All series of a named model
    exist from the start, at 0.
    """

    def __init__(
        self, metric: M, first: tuple[str, ...], labels: Mapping[str, Sequence[str]]
    ) -> None:
        self._metric: M = metric
        self._first = first
        self._values = set(product(*labels.values()))
        self._made: dict[tuple[str, ...], M] = {}
        for values in self._values if first[0] else ():
            self(*values)

    def __call__(self, *values: str) -> M:
        if values not in self._made:
            if values not in self._values:
                raise KeyError(values)
            self._made[values] = self._metric.labels(*self._first, *values)
        return self._made[values]


class Row(Generic[M]):
    """A row of the table: the kind of metric, its help, and all values of its labels."""

    own: tuple[str, ...] = ("model",)
    """Labels that every series of the table has."""

    def __init__(
        self,
        kind: type[M],
        help: str,
        buckets: Sequence[float] | None = None,
        /,
        **labels: Sequence[str],
    ) -> None:
        self._kind: type[M] = kind
        self._help = help
        self._labels = labels
        self._settings = {"buckets": buckets} if buckets else {}

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def bind(self, registry: Registry, model: str, replica: str) -> Series[M]:
        labels = (*self.own, *self._labels)
        family = registry.family(self._kind, self.name, self._help, labels, **self._settings)
        return Series(family, (model, replica)[: len(self.own)], self._labels)

    def __get__(self, metrics: Metrics, owner: type) -> Series[M]:
        found: Series[M] = metrics.bound[self.name]
        return found


class ReplicaRow(Row[M]):
    """A row with a series for each replica of a model."""

    own = ("model", "replica")


class OpenRow(Generic[M]):
    """A row whose label values are not known beforehand: a series appears with its first value.

    Its attribute is the metric family: call `labels` with the model and the values.
    """

    def __init__(self, kind: type[M], help: str, *labels: str) -> None:
        self._kind: type[M] = kind
        self._help = help
        self._labels = labels

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def bind(self, registry: Registry, model: str, replica: str) -> M:
        labels = ("model", *self._labels)
        family: M = registry.family(self._kind, self.name, self._help, labels)
        return family

    def __get__(self, metrics: Metrics, owner: type) -> M:
        found: M = metrics.bound[self.name]
        return found


class Metrics:
    """The table: all metrics of one model, each named like its attribute after the prefix.

    Args:
        model: value of the `model` label.  In a server of several models, the empty one is for
            events that belong to no model; its series are created at the first event.
        registry: shared with the other models of the server.
        replica: value of the `replica` label, in rows that have one.
    """

    requests_total = Row(Counter, "Requests by how they ended.", mode=MODES, outcome=OUTCOMES)
    finished_total = Row(Counter, "Sequences by finish reason.", reason=REASONS)
    inaudible_total = Row(Counter, "Requests whose text has words but whose audio is silent.")
    time_to_first_audio_seconds = Row(
        Histogram, "From the request's arrival to its first sound.", FIRST_AUDIO, mode=MODES
    )
    queue_seconds = Row(Histogram, "Time that a request waited for a slot.", QUEUE)
    request_seconds = Row(Histogram, "From a request's arrival to its last sound.", REQUEST)
    engine_step_seconds = ReplicaRow(
        Histogram, "Time of one engine step by phase.", STEP, phase=PHASES
    )
    real_time_factor = Row(
        Histogram, "Time to speak a request divided by the length of its audio.", REAL_TIME
    )
    inter_chunk_gap_seconds = Row(Histogram, "Time between two pieces of one request's audio.", GAP)
    stream_underrun_seconds = Row(
        Histogram, "Worst lateness of a stream's audio against its playback.", UNDERRUN
    )
    audio_seconds_total = Row(Counter, "Seconds of audio generated.")
    frames_total = Row(Counter, "Frames of codes generated.")
    text_characters_total = Row(Counter, "Characters of text accepted.")
    reserved_codes_total = Row(Counter, "Codes outside the codec's codebooks, replaced by 0.")
    prompt_positions_total = ReplicaRow(
        Counter,
        "Prompt positions: computed, or restored from the prefix cache.",
        source=SOURCES,
    )
    prefix_lookups_total = ReplicaRow(
        Counter, "Prompts looked up in the prefix cache.", result=RESULTS
    )
    prefixes = ReplicaRow(Gauge, "Prompt prefixes in the cache.")
    conversations = Row(Gauge, "Conversations in memory.")
    voices = Row(Gauge, "Voices that requests can use.")
    websocket_sessions = Row(Gauge, "Open WebSocket sessions.")
    engine_memory_bytes = ReplicaRow(
        Gauge, "Memory that the engine holds on its device: weights, slots, prefixes.", kind=MEMORY
    )
    device_memory_bytes = OpenRow(
        Gauge, "Memory of the GPU, used by all its processes and free.", "replica", "kind"
    )
    connections = OpenRow(Gauge, "Connections that are open.")
    connections_refused_total = OpenRow(
        Counter,
        "Connections refused because none was free (full), or closed to make room (evicted).",
        "reason",
    )
    batch_size = ReplicaRow(Histogram, "Rows of one engine step.", BATCH)
    requests_running = Row(Gauge, "Requests that have a slot.")
    requests_waiting = Row(Gauge, "Requests that wait for a slot.")
    slots_used = ReplicaRow(Gauge, "Slots in use.")
    slots = ReplicaRow(Gauge, "All slots, used or free.")
    engine_up = ReplicaRow(Gauge, "1 while the engine works, or is unloaded until it is asked for.")
    engine_loaded = ReplicaRow(Gauge, "1 while the model is in memory.")
    engine_last_step_timestamp_seconds = ReplicaRow(Gauge, "Unix time of the engine's last report.")
    ready = Row(Gauge, "1 while requests are accepted.")
    worker_restarts_total = ReplicaRow(
        Counter, "Times that the server restarted the engine worker."
    )
    engine_unloads_total = ReplicaRow(Counter, "Times that an idle model was unloaded.")
    admission_rejections_total = Row(
        Counter, "Requests rejected before they were queued.", reason=REJECTIONS
    )
    engine_errors_total = ReplicaRow(Counter, "Errors inside the engine.", kind=ENGINE_ERRORS)
    client_disconnects_total = Row(Counter, "Clients that left early, by phase.", phase=DISCONNECTS)
    http_responses_total = OpenRow(Counter, "HTTP responses.", "route", "code")
    plugin_errors_total = OpenRow(Counter, "Plugins that could not be loaded.", "plugin")
    build_info = OpenRow(
        Gauge, "Always 1; the labels describe the build.", "replica", "version", "torch", "device"
    )

    def __init__(self, model: str, registry: Registry | None = None, replica: str = "0") -> None:
        self.model = model
        self.replica = replica
        self.registry = registry or Registry()
        self.bound: dict[str, Any] = {
            row.name: row.bind(self.registry, model, replica)
            for row in vars(Metrics).values()
            if isinstance(row, Row | OpenRow)
        }

    def of(self, replica: int) -> Metrics:
        """The same table for another replica of the model."""
        return Metrics(self.model, self.registry, str(replica))

    def watch_process(self, process: str, pid: int | None) -> None:
        """Report a process of this replica; None: it has ended."""
        self.registry.watch_process(self.model, process, pid, self.replica)
