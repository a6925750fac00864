"""Health, readiness, models, voices, plugins and metrics."""

from __future__ import annotations

from typing import Any

import attrs
from litestar import Response, get
from litestar.di import NamedDependency
from litestar.openapi import ResponseSpec
from litestar.openapi.spec import OpenAPIMediaType, Schema
from litestar.openapi.spec.enums import OpenAPIType

from vox_serve.metrics import CONTENT_TYPE
from vox_serve.server import replies
from vox_serve.server.access.middleware import METRICS, OPEN, READ, access
from vox_serve.server.openapi.operation import described
from vox_serve.server.owner import Owner
from vox_serve.server.voices.registry import Voices
from vox_serve.workers.engines import Engines
from vox_serve.workers.interface import ACCEPTING, EngineClient, EngineState, ReplicaState

DOWN = (EngineState.DEAD, EngineState.RESTARTING)
TEXT = {CONTENT_TYPE: OpenAPIMediaType(schema=Schema(type=OpenAPIType.STRING))}


@get(
    "/health",
    tags=["server"],
    opt=access(OPEN),
    operation_class=described(403),
    responses={503: ResponseSpec(replies.Health, False, "An engine is dead or being restarted")},
)
async def health(
    engines: NamedDependency[Engines], registered: NamedDependency[Voices]
) -> Response[replies.Health]:
    """The server's health: 503 while an engine is dead or being restarted, else 200."""
    body = replies.Health(
        status=engines.state.value,
        models=[_health(client) for client in engines],
        broken_plugins={info.name: info.error or "" for info in engines.plugins.broken},
        broken_voices=registered.broken,
    )
    down = any(client.state in DOWN for client in engines)
    return Response(body, status_code=503 if down else 200)


def _health(client: EngineClient) -> replies.ModelHealth:
    body = replies.ModelHealth(
        model=client.model,
        status=client.state.value,
        running=client.stats.running,
        waiting=client.stats.waiting,
        slots=client.info.num_slots if client.info else 0,
        replicas=[_replica_health(replica) for replica in client.replicas],
    )
    if client.failure is not None:
        body.reason = client.failure
    return body


def _replica_health(replica: ReplicaState) -> replies.ReplicaHealth:
    body = replies.ReplicaHealth(
        replica=replica.number,
        status=replica.state.value,
        running=replica.stats.running,
        waiting=replica.stats.waiting,
        slots=replica.info.num_slots if replica.info else 0,
    )
    if replica.info is not None:
        body.device = replica.info.device
    if replica.failure is not None:
        body.reason = replica.failure
    return body


@get(
    "/ready",
    tags=["server"],
    opt=access(OPEN),
    operation_class=described(403),
    responses={503: ResponseSpec(replies.Readiness, False, "Requests are not accepted")},
)
async def ready(engines: NamedDependency[Engines]) -> Response[replies.Readiness]:
    """Readiness: 200 while every model accepts requests, else 503."""
    found = engines.state
    status = 200 if found in ACCEPTING else 503
    headers = {} if status == 200 else {"Retry-After": "5"}
    body = replies.Readiness(status=found.value)
    return Response(body, status_code=status, headers=headers)


@get("/models", tags=["models"], opt=access(READ), operation_class=described(401, 403))
async def models(
    engines: NamedDependency[Engines], owner: NamedDependency[Owner]
) -> replies.LoadedModels:
    """The loaded models, with their sizes, limits, voices and sampling defaults."""
    return replies.LoadedModels(models=[_loaded(client, owner) for client in engines.loaded])


def _loaded(client: EngineClient, owner: Owner) -> Any:
    assert client.info is not None
    facts = attrs.asdict(client.info, recurse=False)
    name = facts.pop("model")
    facts["voices"] = [
        replies.NamedSpeaker(name=name, speaker=speaker)
        for name, _, speaker in owner.seen(client.voices)
    ]
    return replies.LoadedModel(name=name, **facts)


@get("/voices", tags=["voices"], opt=access(READ), operation_class=described(401, 403))
async def voices(
    engines: NamedDependency[Engines], owner: NamedDependency[Owner]
) -> replies.VoiceNames:
    """The voices of every model, including registered ones."""
    found = [
        replies.VoiceName(name=name, speaker=speaker, model=client.model)
        for client in engines.loaded
        for name, _, speaker in owner.seen(client.voices)
    ]
    return replies.VoiceNames(voices=found)


@get("/plugins", tags=["server"], opt=access(READ), operation_class=described(401, 403))
async def plugins(engines: NamedDependency[Engines]) -> replies.Plugins:
    """The plugins that were found, with the reasons why some cannot be used."""
    return replies.Plugins(plugins=list(engines.plugins.infos))


@get(
    "/metrics",
    tags=["server"],
    opt=access(METRICS),
    operation_class=described(401, 403, 429, content=TEXT),
)
async def metrics(engines: NamedDependency[Engines]) -> Response[bytes]:
    """The metrics in the Prometheus text format."""
    return Response(engines.registry.exposition(), media_type=CONTENT_TYPE)
