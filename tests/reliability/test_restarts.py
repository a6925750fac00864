"""A worker killed repeatedly under load leaves nothing behind."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import attrs
import httpx

from tests.conftest import until
from tests.launched import REPLICAS, Launched, Start
from tests.reliability.conftest import Promises, series
from tests.reliability.resources import Traces, traces

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
    """Kill the workers; returns seconds until `/health` reports it and until all are ready."""
    killed = time.monotonic()
    server.signal_workers(signal.SIGKILL)
    until(lambda: server.http.get("/health").status_code == 503, 1)
    reported = time.monotonic() - killed
    (model,) = server.http.get("/health").json()["models"]
    assert model["status"] == "restarting"
    assert "SIGKILL" in model["reason"]
    until(lambda: series(server, "engine_up") == REPLICAS, 60)
    return reported, time.monotonic() - killed


def under_load(server: Launched, kills: int) -> tuple[list[tuple[float, float]], set[str]]:
    """Kill the worker repeatedly under load; the times of each kill, and how answers ended."""
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


def run(
    server: Launched, temporary: Path, kills: int = KILLS
) -> tuple[list[tuple[float, float]], set[str], Traces, Traces]:
    under_load(server, 1)  # resources of the first restart, such as threads, are not leaks
    before = traces(server, temporary)
    times, outcomes = under_load(server, kills)
    assert series(server, "worker_restarts_total") == REPLICAS * (kills + 1)
    after = traces(server, temporary)
    assert after.processes == before.processes, "a process was left behind"
    return times, outcomes, before, after


FLAGS = ("--on-worker-death", "restart", "--log-level", "warning")


def test_a_worker_killed_five_times_under_load_leaves_nothing_behind(
    start: Start, promises: Promises, tmp_path: Path
) -> None:
    (temporary := tmp_path / "temporary").mkdir()
    server = start(*FLAGS, TONE_DELAY="0.02", TMPDIR=str(temporary))
    times, outcomes, before, after = run(server, temporary)
    name = f"worker killed {KILLS} times under load"
    slowest = max(reported for reported, _ in times)
    promises.note(name, "/health is 503 after", "1 s", f"{slowest:.2f} s")
    back = ", ".join(f"{ready:.0f}" for _, ready in times)
    promises.note(name, "ready again after", "60 s", f"{back} s")
    promises.note(name, "answers", "200, 503, cut", ", ".join(sorted(outcomes)))
    for what, count in attrs.asdict(before).items():
        figure = f"{count} -> {getattr(after, what)}"
        promises.note(name, what.replace("_", " "), "as before", figure)
    assert outcomes <= {"200", "503", "cut"}
    assert {"200", "503"} <= outcomes
    assert after.threads <= before.threads + 2  # asyncio's pool may grow
    assert attrs.evolve(after, threads=before.threads) == before
    assert server.http.post("/generate", json={"text": "5 frames"}).status_code == 200
    server.process.send_signal(signal.SIGTERM)
    assert server.end(35) == 0
    assert not list(temporary.iterdir())


def test_a_worker_that_leaves_processes_is_detected(
    broken: Callable[[str], Start], promises: Promises, tmp_path: Path
) -> None:
    fault = "leaves_processes"
    with promises.fails(
        f"worker killed {KILLS} times under load", fault, "a process was left behind"
    ):
        run(broken(fault)(*FLAGS, TONE_DELAY="0.02"), tmp_path, kills=1)
