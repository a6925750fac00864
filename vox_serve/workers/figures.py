"""What an engine reports, written to its metrics."""

from __future__ import annotations

from vox_serve import __version__
from vox_serve.messages import EngineInfo, Stats
from vox_serve.metrics import MEMORY, Metrics

GAUGES = ("slots_used", "prefixes")
"""The gauges that are set to 0 when the worker has ended."""


def loaded(metrics: Metrics, info: EngineInfo) -> None:
    """Record that the model is in memory."""
    metrics.slots().set(info.num_slots)
    metrics.engine_loaded().set(1)
    metrics.engine_memory_bytes("weights").set(info.weight_bytes)
    metrics.engine_memory_bytes("slots").set(info.cache_bytes)
    metrics.build_info.labels(
        metrics.model, metrics.replica, __version__, info.torch_version, info.device
    ).set(1)


def gone(metrics: Metrics) -> None:
    """Record that the worker has ended and its memory is free."""
    metrics.engine_loaded().set(0)
    for gauge in GAUGES:
        getattr(metrics, gauge)().set(0)
    for kind in MEMORY:
        metrics.engine_memory_bytes(kind).set(0)


def served(metrics: Metrics, running: int, open_requests: int, conversations: int) -> None:
    """Record what a model does.  Requests in the pipe or being prepared count as waiting."""
    metrics.requests_running().set(running)
    metrics.requests_waiting().set(max(0, open_requests - running))
    metrics.conversations().set(conversations)


def stepped(metrics: Metrics, stats: Stats, info: EngineInfo | None) -> None:
    """Record a step of a replica."""
    metrics.engine_last_step_timestamp_seconds().set_to_current_time()
    metrics.slots_used().set(stats.running)
    for phase, seconds in stats.phase_seconds:
        metrics.engine_step_seconds(phase).observe(seconds)
    for kind in stats.errors:
        metrics.engine_errors_total(kind).inc()
    if stats.batch_size:
        metrics.batch_size().observe(stats.batch_size)
    metrics.frames_total().inc(stats.frames)
    metrics.reserved_codes_total().inc(stats.reserved_codes)
    metrics.prompt_positions_total("prefilled").inc(stats.prefilled)
    metrics.prompt_positions_total("restored").inc(stats.restored)
    metrics.prefix_lookups_total("hit").inc(stats.hits)
    metrics.prefix_lookups_total("miss").inc(stats.misses)
    metrics.prefixes().set(stats.prefixes)
    metrics.engine_memory_bytes("prefixes").set(stats.prefix_bytes)
    for kind, size in zip(("used", "free"), stats.device_memory or (), strict=False):
        metrics.device_memory_bytes.labels(metrics.model, metrics.replica, kind).set(size)
    if info is not None:
        metrics.audio_seconds_total().inc(stats.frames / info.frame_rate)
