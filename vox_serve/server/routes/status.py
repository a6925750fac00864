"""Health, readiness, models, voices, plugins and metrics."""

from __future__ import annotations

from typing import Any

import attrs
from litestar import Response, get
from litestar.datastructures import State

from vox_serve.metrics import CONTENT_TYPE
from vox_serve.workers.client import EngineClient, EngineState
from vox_serve.workers.engines import Engines


@get("/health")
async def health(state: State) -> Response[dict[str, Any]]:
    """200 while the process can become or is useful; 503 once an engine is dead."""
    engines: Engines = state.engines
    body = {
        "status": engines.state.value,
        "models": [_health(client) for client in engines],
        "broken_plugins": {info.name: info.error for info in engines.plugins.broken},
        "broken_voices": state.voices.broken,
    }
    return Response(body, status_code=503 if engines.state is EngineState.DEAD else 200)


def _health(client: EngineClient) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": client.model,
        "status": client.state.value,
        "running": client.stats.running,
        "waiting": client.stats.waiting,
        "slots": client.info.num_slots if client.info else 0,
    }
    if client.state is EngineState.DEAD:
        body["reason"] = client.failure
    return body


@get("/ready")
async def ready(state: State) -> Response[dict[str, str]]:
    """200 only while requests for every model are accepted."""
    found = state.engines.state
    status = 200 if found is EngineState.READY else 503
    headers = {} if status == 200 else {"Retry-After": "5"}
    return Response({"status": found.value}, status_code=status, headers=headers)


@get("/models")
async def models(state: State) -> dict[str, Any]:
    """What is loaded: sizes, limits, voices and sampling defaults of each model."""
    found = []
    for client in state.engines:
        if client.info is not None:
            body = attrs.asdict(client.info)
            body["name"] = body.pop("model")
            body["voices"] = [{"name": n, "speaker": s} for n, s in client.voices]
            found.append(body)
    return {"models": found}


@get("/voices")
async def voices(state: State) -> dict[str, Any]:
    """The voices of every model, registered ones included."""
    found = [
        {"name": name, "speaker": speaker, "model": client.model}
        for client in state.engines
        if client.info is not None
        for name, speaker in client.voices
    ]
    return {"voices": found}


@get("/plugins")
async def plugins(state: State) -> dict[str, Any]:
    """What was found, and why a plugin cannot be used."""
    return {"plugins": [attrs.asdict(info) for info in state.engines.plugins.infos]}


@get("/metrics")
async def metrics(state: State) -> Response[bytes]:
    """The Prometheus text format."""
    return Response(state.engines.registry.exposition(), media_type=CONTENT_TYPE)
