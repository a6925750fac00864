"""Debian's Prometheus scrapes a server under load: every panel and every rule has data."""

from __future__ import annotations

import math
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import httpx
import pytest
import torch
import yaml
from websockets.sync.client import connect

from tests.conftest import until
from tests.deploy.picture import Series, draw
from tests.deploy.test_grafana import BOARD, TARGETS
from tests.deploy.tools import DEPLOY, needs_prometheus, passes
from tests.launched import Launched, launched
from vox_serve.server.websocket.route import PATH

pytestmark = needs_prometheus
RULES = [
    rule
    for name in ("rules.yml", "alerts.yml")
    for group in yaml.safe_load((DEPLOY / "prometheus" / name).read_text())["groups"]
    for rule in group["rules"]
]
RECORDED = [rule["record"] for rule in RULES if "record" in rule]
LOAD_SECONDS = 8
WINDOW = "10s"
GPU_ONLY = "vox_serve_device_memory_bytes"


@attrs.frozen
class Observed:
    """A server that has just been under load, and the Prometheus that scraped it."""

    server: Launched
    prometheus: httpx.Client

    def values(self, expression: str) -> list[float]:
        """The current values of an expression, without NaN."""
        found = [float(series["value"][1]) for series in self._ask("query", expression)]
        return [value for value in found if not math.isnan(value)]

    def course(self, expression: str) -> list[Series]:
        """The values of an expression over the last 30 seconds."""
        span = {"start": time.time() - 30, "end": time.time(), "step": 0.5}
        found = self._ask("query_range", expression, **span)
        return [(one["metric"], [(t, float(value)) for t, value in one["values"]]) for one in found]

    def _ask(self, route: str, expression: str, **span: float) -> list[dict[str, Any]]:
        expression = expression.replace("$__rate_interval", WINDOW).replace("$model", ".*")
        query = {"query": expression, **span}
        answer = self.prometheus.get(f"/api/v1/{route}", params=query).json()
        assert answer["status"] == "success", answer
        result: list[dict[str, Any]] = answer["data"]["result"]
        return result

    def rules(self) -> dict[str, Any]:
        groups = self.prometheus.get("/api/v1/rules").json()["data"]["groups"]
        return {rule["name"]: rule for group in groups for rule in group["rules"]}


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    folder = tmp_path_factory.mktemp("prometheus")
    # The tone can fail in every way; the demo voice has weights and cached prefixes.
    flags = ("--model", "demo", "--max-batch-size", "4", "--max-queue", "2")
    with launched(folder / "server.log", *flags, TONE_DELAY="0.01") as server:
        server.read_banner()
        with watching(server.http.base_url, folder) as prometheus:
            speak(server.http)
            yield Observed(server, prometheus)


