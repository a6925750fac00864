"""python -m vox_serve.launch as a process: how it starts, and every way in which it ends."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import time
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import httpx
import pytest

from tests.launched import REPLICAS, TONE, Launched, Start, launched
from tests.waiting import until
from vox_serve import launch
from vox_serve.config import ServerConfig
from vox_serve.server.access.keys import new_key
from vox_serve.workers.client import WorkerClient


def connect(server: Launched, body: bytes) -> socket.socket:
    """A bare socket with a small buffer, on which the headers of a request have been sent."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(20)
    url = server.http.base_url
    connection.connect((url.host, url.port))
    head = f"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode())
    return connection


def test_it_starts_serves_and_ends_at_sigterm(start: Start) -> None:
    """Flags have both spellings; at SIGTERM a running stream is completed, new requests refused.

    Some supervisors send the signal to the whole group, as here; the worker must ignore it.
    """
    server = start(
        "--max-batch-size", "3", "--max_queue=7", "--top_k", "5", "--top-p=0.5",
        TONE_DELAY="0.02",
    )  # fmt: skip
    assert server.http.get("/ready").status_code == 200
    assert "tone (tone): a tone that hums" in server.banner
    assert "cpu, float32, torch" in server.banner
    assert f"for {3 * REPLICAS} slots" in server.banner
    assert "hum_a (0), hum_b (1)" in server.banner
    assert "temperature 0, top_k 5, top_p 0.5" in server.banner
    whole = server.http.post("/generate", json={"text": "30 frames"})
    assert whole.status_code == 200
    new = b'{"text": "30 frames"}'
    with connect(server, new) as late, server.stream(text="30 frames") as response:
        chunks = response.iter_raw()
        heard = next(chunks)
        os.killpg(server.process.pid, signal.SIGTERM)
        until(lambda: "Shutting down" in server.read_log())
        late.sendall(new)
        assert late.recv(12) == b"HTTP/1.1 503"
        heard += b"".join(chunks)
    assert heard[44:] == whole.content[44:]
    assert server.end(15) == 0
    assert "Traceback" not in server.read_log()


def test_ctrl_c_cuts_streams_after_the_shutdown_timeout(start: Start) -> None:
    """SIGINT to the whole group, as a terminal sends it, with a client that never reads."""
    server = start(
        "--shutdown-timeout", "1", "--max-seconds", "20",
        TONE_DELAY="0.05", TONE_FRAME_SIZE="64000",
    )  # fmt: skip
    pieces: list[bytes] = []
    long = {"text": "150 frames", "max_seconds": 10}
    never_read = json.dumps({**long, "streaming": True}).encode()
    with connect(server, never_read) as idle, server.stream(**long) as response:
        idle.sendall(never_read)
        assert response.status_code == 200
        until(lambda: server.http.get("/health").json()["models"][0]["running"] == 2)
        sent = time.monotonic()
        os.killpg(server.process.pid, signal.SIGINT)
        with pytest.raises(httpx.RemoteProtocolError):
            pieces.extend(response.iter_raw())
        assert len(b"".join(pieces)) > 5 * 128_000, "it was cut before the limit"
        assert server.end(15) == 0
        assert 1 <= time.monotonic() - sent < 6, "the stream alone would take 7.5 s"


def test_a_second_ctrl_c_ends_at_once(start: Start) -> None:
    """Even if the worker hangs; then it must be killed at once."""
    server = start(TONE_DELAY="0.05")
    pieces: list[bytes] = []
    with server.stream(text="150 frames", max_seconds=12) as response:
        assert response.status_code == 200
        server.signal_workers(signal.SIGSTOP)
        os.killpg(server.process.pid, signal.SIGINT)
        until(lambda: "Shutting down" in server.read_log())
        os.killpg(server.process.pid, signal.SIGINT)
        with pytest.raises(httpx.RemoteProtocolError):
            pieces.extend(response.iter_raw())
        assert server.end(15) == 0


def test_a_killed_worker_ends_the_server(start: Start) -> None:
    server = start(TONE_DELAY="0.02")
    pieces: list[bytes] = []
    with server.stream(text="150 frames", max_seconds=12) as response:
        assert response.status_code == 200
        killed = time.monotonic()
        server.signal_workers(signal.SIGKILL)
        with pytest.raises(httpx.RemoteProtocolError):
            pieces.extend(response.iter_raw())
        assert time.monotonic() - killed < 1
    until(lambda: server.http.get("/health").status_code == 503, 1)  # with replicas, all are dead
    health = server.http.get("/health")
    assert health.json()["status"] == "dead"
    reason = health.json()["models"][0]["reason"]
    assert reason == "the engine worker was killed by SIGKILL (most often for want of memory)"
    assert server.http.post("/generate", json={"text": "5"}).status_code == 503
    server.http.close()  # otherwise the server waits for this connection
    assert server.end(10) == 1


