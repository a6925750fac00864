"""A worker that is repeatedly killed under load leaves nothing behind."""

from __future__ import annotations

import os
import signal
import threading
import time

import httpx
import pytest

from tests.conftest import until
from tests.launched import Launched
from tests.reliability.conftest import Start, figure, series
from tests.reliability.test_soak import Held, held

KILLS, CLIENTS = 5, 8


class Load(threading.Thread):
    """Send requests until stopped, and record when and how each answer ended."""

    def __init__(self, url: str, number: int) -> None:
        super().__init__(daemon=True)
        self._url, self._streaming = url, number % 2 == 0
        self.ended = False
        self.answers: list[tuple[float, str]] = []

    def run(self) -> None:
        body = {"text": "40 frames", "max_seconds": 4, "streaming": self._streaming}
        while not self.ended:
            outcome = "cut"
            try:
                answer = httpx.post(f"{self._url}/generate", json=body, timeout=30)
                outcome = str(answer.status_code)
                if answer.status_code == 503:
                    assert int(answer.headers["retry-after"]) >= 1
                    assert answer.json()["error"]["code"] == "unavailable"
            except httpx.RemoteProtocolError:
                pass
            self.answers.append((time.monotonic(), outcome))
            if outcome != "200":
                time.sleep(0.1)


def kill_and_wait(server: Launched) -> tuple[float, float]:
    """Kill the worker; seconds until `/health` reports it, and until it accepts requests again."""
    killed = time.monotonic()
    os.kill(server.worker(), signal.SIGKILL)
    until(lambda: server.http.get("/health").status_code == 503, 1)
    told = time.monotonic() - killed
    (model,) = server.http.get("/health").json()["models"]
    assert model["status"] == "restarting"
    assert "SIGKILL" in model["reason"]
    until(lambda: server.http.get("/ready").status_code == 200, 60)
    return told, time.monotonic() - killed


def under_load(server: Launched, kills: int) -> tuple[list[tuple[float, float]], set[str]]:
    """Kill the worker repeatedly while clients send requests; times, and how answers ended."""
    loads = [Load(str(server.http.base_url), number) for number in range(CLIENTS)]
    for load in loads:
        load.start()
    times = []
    for _ in range(kills):
        until(lambda: series(server, "requests_running") > 0, 10)
        times.append(kill_and_wait(server))
    for load in loads:
        load.ended = True
    for load in loads:
        load.join(30)
        assert not load.is_alive(), "a request was left open"
    until(lambda: series(server, "requests_running") == 0, 5)
    assert series(server, "requests_waiting") == series(server, "slots_used") == 0
    return times, {outcome for load in loads for _, outcome in load.answers}


def run(server: Launched) -> tuple[list[tuple[float, float]], set[str], Held, Held]:
    under_load(server, 1)  # what stays after the first restart, such as threads, is not a leak
    before, processes = held(server.process.pid), len(server.processes())
    times, outcomes = under_load(server, KILLS)
    assert series(server, "worker_restarts_total") == KILLS + 1
    after = held(server.process.pid)
    assert len(server.processes()) == processes, "a process was left"
    return times, outcomes, before, after


def test_a_worker_killed_five_times_under_load_leaves_nothing_behind(start: Start) -> None:
    server = start("--on-worker-death", "restart", "--log-level", "warning", TONE_DELAY="0.02")
    times, outcomes, before, after = run(server)
    figure(
        "worker killed five times under load",
        health_after=f"{max(told for told, _ in times):.3f} s at most",
        ready_after=", ".join(f"{ready:.1f} s" for _, ready in times),
        answers=sorted(outcomes),
        descriptors=f"{before.descriptors} -> {after.descriptors}",
        threads=f"{before.threads} -> {after.threads}",
    )
    assert outcomes <= {"200", "503", "cut"}
    assert {"200", "503"} <= outcomes
    assert after.descriptors == before.descriptors
    assert server.http.post("/generate", json={"text": "5 frames"}).status_code == 200
    server.process.send_signal(signal.SIGTERM)
    assert server.end(35) == 0


def test_a_worker_that_leaves_processes_is_noticed(start: Start) -> None:
    server = start(
        "--on-worker-death", "restart", "--log-level", "warning",
        "--plugins", "tests.reliability.leaky", TONE_DELAY="0.02", LEAKY_SPAWN="1",
    )  # fmt: skip
    with pytest.raises(AssertionError, match="a process was left"):
        run(server)
