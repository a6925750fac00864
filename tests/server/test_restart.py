"""Workers that die or are unloaded, and their replacements."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests import tone
from tests.conftest import TONE, RunningServer, until
from tests.server.conftest import post_raw, read_stream, value
from tests.server.routes.test_voices import ROUTE, keeping, names, speak, upload
from tests.server.test_bad_requests import check_error
from vox_serve.config import ServerConfig
from vox_serve.messages import Add
from vox_serve.workers import life, supervisor
from vox_serve.workers.worker import Worker

StartServer = Callable[..., RunningServer]
RESTART = ServerConfig(port=0, on_worker_death="restart")


@pytest.fixture
def _deadly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the text `die` end the worker."""
    monkeypatch.setattr(life, "FIRST_DELAY", 0.02)
    handle = Worker._handle

    def deadly(self, message):
        if isinstance(message, Add) and message.request.text == "die":
            raise EOFError
        handle(self, message)

    monkeypatch.setattr(Worker, "_handle", deadly)


def die(server: RunningServer) -> None:
    """Make a worker die, and wait for the next one."""
    before, up = value(server, "worker_restarts_total"), value(server, "engine_up")
    check_error(server.http.post("/generate", json={"text": "die"}), 503, code="unavailable")
    assert value(server, "worker_restarts_total") == before + 1
    until(lambda: value(server, "engine_up") == up, 10)