@contextmanager
def watching(target: httpx.URL, folder: Path) -> Iterator[httpx.Client]:
    """Prometheus as configured in deploy/, but with a scrape per second and another address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    for name in ("rules.yml", "alerts.yml"):
        (folder / name).write_text((DEPLOY / "prometheus" / name).read_text())
    shipped = (DEPLOY / "prometheus" / "prometheus.yml").read_text()
    assert (shipped.count("15s"), shipped.count("vox-serve:8000")) == (2, 1)
    here = shipped.replace("15s", "1s").replace("vox-serve:8000", target.netloc.decode())
    (folder / "prometheus.yml").write_text(here)
    command = [
        "prometheus",
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address={address}",
    ]
    with (
        (folder / "prometheus.log").open("w") as log,
        subprocess.Popen(command, stderr=log) as process,
        httpx.Client(base_url=f"http://{address}", timeout=20) as client,
    ):
        try:
            until(lambda: answers(client), 20)
            yield client
        finally:
            process.terminate()


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/-/ready").status_code == 200
    except httpx.TransportError:
        return False


def speak(http: httpx.Client) -> None:
    """Change every series for some seconds."""
    deadline = time.monotonic() + LOAD_SECONDS

    def say(**body: object) -> httpx.Response:
        return http.post("/generate", json={"model": "tone", **body})

    def client(number: int) -> None:
        while time.monotonic() < deadline:
            say(text=f"{10 + number} frames", streaming=True)
            say(text="6 frames", conversation=f"c{number}")
            say(text="8 frames reserved", max_seconds=0.4)
            say(text="boom")
            say(text="")
            long = {"model": "tone", "text": "50 frames", "streaming": True}
            with http.stream("POST", "/generate", json=long) as cut:
                next(cut.iter_raw())

    def crowd() -> None:
        with ThreadPoolExecutor(12) as several:
            while time.monotonic() < deadline:
                list(several.map(lambda text: say(text=text), ["9 frames"] * 12))
                time.sleep(1)

    url = str(http.base_url).replace("http", "ws", 1).rstrip("/") + PATH
    with connect(url) as session, ThreadPoolExecutor(4) as clients:
        session.send('{"type": "start", "model": "demo"}')
        load = [clients.submit(client, number) for number in range(3)] + [clients.submit(crowd)]
        for one in load:
            one.result()
        for text in ("One.", "Two.", "Three."):
            http.post("/generate", json={"model": "demo", "text": text, "conversation": "demo"})
        time.sleep(1.5)  # one more scrape, with the session still open


def test_every_panel_has_data(observed: Observed, capsys: pytest.CaptureFixture) -> None:
    shown = {
        (title, target["legendFormat"], target["expr"]): observed.values(target["expr"])
        for title, target in TARGETS
    }
    with capsys.disabled():
        for (title, legend, _), values in shown.items():
            figures = " ".join(f"{value:.4g}" for value in values[:6])
            print(f"\n{title:28} {legend:30} {figures}", end="")
        print()
    empty = [expression for (*_, expression), values in shown.items() if not values]
    if not torch.cuda.is_available():  # these need a GPU
        empty = [expression for expression in empty if GPU_ONLY not in expression]
    assert empty == []


def test_the_panels_can_be_drawn(observed: Observed, tmp_path: Path) -> None:
    """VOX_WRITE_PICTURES=1 redraws docs/dashboard.png."""
    picture = tmp_path / "dashboard.png"
    draw(BOARD, observed.course, picture)
    assert picture.stat().st_size > 100_000
    if os.environ.get("VOX_WRITE_PICTURES"):
        shutil.copy(picture, DEPLOY.parent / "docs" / "dashboard.png")


@pytest.mark.parametrize("name", RECORDED)
def test_every_recorded_rule_has_data(observed: Observed, name: str) -> None:
    assert observed.values(name)


def test_every_rule_is_evaluated_without_error(observed: Observed) -> None:
    rules = observed.rules()
    assert set(rules) == {rule.get("record") or rule["alert"] for rule in RULES}
    assert {rule["health"] for rule in rules.values()} == {"ok"}


def test_the_load_changed_the_series_of_the_panels(observed: Observed) -> None:
    """Series that exist from the start have data even without load."""
    for series in (
        'requests_total{mode="stream", outcome="ok"}',
        'requests_total{outcome="rejected"}',
        'requests_total{outcome="error"}',
        'finished_total{reason="length"}',
        "reserved_codes_total",
        'prompt_positions_total{source="restored"}',
        'prefix_lookups_total{result="hit"}',
        'admission_rejections_total{reason="queue_full"}',
        'client_disconnects_total{phase="stream"}',
        "conversations",
        "prefixes",
        "voices",
        "websocket_sessions",
        'engine_memory_bytes{kind="weights"}',
        'engine_memory_bytes{kind="slots"}',
        'engine_memory_bytes{kind="prefixes"}',
        'process_resident_memory_bytes{process="worker"}',
        'process_open_fds{process="server"}',
    ):
        assert sum(observed.values(f"max_over_time(vox_serve_{series}[2m])")) > 0, series


def test_promtool_accepts_the_exposition(observed: Observed) -> None:
    text = observed.server.http.get("/metrics").text
    assert passes("promtool", "check", "metrics", text=text) == ""
