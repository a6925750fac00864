"""Fixtures: an engine that hums, and servers on real sockets."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import attrs
import httpx
import pytest
import uvicorn
from litestar import Litestar

from tests.launched import REPLICAS, Launched, Start, launched
from tests.tone import ToneModel
from tests.waiting import until
from vox_serve.config import EngineConfig, ServerConfig
from vox_serve.engine.engine import Engine
from vox_serve.messages import Audio, Failed, Finished, SpeechRequest, StepOutput
from vox_serve.plugins import load_plugins
from vox_serve.server.app import create_app
from vox_serve.server.protocol import uvicorn_settings
from vox_serve.workers.client import WorkerClient
from vox_serve.workers.engines import Engines

TONE = EngineConfig(
    model="tone",
    plugins=("tests.tone",),
    max_batch_size=4,
    replicas=REPLICAS,
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        mark = item.get_closest_marker("one_replica")
        if mark is not None and TONE.replicas > 1:
            item.add_marker(pytest.mark.skip(reason=mark.kwargs["reason"]))


@attrs.define
class Spoken:
    """The audio of one request, and how it ended."""

    pcm: bytes = b""
    end: Finished | Failed | None = None


def run_engine(engine: Engine, steps: int | None = None) -> dict[str, Spoken]:
    """Step until the work is done, or `steps` times; returns the result of each request."""
    spoken: dict[str, Spoken] = {}
    while engine.has_work and steps != 0:
        collect(engine.step(), spoken)
        steps = None if steps is None else steps - 1
    return spoken


def collect(output: StepOutput, spoken: dict[str, Spoken]) -> None:
    for event in output.events:
        entry = spoken.setdefault(event.request_id, Spoken())
        if isinstance(event, Audio):
            entry.pcm += event.pcm
        elif isinstance(event, Finished | Failed):
            entry.end = event


def speak(engine: Engine, *texts: str, **fields: Any) -> list[Spoken]:
    """Speak texts together; returns their results in order."""
    for number, text in enumerate(texts):
        engine.add(SpeechRequest(str(number), text, **fields))
    spoken = run_engine(engine)
    return [spoken[str(number)] for number in range(len(texts))]


@pytest.fixture
def tone_engine() -> Engine:
    return Engine(ToneModel(), TONE)


@attrs.define
class RunningServer:
    """A server on a real socket of this machine."""

    url: str
    client: WorkerClient
    http: httpx.Client
    app: Litestar

    def metric(self, series: str) -> float:
        """The value of one series of /metrics, e.g. `vox_serve_ready{model="tone"}`."""
        for line in self.http.get("/metrics").text.splitlines():
            if line.startswith(series + " "):
                return float(line.rsplit(" ", 1)[1])
        raise KeyError(series)

    def wait_idle(self, seconds: float = 5.0) -> None:
        """Wait until no request is open and no slot is taken."""
        until(lambda: not self.client.open_requests and not self.client.stats.running, seconds)


@contextmanager
def running_server(
    engine: EngineConfig = TONE,
    server: ServerConfig | None = None,
    wait: bool = True,
    others: Sequence[EngineConfig] = (),
) -> Iterator[RunningServer]:
    """Serve with the engines and the event loop in threads."""
    plugins = load_plugins(engine.plugins)
    server = server or ServerConfig(port=0)
    engines = Engines([engine, *others], server, plugins, in_thread=True)
    client = next(iter(engines))
    app = create_app(engines)
    config = uvicorn.Config(
        app, port=0, **uvicorn_settings(server, engines.metrics), log_config=None, access_log=False
    )
    config.timeout_graceful_shutdown = 5
    uvicorn_server = uvicorn.Server(config)
    thread = threading.Thread(target=uvicorn_server.run, daemon=True)
    thread.start()
    until(lambda: uvicorn_server.started, 10)
    port = uvicorn_server.servers[0].sockets[0].getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with httpx.Client(base_url=url, timeout=30) as http:
        if wait:
            until(lambda: http.get("/ready").status_code == 200, 60)
        yield RunningServer(url, client, http, app)
    uvicorn_server.should_exit = True
    thread.join(15)
    assert not thread.is_alive(), "the server did not shut down"


@pytest.fixture(scope="module")
def tone_server() -> Iterator[RunningServer]:
    with running_server() as server:
        yield server


@pytest.fixture
def start_server() -> Iterator[Callable[..., RunningServer]]:
    """Start servers with other settings; they end with the test."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(running_server(**settings))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start server processes; they end with the test."""
    with ExitStack() as stack:

        def enter(*flags: str, **environment: str) -> Launched:
            server = stack.enter_context(launched(tmp_path / "log", *flags, **environment))
            server.read_banner()
            return server

        yield enter
