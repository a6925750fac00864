"""/health, /ready, /models, /voices and /plugins in each state of an engine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import attrs
import httpx
import pytest

from tests import tone
from tests.conftest import TONE, RunningServer, until
from tests.server.conftest import Gate, post_raw, read_stream, value
from tests.server.test_bad_requests import check_error
from vox_serve.engine.engine import Engine

StartServer = Callable[..., RunningServer]


@pytest.fixture
def loading(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """The tone does not finish loading before this event is set."""
    done, load = threading.Event(), tone._load

    def slow(options):
        assert done.wait(60)
        return load(options)

    monkeypatch.setattr(tone, "_load", slow)
    yield done
    done.set()


def test_a_loading_server_is_alive_and_not_ready(
    loading: threading.Event, start_server: StartServer
) -> None:
    server = start_server(wait=False)
    http = server.http
    health = http.get("/health")
    assert health.status_code == 200
    assert health.json()["status"] == "starting"
    assert health.json()["models"][0]["slots"] == 0
    ready = http.get("/ready")
    assert ready.status_code == 503
    assert int(ready.headers["retry-after"]) >= 1
    assert http.get("/models").json() == {"models": []}
    assert http.get("/voices").json() == {"voices": []}
    assert [plugin["name"] for plugin in http.get("/plugins").json()["plugins"]][-1] == (
        "tests.tone"
    )
    assert value(server, "engine_up") == 0
    assert value(server, "ready") == 0
    refused = http.post("/generate", json={"text": "5"})
    assert "loading" in check_error(refused, 503, code="unavailable")
    assert int(refused.headers["retry-after"]) >= 1
    assert value(server, "admission_rejections_total", reason="engine_down") == 1
    check_error(http.post("/generate", json={"text": ""}), 400, "text")

    loading.set()
    until(lambda: http.get("/ready").status_code == 200)
    assert http.post("/generate", json={"text": "5"}).status_code == 200
    assert value(server, "engine_up") == TONE.replicas
    assert value(server, "ready") == 1


def test_a_ready_server_lists_its_models_and_voices(tone_server: RunningServer) -> None:
    http = tone_server.http
    ready = http.get("/ready")
    assert (ready.status_code, ready.json()) == (200, {"status": "ready"})
    health = http.get("/health")
    counts = {"status": "ready", "running": 0, "waiting": 0}
    replicas = [{"replica": n, **counts, "slots": 4, "device": "cpu"} for n in range(TONE.replicas)]
    assert health.status_code == 200
    assert health.json() == {
        "status": "ready",
        "models": [{"model": "tone", **counts, "slots": 4 * TONE.replicas, "replicas": replicas}],
        "broken_plugins": {},
        "broken_voices": {},
    }
    voices = [{"name": "hum_a", "speaker": 0}, {"name": "hum_b", "speaker": 1}]
    assert http.get("/voices").json() == {"voices": [v | {"model": "tone"} for v in voices]}
    (model,) = http.get("/models").json()["models"]
    assert model["name"] == model["kind"] == "tone"
    assert model["voices"] == voices
    assert model["sample_rate"] == 8000
    assert model["frame_rate"] == 12.5
    assert model["num_slots"] == 4 * TONE.replicas
    assert model["sampling"]["temperature"] == 0


def test_health_reports_running_and_waiting_requests(gate: Gate, start_server: StartServer) -> None:
    server = start_server(engine=attrs.evolve(TONE, max_batch_size=1))
    gate.close()
    slots = TONE.replicas
    speaking = [post_raw(server, text="50 frames", streaming=True) for _ in range(slots)]
    until(lambda: server.client.open_requests == slots)
    waiting = post_raw(server, text="5 frames", streaming=True)
    until(lambda: server.client.open_requests == slots + 1)

    def one_waits() -> bool:
        gate.allow(1)  # each step reports the queue
        stats = server.client.stats
        return (stats.running, stats.waiting) == (slots, 1)

    until(one_waits)
    (health,) = server.http.get("/health").json()["models"]
    assert (health["running"], health["waiting"]) == (slots, 1)
    assert value(server, "requests_running") == value(server, "slots_used") == slots
    assert value(server, "requests_waiting") == 1
    gate.open()
    for connection in (*speaking, waiting):
        assert read_stream(connection)[:4] == b"RIFF"
        connection.close()


def test_a_draining_server_is_alive_and_not_ready(start_server: StartServer) -> None:
    server = start_server()
    server.client.drain()
    ready = server.http.get("/ready")
    assert (ready.status_code, ready.json()) == (503, {"status": "draining"})
    assert server.http.get("/health").status_code == 200
    assert server.http.get("/models").json()["models"]
    assert value(server, "ready") == 0
    assert value(server, "engine_up") == TONE.replicas


def test_a_load_error_is_reported(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TONE_LOAD_ERROR", "1")
    server = start_server(wait=False)
    until(lambda: server.http.get("/health").status_code == 503)
    health = server.http.get("/health").json()
    assert health["status"] == "dead"
    assert health["models"][0]["reason"] == "the tone is out of tune"
    assert server.http.get("/ready").status_code == 503
    refused = server.http.post("/generate", json={"text": "5"})
    assert "out of tune" in check_error(refused, 503, code="unavailable")


def test_an_unexpected_load_error_is_reported(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(options):
        raise KeyError("a bug in load")

    monkeypatch.setattr(tone, "_load", broken)
    server = start_server(wait=False)
    until(lambda: server.http.get("/health").status_code == 503)
    assert "a bug in load" in server.http.get("/health").json()["models"][0]["reason"]


def test_a_dead_engine_is_reported_everywhere(
    gate: Gate, start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start_server()
    gate.allow(1)
    body = {"text": "41 frames", "streaming": True}
    pieces: list[bytes] = []
    with server.http.stream("POST", "/generate", json=body) as response:
        assert response.status_code == 200

        def end(engine):
            raise BrokenPipeError  # the worker mistakes it for the end of the server

        monkeypatch.setattr(Engine, "step", end)
        gate.open()
        with pytest.raises(httpx.RemoteProtocolError):
            pieces.extend(response.iter_raw())
    for _ in range(TONE.replicas - 1):  # each of the others ends at its first request
        check_error(server.http.post("/generate", json={"text": "5"}), 503, code="unavailable")
    health = server.http.get("/health")
    assert health.status_code == 503
    assert health.json()["status"] == "dead"
    (model,) = health.json()["models"]
    assert model["reason"] == "the engine worker ended"
    assert model["running"] == 0
    assert server.http.get("/ready").status_code == 503
    refused = server.http.post("/generate", json={"text": "5"})
    assert "worker ended" in check_error(refused, 503, code="unavailable")
    assert value(server, "engine_up") == 0
    assert value(server, "ready") == 0
    assert value(server, "slots_used") == 0
    assert value(server, "admission_rejections_total", reason="engine_down") == 1
    assert value(server, "requests_total", mode="stream", outcome="error") == 1


def test_a_broken_plugin_is_reported_and_not_fatal(start_server: StartServer) -> None:
    server = start_server(engine=attrs.evolve(TONE, plugins=("tests.tone", "no.such.module")))
    broken = server.http.get("/health").json()["broken_plugins"]
    assert list(broken) == ["no.such.module"]
    assert "ModuleNotFoundError" in broken["no.such.module"]
    listed = {plugin["name"]: plugin for plugin in server.http.get("/plugins").json()["plugins"]}
    assert listed["tests.tone"]["models"] == ["tone"]
    assert listed["tests.tone"]["error"] is None
    assert listed["no.such.module"]["error"] == broken["no.such.module"]
    assert server.http.post("/generate", json={"text": "5"}).status_code == 200
