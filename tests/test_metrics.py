"""The names and labels of every metric, its value after some requests, the number of series."""

from __future__ import annotations

import os
import re
import subprocess

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import TONE, RunningServer, until
from tests.server.conftest import value
from vox_serve import __version__
from vox_serve.config import EngineConfig, ServerConfig
from vox_serve.metrics import Metrics, Registry
from vox_serve.plugins import load_plugins
from vox_serve.workers.engines import Engines

TABLE = {
    "requests_total": ("counter", {"mode", "outcome"}),
    "finished_total": ("counter", {"reason"}),
    "inaudible_total": ("counter", set()),
    "time_to_first_audio_seconds": ("histogram", {"mode"}),
    "queue_seconds": ("histogram", set()),
    "request_seconds": ("histogram", set()),
    "engine_step_seconds": ("histogram", {"replica", "phase"}),
    "real_time_factor": ("histogram", set()),
    "inter_chunk_gap_seconds": ("histogram", set()),
    "stream_underrun_seconds": ("histogram", set()),
    "audio_seconds_total": ("counter", set()),
    "frames_total": ("counter", set()),
    "text_characters_total": ("counter", set()),
    "reserved_codes_total": ("counter", set()),
    "prompt_positions_total": ("counter", {"replica", "source"}),
    "prefix_lookups_total": ("counter", {"replica", "result"}),
    "prefixes": ("gauge", {"replica"}),
    "conversations": ("gauge", set()),
    "voices": ("gauge", set()),
    "websocket_sessions": ("gauge", set()),
    "connections": ("gauge", set()),
    "connections_refused_total": ("counter", {"reason"}),
    "engine_memory_bytes": ("gauge", {"replica", "kind"}),
    "device_memory_bytes": ("gauge", {"replica", "kind"}),
    "batch_size": ("histogram", {"replica"}),
    "requests_running": ("gauge", set()),
    "requests_waiting": ("gauge", set()),
    "slots_used": ("gauge", {"replica"}),
    "slots": ("gauge", {"replica"}),
    "engine_up": ("gauge", {"replica"}),
    "engine_loaded": ("gauge", {"replica"}),
    "engine_unloads_total": ("counter", {"replica"}),
    "engine_last_step_timestamp_seconds": ("gauge", {"replica"}),
    "ready": ("gauge", set()),
    "worker_restarts_total": ("counter", {"replica"}),
    "admission_rejections_total": ("counter", {"reason"}),
    "engine_errors_total": ("counter", {"replica", "kind"}),
    "client_disconnects_total": ("counter", {"phase"}),
    "http_responses_total": ("counter", {"route", "code"}),
    "plugin_errors_total": ("counter", {"plugin"}),
    "build_info": ("gauge", {"replica", "version", "torch", "device"}),
}
OPEN = {
    "http_responses_total",
    "plugin_errors_total",
    "build_info",
    "device_memory_bytes",
    "connections",
    "connections_refused_total",
}
"""The values of their labels are not known in advance, so they have no series at the start."""


def series(text: str) -> list[str]:
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_every_metric_has_its_type_and_labels_and_starts_at_zero() -> None:
    metrics = Metrics("tone")
    metrics.http_responses_total.labels("tone", "/generate", "200")
    metrics.plugin_errors_total.labels("tone", "one")
    metrics.device_memory_bytes.labels("tone", "0", "used")
    metrics.connections.labels("tone")
    metrics.connections_refused_total.labels("tone", "full")
    metrics.build_info.labels("tone", "0", "1", "2", "cpu")
    found = {}
    for family in text_string_to_metric_families(metrics.registry.exposition().decode()):
        total = "_total" if family.type == "counter" else ""
        found[family.name + total] = family.type, set(family.samples[0].labels) - {"le", "model"}
        assert family.documentation
        for sample in family.samples:
            assert sample.labels["model"] == "tone"
            assert sample.value == 0, sample
    assert found == {f"vox_serve_{name}": entry for name, entry in TABLE.items()}


