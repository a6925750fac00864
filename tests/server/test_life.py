"""How requests end: failures, clients that leave or do not read, full queues, time limits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import attrs
import httpx
import pytest

from tests.conftest import TONE, RunningServer, until
from tests.server.conftest import Gate, busy, post_raw, read_stream, value
from tests.server.test_bad_requests import check_error
from tests.tone import ToneCodec
from vox_serve.config import ServerConfig

StartServer = Callable[..., RunningServer]
FRAME_BYTES = 2 * 640


def is_idle(server: RunningServer) -> bool:
    stats = server.client.stats
    return not (server.client.open_requests or stats.running or stats.waiting)


def check_cancelled(server: RunningServer, mode: str, phase: str) -> None:
    """Check that slots and queue are free within a second, and that it is counted once."""
    until(lambda: is_idle(server))
    assert value(server, "requests_total", mode=mode, outcome="cancelled") == 1
    assert value(server, "client_disconnects_total", phase=phase) == 1
    assert value(server, "requests_running") == 0
    assert value(server, "requests_waiting") == 0
    assert value(server, "slots_used") == 0
    until(lambda: value(server, "finished_total", reason="cancelled") == 1, 1)


@pytest.mark.parametrize("word", ["nan", "boom"])
def test_a_failure_after_the_first_sound_cuts_the_stream(
    gate: Gate, gated_server: RunningServer, word: str
) -> None:
    gate.allow(1)  # the first frame is good, the third is not
    body = {"text": f"{word} 41 frames", "streaming": True}
    pieces: list[bytes] = []
    with gated_server.http.stream("POST", "/generate", json=body) as response:
        assert response.status_code == 200
        gate.open()
        with pytest.raises(httpx.RemoteProtocolError):
            pieces.extend(response.iter_raw())
    assert 44 + FRAME_BYTES <= len(b"".join(pieces)) <= 44 + 2 * FRAME_BYTES
    gated_server.wait_idle()
    assert value(gated_server, "requests_total", mode="stream", outcome="error") == 1
    assert value(gated_server, "requests_total", mode="stream", outcome="ok") == 0
    assert value(gated_server, "finished_total", reason="error") == 1
    assert value(gated_server, "http_responses_total", route="/generate", code="cut") == 1
    kind = {"nan": "non_finite", "boom": "exception"}[word]
    assert value(gated_server, "engine_errors_total", kind=kind) == 1


def test_the_status_is_not_sent_before_the_first_sound(
    gate: Gate, gated_server: RunningServer
) -> None:
    gate.close()
    with post_raw(gated_server, text="5 frames", streaming=True) as connection:
        until(lambda: gated_server.client.open_requests == 1)
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        connection.settimeout(20)
        gate.open()
        assert connection.recv(15) == b"HTTP/1.1 200 OK"


@pytest.mark.parametrize("streaming", [False, True])
def test_a_client_may_leave_while_it_is_queued(
    gate: Gate, start_server: StartServer, streaming: bool
) -> None:
    server = start_server(engine=attrs.evolve(TONE, max_batch_size=1))
    gate.close()
    slots = TONE.replicas
    with busy(server, slots - 1), post_raw(server, text="5 frames") as speaking:
        until(lambda: server.client.open_requests == slots)
        with post_raw(server, text="5 frames", streaming=streaming):
            until(lambda: server.client.open_requests == slots + 1)
        until(lambda: server.client.open_requests == slots, 1)
        gate.open()
        assert speaking.recv(15) == b"HTTP/1.1 200 OK", "the other request did not go on"
        server.wait_idle()
    check_cancelled(server, "stream" if streaming else "whole", "queued")


@pytest.mark.parametrize("streaming", [False, True])
def test_a_client_may_leave_before_its_first_sound(
    start_server: StartServer, streaming: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The codec returns no samples, like one with a long delay."""
    step = ToneCodec.step

    def silent(self, codes, slots, reset):
        pcm, valid = step(self, codes, slots, reset)
        return pcm, valid * 0

    monkeypatch.setattr(ToneCodec, "step", silent)
    monkeypatch.setenv("TONE_DELAY", "0.02")
    server = start_server()
    with post_raw(server, text="150 frames", streaming=streaming, max_seconds=12):
        until(lambda: server.client.stats.running == 1)
        # Only now does the server know that the request is no longer queued.
        until(lambda: value(server, "queue_seconds_count") == 1)
    check_cancelled(server, "stream" if streaming else "whole", "first_audio")