@pytest.mark.one_replica(reason="all requests end; workers/test_replicas.py has one of two")
@pytest.mark.usefixtures("_deadly")
def test_open_requests_fail_at_once_and_new_ones_are_spoken(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TONE_DELAY", "0.05")
    server = start_server(server=RESTART)
    whole = server.http.post("/generate", json={"text": "5 frames"}).content
    long = {"text": "150 frames", "max_seconds": 12}
    with post_raw(server, **long, streaming=True) as stream:
        assert stream.recv(15) == b"HTTP/1.1 200 OK"
        failed = server.http.post("/generate", json={"text": "die"})
        check_error(failed, 503, code="unavailable")
        assert "is being restarted: the engine worker ended" in failed.text
        assert int(failed.headers["retry-after"]) >= 1
        with pytest.raises((EOFError, ValueError)):
            read_stream(stream)
        health = server.http.get("/health")
        assert health.status_code == 503
        (model,) = health.json()["models"]
        assert (model["status"], model["running"]) == ("restarting", 0)
        assert model["reason"] == "the engine worker ended"
        assert value(server, "engine_up") == 0
        check_error(server.http.post("/generate", json={"text": "5"}), 503, code="unavailable")
    until(lambda: server.http.get("/ready").status_code == 200, 10)
    health = server.http.get("/health")
    assert health.status_code == 200
    assert "reason" not in health.json()["models"][0]
    assert server.http.post("/generate", json={"text": "5 frames"}).content == whole
    server.wait_idle()


@pytest.mark.usefixtures("_deadly")
@pytest.mark.parametrize("kept", [True, False])
def test_voices_and_conversations_outlive_a_worker(
    start_server: StartServer, tmp_path, kept: bool
) -> None:
    settings = {"on_worker_death": "restart"}
    server = start_server(server=keeping(tmp_path / "voices", **settings) if kept else RESTART)
    upload(server, speaker="1")
    upload(server, name="bert")
    assert server.http.delete(f"{ROUTE}/bert").status_code == 200
    spoken = speak(server, "anna").content
    turn = {"text": "5 frames", "conversation": "talk"}
    assert server.http.post("/generate", json=turn).status_code == 200
    before = positions(server)
    assert server.http.post("/generate", json=turn).status_code == 200
    second = positions(server) - before
    for _ in range(2):
        die(server)
    assert names(server) == ["hum_a", "hum_b", "anna"]
    assert server.http.get(f"{ROUTE}/anna").json()["kept"] is kept
    assert speak(server, "anna").content == spoken
    before = positions(server)
    assert server.http.post("/generate", json=turn).status_code == 200
    assert positions(server) - before > second, "the new worker does not know both turns"
    assert server.http.delete("/conversations/talk").status_code == 204
    assert server.http.delete("/conversations/talk").status_code == 404
    assert server.http.post("/generate", json=turn).status_code == 200


def positions(server: RunningServer) -> float:
    """The number of prompt positions so far, computed or restored."""
    server.wait_idle()
    total = "prompt_positions_total"
    return value(server, total, source="prefilled") + value(server, total, source="restored")


@pytest.mark.usefixtures("_deadly")
def test_a_worker_that_dies_too_often_is_given_up(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(life, "RESTARTS", 2)
    server = start_server(server=RESTART)
    for left in reversed(range(TONE.replicas)):
        for _ in range(2):
            die(server)
        check_error(server.http.post("/generate", json={"text": "die"}), 503, code="unavailable")
        assert value(server, "engine_up") == left
        assert server.http.get("/health").status_code == (200 if left else 503)
    health = server.http.get("/health").json()
    assert health["status"] == "dead"
    assert health["models"][0]["reason"] == "the engine worker ended, too often"
    assert value(server, "worker_restarts_total") == 2 * TONE.replicas


def test_a_hung_encoder_is_named_and_its_worker_restarted(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = tone.ToneCodec.encode
    hangs = [True] * TONE.replicas

    def slow(self, pcm):
        if hangs.pop() if hangs else False:
            time.sleep(3)
        return encode(self, pcm)

    monkeypatch.setattr(tone.ToneCodec, "encode", slow)
    server = start_server(server=ServerConfig(port=0, on_worker_death="restart", stall_timeout=1))
    failed = upload(server)
    check_error(failed, 503, code="unavailable")
    assert "the model's encode did not return within 1 seconds" in failed.text
    assert value(server, "engine_errors_total", kind="hang") == TONE.replicas
    until(lambda: server.http.get("/ready").status_code == 200, 10)
    assert upload(server).status_code == 201


@pytest.fixture
def unloading(start_server: StartServer) -> RunningServer:
    return start_server(server=ServerConfig(port=0, unload_after=0.3))


def status(server: RunningServer) -> str:
    return server.http.get("/health").json()["status"]


def test_an_idle_model_is_unloaded_and_loaded_for_the_next_request(
    unloading: RunningServer,
) -> None:
    server = unloading
    upload(server, speaker="1")
    upload(server, name="bert")
    spoken = speak(server, "anna").content
    until(lambda: status(server) == "unloaded", 10)
    assert server.http.get("/health").status_code == 200
    assert server.http.get("/ready").status_code == 200
    assert value(server, "ready") == 1
    assert value(server, "engine_up") == TONE.replicas
    assert value(server, "engine_loaded") == 0
    assert value(server, "engine_unloads_total") >= TONE.replicas
    assert value(server, "engine_memory_bytes", kind="slots") == 0
    assert server.http.delete("/conversations/none").status_code == 404
    assert server.http.delete(f"{ROUTE}/bert").status_code == 200
    assert names(server) == ["hum_a", "hum_b", "anna"]
    assert status(server) == "unloaded", "one of these loaded the model"
    assert speak(server, "anna").content == spoken
    assert value(server, "engine_loaded") == 1
    assert names(server) == ["hum_a", "hum_b", "anna"]
    until(lambda: status(server) == "unloaded", 10)
    assert upload(server, name="cleo").status_code == 201
    assert sorted(names(server)) == ["anna", "cleo", "hum_a", "hum_b"]


def test_a_conversation_outlives_the_model(unloading: RunningServer) -> None:
    turn = {"text": "5 frames", "conversation": "talk"}
    assert unloading.http.post("/generate", json=turn).status_code == 200
    first = positions(unloading)
    until(lambda: status(unloading) == "unloaded", 10)
    assert value(unloading, "conversations") == 1
    assert unloading.http.post("/generate", json=turn).status_code == 200
    assert positions(unloading) > 2 * first, "the first turn is forgotten"
    assert unloading.http.delete("/conversations/talk").status_code == 204


def test_loading_is_retried_at_the_next_request(
    unloading: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    until(lambda: status(unloading) == "unloaded", 10)
    monkeypatch.setenv("TONE_LOAD_ERROR", "1")
    for _ in range(2):
        failed = unloading.http.post("/generate", json={"text": "5"})
        check_error(failed, 503, code="unavailable")
        assert "the model cannot be loaded: the tone is out of tune" in failed.text
        (model,) = unloading.http.get("/health").json()["models"]
        assert (model["status"], model["reason"]) == ("unloaded", "the tone is out of tune")
    monkeypatch.delenv("TONE_LOAD_ERROR")
    assert unloading.http.post("/generate", json={"text": "5"}).status_code == 200


def test_requests_that_wait_for_a_load_are_limited_by_the_queue(
    unloading: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the model is loaded, it gets only the requests whose clients have not left."""
    until(lambda: status(unloading) == "unloaded", 10)
    held: list[tuple[object, ...]] = []
    monkeypatch.setattr(
        supervisor.Supervisor, "_start", lambda self, link: held.append((self, link))
    )
    most = 4 * TONE.replicas + 64
    waiting = [post_raw(unloading, text="5 frames") for _ in range(most)]
    until(lambda: unloading.client.open_requests == most)
    check_error(unloading.http.post("/generate", json={"text": "5"}), 429, code="queue_full")
    assert status(unloading) == "loading"
    assert unloading.http.get("/ready").status_code == 200
    for one in waiting[1:]:
        one.close()
    until(lambda: unloading.client.open_requests == 1)
    monkeypatch.undo()
    assert len(held) == TONE.replicas
    for waker, link in held:
        loop_start(waker, link)
    assert waiting[0].recv(15) == b"HTTP/1.1 200 OK"
    waiting[0].close()
    unloading.wait_idle()
    assert value(unloading, "frames_total") == 5


def loop_start(waker, link) -> None:
    """Start the worker in the server's event loop."""
    waker._watchdog.get_loop().call_soon_threadsafe(waker._start, link)