def test_every_value_of_a_fixed_label_has_a_series() -> None:
    text = Metrics("tone").registry.exposition().decode()
    closed = {
        "requests_total": 2 * 6,
        "finished_total": 5,
        "admission_rejections_total": 4,
        "engine_errors_total": 4,
        "client_disconnects_total": 3,
        "engine_step_seconds_count": 4,
        "time_to_first_audio_seconds_count": 2,
    }
    for name, number in closed.items():
        shown = [line for line in series(text) if line.startswith(f"vox_serve_{name}{{")]
        assert len(shown) == number, name
    for name in OPEN:
        assert f"vox_serve_{name}{{" not in text


def test_names_are_prometheus_names_without_created_series() -> None:
    for line in series(Metrics("tone").registry.exposition().decode()):
        name = line.partition("{")[0]
        assert re.fullmatch(r"vox_serve_[a-z_]+", name), name
        assert not name.endswith(("_created", "_s", "_ms"))


@pytest.fixture(scope="module")
def used(tone_server: RunningServer) -> RunningServer:
    """A server after whole and streamed requests, errors of several kinds, and unknown routes."""
    http = tone_server.http
    for text in ("10 frames", "0 frames"):
        assert http.post("/generate", json={"text": text}).status_code == 200
    streamed = {"text": "20 frames reserved", "streaming": True, "max_seconds": 0.8}
    assert len(http.post("/generate", json=streamed).content) == 44 + 10 * 1280
    assert http.post("/generate", json={"text": "unprefillable"}).status_code == 500
    assert http.post("/generate", json={"text": "5 frames", "max_seconds": 20}).status_code == 422
    for number in range(300):  # unknown paths must not create series
        assert http.get(f"/nowhere/{number}").status_code == 404
    tone_server.wait_idle()
    return tone_server


@pytest.mark.parametrize(
    ("name", "labels", "expected"),
    [
        ("requests_total", {"mode": "whole", "outcome": "ok"}, 2),
        ("requests_total", {"mode": "stream", "outcome": "ok"}, 1),
        ("requests_total", {"mode": "whole", "outcome": "error"}, 1),
        ("requests_total", {"mode": "whole", "outcome": "invalid"}, 1),
        ("finished_total", {"reason": "stop"}, 1),
        ("finished_total", {"reason": "inaudible"}, 1),  # the text with no frames
        ("inaudible_total", {}, 1),
        ("finished_total", {"reason": "length"}, 1),
        ("finished_total", {"reason": "error"}, 1),
        ("time_to_first_audio_seconds_count", {"mode": "whole"}, 1),  # one had no sound
        ("time_to_first_audio_seconds_count", {"mode": "stream"}, 1),
        ("queue_seconds_count", {}, 4),
        ("request_seconds_count", {}, 3),
        ("real_time_factor_count", {}, 2),
        ("stream_underrun_seconds_count", {}, 1),
        ("frames_total", {}, 10 + 10),
        ("audio_seconds_total", {}, 20 * 0.08),
        ("text_characters_total", {}, 9 + 8 + 18 + 13 + 8),
        ("reserved_codes_total", {}, 8),
        ("batch_size_sum", {}, 11 + 1 + 10),
        ("engine_step_seconds_count", {"phase": "prefill"}, 4),
        ("engine_step_seconds_count", {"phase": "emit"}, 22),
        ("engine_step_seconds_count", {"phase": "advance"}, 19),
        ("engine_step_seconds_count", {"phase": "codec"}, 22),
        ("slots", {}, 4 * TONE.replicas),
        ("engine_errors_total", {"kind": "exception"}, 1),
        ("admission_rejections_total", {"reason": "too_long"}, 1),
        ("http_responses_total", {"route": "/generate", "code": "200"}, 3),
        ("http_responses_total", {"route": "/generate", "code": "500"}, 1),
        ("http_responses_total", {"route": "unmatched", "code": "404"}, 300),
    ],
)
def test_metrics_have_their_values_after_requests(
    used: RunningServer, name: str, labels: dict[str, str], expected: float
) -> None:
    assert value(used, name, **labels) == pytest.approx(expected)