def test_a_stopped_worker_is_restarted_and_ends_with_the_server(start: Start) -> None:
    """The worker is idle when it is stopped; its successor is stopped when the server is killed."""
    server = start("--on-worker-death", "restart", "--stall-timeout", "1.5")
    first = set(server.workers())
    server.signal_workers(signal.SIGSTOP)
    until(lambda: server.http.get("/health").status_code == 503, 5)
    (model,) = server.http.get("/health").json()["models"]
    assert model["status"] == "restarting"
    assert model["reason"] == "the engine gave no sign of life for 1.5 seconds"
    until(lambda: server.http.get("/ready").status_code == 200, 30)
    until(lambda: len(server.workers()) == REPLICAS, 10)
    assert first.isdisjoint(server.workers())
    others = len(server.processes())
    long = {"text": "5 " + "frames " * 200, "max_seconds": 0.5}
    assert server.http.post("/generate", json=long).status_code == 200
    sound = server.http.post("/generate", json={"text": "9 frames"}).content
    files = {"audio": ("a.wav", sound), "name": (None, "anna"), "text": (None, "hello")}
    assert server.http.post("/v1/audio/voices", files=files).status_code == 201
    assert len(server.processes()) == others + 2  # one for texts, one for audio files
    server.signal_workers(signal.SIGSTOP)
    server.process.kill()
    assert server.end(5) == -signal.SIGKILL


def test_a_load_error_is_reported_in_one_line_with_exit_code_1(tmp_path: Path) -> None:
    with launched(tmp_path / "log", TONE_LOAD_ERROR="1") as server:
        assert server.end(60) == 1
        assert server.process.stdout.read() == ""
        errors = [line for line in server.read_log().splitlines() if " ERROR " in line]
        assert len(errors) == 1
        assert errors[0].endswith("vox_serve.launch: tone: the tone is out of tune")
        assert "Traceback" not in server.read_log()


def check_refused(capsys: pytest.CaptureFixture[str], message: str, *flags: str) -> None:
    """Check for one line on stderr and exit code 2 before anything is started."""
    try:
        code = launch.main([*TONE, "--port", "0", *flags], "launch")
    except SystemExit as end:
        code = end.code
    out, err = capsys.readouterr()
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("launch: ")
    assert message in err.replace("_", "-")


@pytest.fixture
def _nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self):
        raise AssertionError("the server was started")

    monkeypatch.setattr(WorkerClient, "start", start)


@pytest.mark.usefixtures("_nothing_starts")
@pytest.mark.parametrize(
    "flags",
    [
        "--dtype float16",
        "--max-batch-size 0",
        "--max-batch-size 1025",
        "--max_seconds 0",
        "--max_seconds nan",
        "--max_seconds 3601",
        "--temperature -0.1",
        "--temperature 5.1",
        "--temperature warm",
        "--top_k -1",
        "--top_k 1.5",
        "--top_p 0",
        "--top_p 1.1",
        "--min_p -0.1",
        "--min_p 1.1",
        "--repetition_penalty 0",
        "--repetition_penalty inf",
        "--seed -1",
        "--seed 9223372036854775808",
        "--threads -1",
        "--port -1",
        "--port 65536",
        "--max-queue -1",
        "--request-timeout 0",
        "--send-timeout 0",
        "--shutdown-timeout -1",
        "--stall-timeout nan",
        "--max-body-bytes 10",
        "--log-level loud",
        "--no-such-flag 1",
    ],
)
def test_a_bad_value_is_refused(flags: str, capsys: pytest.CaptureFixture[str]) -> None:
    name, text = flags.split()
    check_refused(capsys, name.removeprefix("--").replace("_", "-"), name, text)


@pytest.mark.usefixtures("_nothing_starts")
def test_an_unknown_model_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    check_refused(capsys, "known models: ", "--model", "nothing")


@pytest.mark.usefixtures("_nothing_starts")
def test_a_port_in_use_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        check_refused(capsys, f"cannot listen on 127.0.0.1:{port}: ", "--port", port)


@pytest.mark.usefixtures("_nothing_starts")
def test_an_address_of_another_machine_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    check_refused(capsys, "cannot listen on 192.0.2.1", "--host", "192.0.2.1")


def test_an_ipv6_host_has_an_ipv6_socket() -> None:
    try:
        listener = launch.listen(ServerConfig(host="::1", port=0))
    except launch.ConfigError as error:
        pytest.skip(f"this machine has no IPv6: {error}")
    with listener:
        assert listener.family is socket.AF_INET6


def test_audio_does_not_wait_for_acknowledgements() -> None:
    """asyncio leaves Nagle's algorithm on if a socket's protocol is 0, as that of a listener is."""
    with (
        launch.listen(ServerConfig(port=0)) as listener,
        socket.create_connection(listener.getsockname()),
    ):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_the_kernel_drops_clients_that_never_read() -> None:
    if not hasattr(socket, "TCP_USER_TIMEOUT"):
        pytest.skip("this kernel has no TCP_USER_TIMEOUT")
    with launch.listen(ServerConfig(port=0, send_timeout=1.5)) as listener:
        with socket.create_connection(listener.getsockname()):
            accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 1500


