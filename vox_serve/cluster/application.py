"""Describes the cluster's deployments to Ray Serve, and deploys them."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import attrs

from vox_serve.cluster.config import ClusterConfig, Scale, content_of, parse, read_config
from vox_serve.errors import ConfigError

APPLICATION = "vox-serve"
IMPORT_PATH = "vox_serve.cluster.application:build"
ROUTER = "vox_serve.cluster.router.TurnRouter"
SPARE_REQUESTS = 8
"""Requests beyond slots and queue: messages about requests must not wait for a free place."""
INGRESS_REQUESTS = 1000
"""Open requests of an ingress replica at which Ray adds another one."""
HEALTH_SECONDS, HEALTH_LIMIT_SECONDS = 2.0, 10.0
"""How often Ray asks for a replica's health, and how long the answer may take."""


def build(args: dict[str, Any]) -> Any:
    """Ray calls this with the content of a configuration file; returns a Serve application.

    Raises:
        ConfigError: a setting is wrong.
    """
    return _application(parse(args))


def _application(config: ClusterConfig) -> Any:
    from ray import serve

    from vox_serve.cluster.ingress import Ingress
    from vox_serve.cluster.replica import Replica

    server = attrs.evolve(config.server, on_worker_death="restart")
    inside = attrs.evolve(config.server, on_worker_death="exit")
    engines = []
    for model in config.models:
        engine, scale = model.engine, model.scale
        open_requests = engine.max_batch_size + server.max_queue
        deployment = serve.deployment(
            Replica,
            name=f"engine-{re.sub(r'[^A-Za-z0-9_.-]+', '-', engine.model)}",
            max_ongoing_requests=open_requests + SPARE_REQUESTS,
            # A replica is added when more requests are open than there are slots.
            autoscaling_config=_scaling(scale, engine.max_batch_size),
            **_common(scale, server.shutdown_timeout),
        )
        engines.append(deployment.bind(engine, inside))
    ingress = serve.deployment(
        serve.ingress()(Ingress),
        name="ingress",
        max_ongoing_requests=4 * INGRESS_REQUESTS,
        autoscaling_config=_scaling(config.ingress, INGRESS_REQUESTS),
        **_common(config.ingress, server.shutdown_timeout),
    )
    return ingress.bind([model.engine for model in config.models], server, *engines)


def _scaling(scale: Scale, target: int) -> dict[str, Any]:
    return {
        "min_replicas": scale.min_replicas,
        "max_replicas": scale.max_replicas,
        "initial_replicas": scale.min_replicas,
        "target_ongoing_requests": target,
        "upscale_delay_s": scale.upscale_delay,
        "downscale_delay_s": scale.downscale_delay,
    }


def _common(scale: Scale, shutdown_timeout: float) -> dict[str, Any]:
    return {
        "ray_actor_options": {
            "num_cpus": scale.cpus,
            "num_gpus": scale.gpus,
            "resources": dict(scale.resources),
        },
        "request_router_config": {"request_router_class": ROUTER},
        "graceful_shutdown_timeout_s": shutdown_timeout,
        "health_check_period_s": HEALTH_SECONDS,
        "health_check_timeout_s": HEALTH_LIMIT_SECONDS,
    }


def serve_config(config: ClusterConfig) -> dict[str, Any]:
    """The configuration file of Ray Serve for `serve deploy`, or KubeRay's `serveConfigV2`."""
    return {
        "http_options": {"host": config.server.host, "port": config.server.port},
        "applications": [
            {
                "name": APPLICATION,
                "route_prefix": "/",
                "import_path": IMPORT_PATH,
                "args": content_of(config),
            }
        ],
    }


def up(path: Path, address: str, show: bool = False) -> int:
    """Deploy the application, or replace the one that runs; returns the exit code.

    Args:
        path: the configuration file.
        address: the address of the cluster for `ray.init`.
        show: print Ray Serve's configuration instead.

    Raises:
        ConfigError: a setting is wrong, ray is missing, or the cluster cannot be reached.
    """
    config = read_config(path)
    if show:
        import yaml

        print(yaml.safe_dump(serve_config(config), sort_keys=False), end="")
        return 0
    try:
        import ray
        from ray import serve
    except ImportError as error:
        raise ConfigError("vox-serve cluster needs ray: install vox-serve-core[ray]") from error
    try:
        ray.init(address=address, namespace="serve", log_to_driver=False)
    except (ConnectionError, ValueError) as error:
        raise ConfigError(f"the cluster {address} cannot be reached: {error}") from error
    options = {"host": config.server.host, "port": config.server.port}
    serve.start(proxy_location="EveryNode", http_options=options)
    try:
        serve.run(_application(config), name=APPLICATION, route_prefix="/")
    except RuntimeError as error:
        print(f"vox-serve cluster: {error}", file=sys.stderr)
        return 1
    return 0