def test_build_info_names_versions_and_device(used: RunningServer) -> None:
    import torch

    labels = {"version": __version__, "torch": torch.__version__, "device": "cpu"}
    assert value(used, "build_info", **labels) == len(used.client.replicas)


def test_the_last_step_is_fresh_while_idle(used: RunningServer) -> None:
    """A heartbeat updates it, so that its age can be an alert."""
    name = "engine_last_step_timestamp_seconds"
    before = value(used, name)
    until(lambda: value(used, name) > before, 2)


def test_there_are_at_most_300_series_and_100_for_each_further_replica(
    used: RunningServer,
) -> None:
    most = 200 + 100 * len(used.client.replicas)
    assert len(series(used.http.get("/metrics").text)) <= most


def test_the_exposition_is_prometheus_text(used: RunningServer) -> None:
    response = used.http.get("/metrics")
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "_created" not in response.text


def test_a_broken_plugin_is_counted() -> None:
    engine = EngineConfig(model="tone", plugins=("tests.tone", "no.such.module"))
    engines = Engines([engine], ServerConfig(), load_plugins(engine.plugins))
    line = 'vox_serve_plugin_errors_total{model="tone",plugin="no.such.module"} 1.0'
    assert line in engines.registry.exposition().decode()


def test_processes_show_memory_descriptors_and_start_under_their_labels() -> None:
    registry = Registry()
    other = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        other.stdin.write(b"\n")
        other.stdin.flush()
        other.stdout.read(1)  # waits until it runs; before that it has no memory
        registry.watch_process("", "server", os.getpid())
        registry.watch_process("tone", "worker", other.pid)
        families = {
            family.name: family.samples
            for family in text_string_to_metric_families(registry.exposition().decode())
        }
    finally:
        other.kill()
        other.communicate()
    memory = families["vox_serve_process_resident_memory_bytes"]
    assert [sample.labels for sample in memory] == [
        {"model": "", "process": "server"},
        {"model": "tone", "process": "worker"},
    ]
    assert memory[0].value > memory[1].value > 0  # Python needs more memory than cat
    assert set(families) == {
        f"vox_serve_process_{name}"
        for name in (
            "cpu_seconds",
            "max_fds",
            "open_fds",
            "resident_memory_bytes",
            "start_time_seconds",
            "virtual_memory_bytes",
        )
    }
    ended = registry.exposition().decode()
    assert 'process="server"' in ended
    assert 'process="worker"' not in ended  # its last values are gone


def test_a_new_worker_replaces_the_old_one() -> None:
    registry = Registry()
    registry.watch_process("tone", "worker", 2**30)  # no such process
    assert "tone" not in registry.exposition().decode()
    registry.watch_process("tone", "worker", os.getpid())
    shown = registry.exposition().decode()
    assert shown.count('vox_serve_process_open_fds{model="tone",process="worker"}') == 1


def test_models_share_the_families_of_a_registry() -> None:
    registry = Registry()
    first, second = Metrics("a", registry), Metrics("b", registry)
    first.frames_total().inc(3)
    second.requests_total("whole", "ok").inc()
    text = registry.exposition().decode()
    assert text.count("# HELP vox_serve_frames_total") == 1
    assert 'vox_serve_frames_total{model="a"} 3.0' in text
    assert 'vox_serve_frames_total{model="b"} 0.0' in text
    assert 'vox_serve_requests_total{mode="whole",model="a",outcome="ok"} 0.0' in text


def test_requests_without_a_model_have_series_only_when_they_happen() -> None:
    registry = Registry()
    nobody = Metrics("", registry)
    assert series(registry.exposition().decode()) == []
    nobody.requests_total("whole", "invalid").inc()
    assert len(series(registry.exposition().decode())) == 1
    with pytest.raises(KeyError):
        nobody.requests_total("whole", "no such outcome")