def lines_of(server: Launched) -> list[dict[str, Any]]:
    """The lines of the log, each of which must be a JSON object."""
    return [json.loads(line) for line in server.read_log().splitlines()]


def test_the_log_is_json_for_machines(tmp_path: Path) -> None:
    """This includes lines of the worker, and excludes the texts of requests."""
    with launched(tmp_path / "log", "--log-format", "json") as server:
        until(lambda: any("address" in line for line in lines_of(server)), 60)
        (ready,) = (line for line in lines_of(server) if "address" in line)
        server.http.base_url = ready["address"]
        for name, text in (("good-1", "5 frames whisper"), ("bad-1", "unpromptable whisper")):
            headers = {"X-Request-Id": name}
            server.http.post("/generate", json={"text": text}, headers=headers)
        server.process.send_signal(signal.SIGTERM)
        assert server.end(20) == 0
        lines = lines_of(server)
        assert server.process.stdout.read() == ""  # no banner between them
        assert "whisper" not in server.read_log()
    requests = {x["request_id"]: x for x in lines if x["logger"] == "vox_serve.requests"}
    assert {name: one["outcome"] for name, one in requests.items()} == {
        "good-1": "ok",
        "bad-1": "error",
    }
    (failure,) = (line for line in lines if line["level"] == "error")
    assert failure["logger"] == "vox_serve.worker"
    assert failure["request_id"].startswith("bad-1/")
    assert "RuntimeError (--log-text shows its message)" in failure["traceback"]


class Unread:
    """A log whose reader does not read, in place of the path of a file."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def open(self, mode: str) -> IO[str]:
        return os.fdopen(self.descriptor, "w")


def test_c_code_may_print_although_nobody_reads_the_log() -> None:
    reader, writer = os.pipe()
    try:
        with launched(Unread(writer)) as server:
            server.read_banner()
            for _ in range(2):
                body = {"text": "5 frames loud"}
                assert server.http.post("/generate", json=body, timeout=5).status_code == 200
            assert server.http.get("/health", timeout=5).status_code == 200
            server.process.send_signal(signal.SIGTERM)
            assert server.end(20) == 0
    finally:
        os.close(reader)


def test_the_last_words_of_a_worker_are_in_the_log(start: Start) -> None:
    server = start("--on-worker-death", "restart")
    assert server.http.post("/generate", json={"text": "crash"}).status_code == 503
    until(lambda: "INFO vox_serve.printed: terminate called" in server.read_log())
    assert "was killed by SIGABRT" in server.read_log()


def test_an_unreachable_collector_of_traces_does_not_delay_the_end(tmp_path: Path) -> None:
    pytest.importorskip("opentelemetry.sdk")
    collector = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    with launched(tmp_path / "log", "--traces", **collector) as server:
        server.read_banner()
        assert server.http.post("/generate", json={"text": "5 frames"}).status_code == 200
        server.process.send_signal(signal.SIGTERM)
        assert server.end(6) == 0


def test_keys_are_read_again_on_sighup(start: Start, tmp_path: Path) -> None:
    (old, first), (new, second) = new_key("alice"), new_key("bob")
    file = tmp_path / "keys"
    file.write_text(first)
    server = start("--api-keys-file", str(file), "--host", "0.0.0.0")

    def status(key: str) -> int:
        headers = {"X-Api-Key": key}
        return server.http.post("/generate", json={"text": "5"}, headers=headers).status_code

    server.http.base_url = f"http://127.0.0.1:{server.http.base_url.port}"
    assert [status(old), status(new)] == [200, 401]
    file.write_text(second)
    os.kill(server.process.pid, signal.SIGHUP)
    until(lambda: [status(old), status(new)] == [401, 200])
    log = server.read_log()
    assert "1 keys read" in log
    assert "WARNING" not in log, "it warns of an open server although it has keys"
    assert old not in log + server.banner
    server.process.terminate()
    assert server.end(10) == 0


def test_a_thousand_silent_connections_do_not_use_up_the_descriptors(start: Start) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4096:
        pytest.skip("this process may not open enough files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    try:
        server = start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    url = server.http.base_url
    server.http.timeout = 2
    with ExitStack() as stack, server.stream(text="60", format="pcm") as running:
        for _ in range(1300):
            stack.enter_context(socket.create_connection((url.host, url.port), timeout=5))
        assert httpx.get(f"{url}/health", timeout=2).status_code == 200
        assert len(running.read()) == 60 * 1280
    assert len(server.read_log()) < 10_000
    server.process.terminate()
    assert server.end(10) == 0
