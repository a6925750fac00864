"""Health, readiness, models, voices, plugins and metrics."""

from __future__ import annotations

from typing import Any

import attrs
from litestar import Response, get
from litestar.datastructures import State

from vox_serve.engine.client import EngineClient, EngineState
from vox_serve.metrics import CONTENT_TYPE
from vox_serve.plugins import Plugins


@get("/health")
async def health(state: State) -> Response[dict[str, Any]]:
    """200 while the process can become or is useful; 503 once the engine is dead."""
    client: EngineClient = state.client
    plugins: Plugins = state.plugins
    dead = client.state is EngineState.DEAD
    body: dict[str, Any] = {
        "status": client.state.value,
        "model": client.metrics.model,
        "running": client.stats.running,
        "waiting": client.stats.waiting,
        "slots": client.info.num_slots if client.info else 0,
        "broken_plugins": {info.name: info.error for info in plugins.broken},
    }
    if dead:
        body["reason"] = client.failure
    return Response(body, status_code=503 if dead else 200)


@get("/ready")
async def ready(state: State) -> Response[dict[str, str]]:
    """200 only while requests are accepted."""
    client: EngineClient = state.client
    status = 200 if client.state is EngineState.READY else 503
    headers = {} if status == 200 else {"Retry-After": "5"}
    return Response({"status": client.state.value}, status_code=status, headers=headers)


@get("/models")
async def models(state: State) -> dict[str, Any]:
    """What is loaded: sizes, limits, voices and sampling defaults."""
    info = state.client.info
    if info is None:
        return {"models": []}
    body = attrs.asdict(info)
    body["name"] = body.pop("model")
    body["voices"] = [{"name": name, "speaker": speaker} for name, speaker in info.voices]
    return {"models": [body]}


@get("/voices")
async def voices(state: State) -> dict[str, Any]:
    info = state.client.info
    named = info.voices if info else ()
    return {"voices": [{"name": name, "speaker": speaker} for name, speaker in named]}


@get("/plugins")
async def plugins(state: State) -> dict[str, Any]:
    """What was found, and why a plugin cannot be used."""
    found: Plugins = state.plugins
    return {"plugins": [attrs.asdict(info) for info in found.infos]}


@get("/metrics")
async def metrics(state: State) -> Response[bytes]:
    """The Prometheus text format."""
    return Response(state.client.metrics.exposition(), media_type=CONTENT_TYPE)
