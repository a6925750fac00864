"""The HTTP part of a cluster: the server's own application, with links to the engines."""

from __future__ import annotations

import logging
from typing import Any

from litestar import Litestar

from vox_serve.cluster.link import ClusterLink
from vox_serve.config import EngineConfig, ServerConfig
from vox_serve.logs import configure
from vox_serve.plugins import load_plugins
from vox_serve.server import traces
from vox_serve.server.app import create_app
from vox_serve.workers.engines import Engines
from vox_serve.workers.interface import EngineState
from vox_serve.workers.link import AnyLink

log = logging.getLogger("vox_serve.cluster")


class Ingress:
    """Serves the models of these deployments.

    Args:
        configs: of each engine.
        server: settings of the HTTP server; host, port and connections are Ray's.
        handles: of each engine's deployment, in the order of `configs`.
    """

    def __init__(self, configs: list[EngineConfig], server: ServerConfig, *handles: Any) -> None:
        configure(server.log)
        if server.traces:
            traces.start()
        by_config = dict(zip(map(id, configs), handles, strict=True))

        def link(config: EngineConfig) -> AnyLink:
            keeps = server.voices_dir is not None
            return ClusterLink(by_config[id(config)], keeps)

        self._configs = configs  # keeps their ids unique
        self._engines = Engines(configs, server, load_plugins(configs[0].plugins), link=link)

    def __serve_build_asgi_app__(self) -> Litestar:  # Ray's name for it
        return create_app(self._engines)

    def check_health(self) -> None:
        """Called by Ray, which replaces this replica after an exception."""
        for client in self._engines:
            if client.state is EngineState.DEAD:
                raise RuntimeError(f"{client.model}: {client.failure}")