def test_a_client_may_leave_during_a_stream(gate: Gate, gated_server: RunningServer) -> None:
    gate.close()
    with post_raw(gated_server, text="150 frames", streaming=True, max_seconds=12) as connection:
        until(lambda: gated_server.client.open_requests == 1)
        gate.allow(2)
        assert connection.recv(15) == b"HTTP/1.1 200 OK"
    until(lambda: not gated_server.client.open_requests, 1)
    gate.open()
    check_cancelled(gated_server, "stream", "stream")
    assert value(gated_server, "frames_total") < 150, "the engine did not stop"
    assert value(gated_server, "http_responses_total", route="/generate", code="cut") == 1


def test_a_client_may_leave_before_a_whole_answer(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TONE_DELAY", "0.02")
    server = start_server()
    with post_raw(server, text="150 frames", max_seconds=12):
        until(lambda: value(server, "frames_total") > 5)
    check_cancelled(server, "whole", "stream")
    assert value(server, "frames_total") < 150
    assert value(server, "http_responses_total", route="/generate", code="499") == 1


def test_a_client_may_leave_while_it_sends_its_body(start_server: StartServer) -> None:
    server = start_server()
    with post_raw(server, text="5", missing=1000):
        pass
    until(lambda: value(server, "requests_total", mode="whole", outcome="cancelled") == 1)
    assert value(server, "client_disconnects_total", phase="queued") == 1
    assert value(server, "http_responses_total", route="/generate", code="499") == 1


def test_a_hundred_clients_may_leave_at_once(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TONE_DELAY", "0.1")  # none ends before the last has come
    server = start_server(server=ServerConfig(port=0, max_queue=96))
    crowd = [
        post_raw(server, text="150 frames", streaming=number % 2 == 0, max_seconds=12)
        for number in range(100)
    ]
    until(lambda: server.client.open_requests == 100)
    for connection in crowd:
        connection.close()
    until(lambda: is_idle(server))
    for mode in ("whole", "stream"):
        assert value(server, "requests_total", mode=mode, outcome="cancelled") == 50
    until(lambda: value(server, "finished_total", reason="cancelled") == 100)


def test_a_client_that_never_reads_is_dropped(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames of 8 s; a hundred of them overflow every buffer on the way."""
    monkeypatch.setattr(ToneCodec, "frame_size", 64_000)
    server = start_server(server=ServerConfig(port=0, send_timeout=0.5))
    body = {"text": "100 frames", "max_seconds": 8.0, "streaming": True}
    with post_raw(server, receive_buffer=4096, **body) as idle:
        until(lambda: value(server, "frames_total") > 0)
        other = server.http.post("/generate", json=body)
        assert len(other.content) == 44 + 100 * 2 * 64_000, (
            "another stream was not served meanwhile"
        )
        until(lambda: value(server, "client_disconnects_total", phase="stream") == 1, 5)
        assert value(server, "requests_total", mode="stream", outcome="cancelled") == 1
        until(lambda: is_idle(server))
        with pytest.raises((EOFError, ConnectionResetError)):
            read_stream(idle)


def test_a_client_that_never_reads_a_whole_answer_is_dropped(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ToneCodec, "frame_size", 64_000)
    server = start_server(server=ServerConfig(port=0, send_timeout=0.5))
    body = {"text": "100 frames", "max_seconds": 8.0}
    with post_raw(server, receive_buffer=4096, **body):
        until(lambda: value(server, "requests_total", mode="whole", outcome="cancelled") == 1, 10)
        assert server.http.post("/generate", json=body).status_code == 200
    assert value(server, "client_disconnects_total", phase="stream") == 1


def test_a_slow_reader_gets_everything(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The send timeout applies to clients that read nothing, not to slow ones."""
    monkeypatch.setattr(ToneCodec, "frame_size", 64_000)
    server = start_server(server=ServerConfig(port=0, send_timeout=10))
    body = {"text": "40 frames", "max_seconds": 8.0, "streaming": True, "format": "pcm"}
    whole = server.http.post("/generate", json={**body, "streaming": False}).content
    with post_raw(server, receive_buffer=4096, **body) as connection:
        until(lambda: value(server, "frames_total") >= 80, 10)
        assert read_stream(connection) == whole
    server.wait_idle()
    assert value(server, "requests_total", mode="stream", outcome="ok") == 1


@pytest.fixture
def small_server(gate: Gate, start_server: StartServer) -> Iterator[RunningServer]:
    """A server with two slots for each replica and a queue of three."""
    yield start_server(
        engine=attrs.evolve(TONE, max_batch_size=2), server=ServerConfig(port=0, max_queue=3)
    )
    gate.open()


def test_only_requests_beyond_the_queue_are_refused(
    gate: Gate, small_server: RunningServer
) -> None:
    server, fit = small_server, 2 * TONE.replicas + 3
    alone = server.http.post("/generate", json={"text": "41 frames"}).content
    gate.close()

    def ask(number: int) -> httpx.Response:
        body = {"text": "41 frames", "streaming": number % 2 == 0}
        return httpx.post(f"{server.url}/generate", json=body, timeout=30)

    with ThreadPoolExecutor(fit + 10) as pool:
        answers = [pool.submit(ask, number) for number in range(fit + 10)]
        until(lambda: value(server, "admission_rejections_total", reason="queue_full") == 10)
        until(lambda: server.client.open_requests == fit)
        gate.open()
        responses = [answer.result() for answer in answers]
    refused = [response for response in responses if response.status_code != 200]
    assert len(refused) == 10
    for response in refused:
        check_error(response, 429, code="queue_full")
        assert int(response.headers["retry-after"]) >= 1
    for response in responses:
        if response.status_code == 200:
            assert response.content[44:] == alone[44:]
    rejected = [
        value(server, "requests_total", mode=mode, outcome="rejected")
        for mode in ("whole", "stream")
    ]
    assert sum(rejected) == 10
    assert (
        value(server, "requests_total", mode="whole", outcome="ok")
        + value(server, "requests_total", mode="stream", outcome="ok")
        == fit + 1
    )


def test_a_full_queue_accepts_again_when_a_request_leaves(
    gate: Gate, small_server: RunningServer
) -> None:
    gate.close()
    fit = 2 * TONE.replicas + 3
    held = [post_raw(small_server, text="5 frames") for _ in range(fit)]
    until(lambda: small_server.client.open_requests == fit)
    held.pop().close()
    until(lambda: small_server.client.open_requests == fit - 1)
    with post_raw(small_server, text="5 frames") as late:
        until(lambda: small_server.client.open_requests == fit)
        gate.open()
        assert late.recv(15) == b"HTTP/1.1 200 OK"
    for connection in held:
        connection.close()


@pytest.mark.parametrize("streaming", [False, True])
def test_a_timeout_before_the_first_sound_is_a_504(
    gate: Gate, start_server: StartServer, streaming: bool
) -> None:
    server = start_server(server=ServerConfig(port=0, request_timeout=0.3))
    gate.close()
    body = {"text": "5 frames", "streaming": streaming}
    check_error(server.http.post("/generate", json=body), 504, code="timeout")
    gate.open()
    until(lambda: is_idle(server))
    mode = "stream" if streaming else "whole"
    assert value(server, "requests_total", mode=mode, outcome="timeout") == 1
    assert value(server, "client_disconnects_total", phase="queued") == 0


def test_a_timeout_during_a_stream_cuts_it(gate: Gate, start_server: StartServer) -> None:
    # The first frame must come in time, on a busy machine too.
    server = start_server(server=ServerConfig(port=0, request_timeout=2.0))
    gate.close()
    with post_raw(server, text="41 frames", streaming=True) as connection:
        gate.allow(1)
        with pytest.raises(EOFError):
            read_stream(connection)
    gate.open()
    until(lambda: is_idle(server))
    assert value(server, "requests_total", mode="stream", outcome="timeout") == 1
    assert value(server, "http_responses_total", route="/generate", code="cut") == 1


def test_draining_refuses_new_requests_and_finishes_open_ones(
    gate: Gate, gated_server: RunningServer
) -> None:
    server = gated_server
    gate.close()
    with post_raw(server, text="5 frames", streaming=True, format="pcm") as connection:
        until(lambda: server.client.open_requests == 1)
        server.client.drain()
        refused = server.http.post("/generate", json={"text": "5"})
        check_error(refused, 503, code="unavailable")
        assert int(refused.headers["retry-after"]) >= 1
        gate.open()
        assert len(read_stream(connection)) == 5 * FRAME_BYTES
    assert value(server, "admission_rejections_total", reason="draining") == 1
    assert value(server, "requests_total", mode="whole", outcome="rejected") == 1
