"""When one of two replicas is killed under load, only its own requests fail, and it restarts."""

from __future__ import annotations

import os
import signal
import time

from tests.conftest import until
from tests.launched import Start
from tests.reliability.conftest import Promises, series
from tests.reliability.test_restarts import CLIENTS, Load


def test_a_killed_replica_fails_only_its_own_requests_and_restarts(
    start: Start, promises: Promises
) -> None:
    server = start(
        "--replicas", "2", "--on-worker-death", "restart", "--log-level", "warning",
        TONE_DELAY="0.02",
    )  # fmt: skip
    loads = [Load(str(server.http.base_url), number) for number in range(CLIENTS)]
    for load in loads:
        load.start()
    until(lambda: all(series(server, "slots_used", replica=n) > 0 for n in "01"), 10)
    killed = time.monotonic()
    os.kill(server.workers()[0], signal.SIGKILL)
    until(lambda: series(server, "worker_restarts_total") == 1, 2)
    while sum(series(server, "engine_up", replica=n) for n in "01") < 2:
        assert server.http.get("/health").status_code == 200
        assert server.http.get("/ready").status_code == 200
        assert time.monotonic() < killed + 60
        time.sleep(0.2)
    back = time.monotonic() - killed
    time.sleep(1)
    for load in loads:
        load.ended = True
    for load in loads:
        load.join(30)
        assert not load.is_alive(), "a request was left open"
    outcomes = [outcome for load in loads for _, outcome in load.answers]
    failed = [outcome for outcome in outcomes if outcome != "200"]
    assert len(failed) <= CLIENTS // 2 + 1, failed
    assert set(failed) <= {"503", "cut"}
    until(lambda: series(server, "requests_running") == 0, 5)
    assert series(server, "requests_waiting") == series(server, "slots_used") == 0
    server.process.terminate()
    assert server.end(20) == 0
    name = "one of two replicas killed"
    promises.note(name, f"failed requests of {CLIENTS} clients", CLIENTS // 2 + 1,
                  f"{len(failed)} of {len(outcomes)}")  # fmt: skip
    promises.note(name, "restarted after", "60 s", f"{back:.1f} s")
