"""A server with two replicas, as its clients and its operator see it.

`make test-replicas` runs all tests of the server with two.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import attrs
import pytest

from tests import tone
from tests.conftest import TONE, RunningServer, until
from tests.server.conftest import post_raw, read_stream, value
from tests.server.routes.test_voices import speak, upload
from vox_serve.config import ServerConfig
from vox_serve.model import LoadOptions
from vox_serve.workers import life

StartServer = Callable[..., RunningServer]
PAIR = attrs.evolve(TONE, replicas=2, max_batch_size=2)


@pytest.fixture
def pair(start_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> RunningServer:
    monkeypatch.setenv("TONE_DELAY", "0.02")
    return start_server(engine=PAIR, server=ServerConfig(port=0, on_worker_death="restart"))


def test_health_and_metrics_show_each_replica(pair: RunningServer) -> None:
    (model,) = pair.http.get("/health").json()["models"]
    assert (model["status"], model["slots"]) == ("ready", 4)
    assert [(r["replica"], r["slots"]) for r in model["replicas"]] == [(0, 2), (1, 2)]
    streams = [post_raw(pair, text="40 frames", streaming=True) for _ in range(3)]
    until(lambda: value(pair, "requests_running") == 3)
    used = [value(pair, "slots_used", replica=str(number)) for number in (0, 1)]
    assert sorted(used) == [1, 2]
    (model,) = pair.http.get("/health").json()["models"]
    assert sorted(replica["running"] for replica in model["replicas"]) == [1, 2]
    for stream in streams:
        stream.close()


def test_a_dead_replica_fails_only_its_own_requests_and_gets_its_voices_again(
    pair: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(pair)
    anna = speak(pair, "anna").content
    loading, load = threading.Event(), tone._load

    def held(options: LoadOptions) -> tone.ToneModel:
        assert loading.wait(10)
        return load(options)

    monkeypatch.setattr(tone, "_load", held)
    monkeypatch.setattr(life, "FIRST_DELAY", 0.02)
    streams = [post_raw(pair, text="40 frames", streaming=True) for _ in range(2)]
    until(lambda: value(pair, "slots_used") == 2)
    worker = pair.client.replicas[0].worker
    worker._watchdog.get_loop().call_soon_threadsafe(worker._lost, "it fell over")
    until(lambda: value(pair, "engine_up", replica="0") == 0)
    assert pair.http.get("/ready").status_code == 200
    health = pair.http.get("/health")
    assert health.status_code == 200
    dead, alive = health.json()["models"][0]["replicas"]
    assert (dead["status"], dead["reason"]) == ("restarting", "it fell over")
    assert alive["status"] == "ready"
    ends = []
    for stream in streams:
        try:
            ends.append(len(read_stream(stream)))
        except (EOFError, ValueError):  # cut, or 503 before its first sound
            ends.append(0)
        stream.close()
    assert sorted(ends) == [0, 44 + 40 * 1280]
    loading.set()
    until(lambda: value(pair, "engine_up", replica="0") == 1, 10)
    assert value(pair, "worker_restarts_total", replica="0") == 1
    assert value(pair, "worker_restarts_total", replica="1") == 0
    streams = [post_raw(pair, text="5 frames", voice="anna") for _ in range(4)]
    until(lambda: value(pair, "slots_used", replica="0") > 0)
    for stream in streams:
        assert stream.recv(15) == b"HTTP/1.1 200 OK"
        stream.close()
    assert speak(pair, "anna").content == anna
