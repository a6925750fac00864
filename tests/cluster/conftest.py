"""A cluster of Ray on this machine: a head with the ingress, and two nodes with an engine each."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import httpx
import pytest

from tests.conftest import until

DELAY = 0.04
"""Seconds per frame of the tone: slow enough to be interrupted."""
MEMORY = 100 * 2**20


@attrs.define
class RayCluster:
    """The cluster, and the application on it."""

    ray: Any
    nodes: list[Any]
    content: dict[str, Any]
    file: Path
    url: str
    http: httpx.Client

    def add_node(self) -> None:
        resources = {"engine": 1}
        node = self.ray.add_node(num_cpus=1, resources=resources, object_store_memory=MEMORY)
        self.nodes.append(node)

    def deploy(self, **changes: Any) -> None:
        """Run `vox-serve cluster up` with changed engine settings."""
        self.content["models"][0] |= changes
        self.file.write_text(json.dumps(self.content))  # JSON is YAML
        command = ("cluster", "up", str(self.file), "--address", self.ray.address)
        subprocess.run([sys.executable, "-m", "vox_serve.cli", *command], check=True, timeout=120)

    def health(self) -> dict[str, Any]:
        (model,) = self.http.get("/health").json()["models"]
        return model

    def wait(self, slots: int, seconds: float = 60.0) -> None:
        """Wait until the service is ready and has this many slots."""
        slowly(lambda: self.http.get("/ready").status_code == 200, seconds)
        slowly(lambda: self.health()["slots"] == slots, seconds)

    def wait_idle(self, seconds: float = 5.0) -> None:
        slowly(lambda: self.health()["running"] == 0, seconds)


def slowly(condition: Callable[[], bool], seconds: float) -> None:
    """Like `until`, but slower, because each check is a request through Ray."""

    def found() -> bool:
        time.sleep(0.1)
        return condition()

    until(found, seconds)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    pytest.importorskip("ray", reason="needs the extra `ray`")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # How often Ray's routers report open requests, on which scaling depends; default: 10 s.
        patch.setenv("RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S", "1")
        patch.setenv("TONE_DELAY", str(DELAY))
        patch.setenv("TONE_HEARS", "1")
        patch.setenv(
            "PYTHONPATH", os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
        )
        import ray
        from ray import serve
        from ray.cluster_utils import Cluster

        head = {
            "num_cpus": 1,
            "resources": {"head": 1},
            "object_store_memory": MEMORY,
            "include_dashboard": False,
        }
        made = Cluster(initialize_head=True, head_node_args=head)
        port = free_port()
        voices = tmp_path_factory.mktemp("voices")
        content = {
            "models": [
                {
                    "model": "tone",
                    "plugins": ["tests.tone"],
                    "max_batch_size": 4,
                    "deterministic": True,
                    "resources": {"engine": 1},
                    "min_replicas": 2,
                    "max_replicas": 2,
                }
            ],
            "ingress": {"resources": {"head": 0.1}},
            "server": {"port": port, "voices_dir": str(voices)},
        }
        url = f"http://127.0.0.1:{port}"
        try:
            ray.init(address=made.address, namespace="serve", log_to_driver=False)
            with httpx.Client(base_url=url, timeout=60) as http:
                running = RayCluster(made, [], content, voices.parent / "cluster.yaml", url, http)
                options = {"host": "127.0.0.1", "port": port}
                serve.start(proxy_location="HeadOnly", http_options=options)
                running.add_node()
                running.add_node()
                running.deploy()
                running.wait(slots=8)
                yield running
        finally:
            serve.shutdown()
            ray.shutdown()
            made.shutdown()
