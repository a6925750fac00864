"""The configuration file of a cluster; loads neither ray nor torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import attrs
import msgspec

from vox_serve.config import EngineConfig, ServerConfig
from vox_serve.errors import ConfigError

C = TypeVar("C")
REPLACED = ("on_worker_death", "unload_after", "api_key")
"""Settings of a server that a cluster does not have: Ray restarts and scales, and a key in this
file would be visible to everyone who can see the cluster's state."""


@attrs.frozen
class Scale:
    """How many replicas of an engine there are, and what each takes.

    Raises ConfigError for a bad value.

    Args:
        min_replicas, max_replicas: Ray adds replicas while requests wait for a slot, up to the
            second number, and removes idle ones down to the first.
        upscale_delay, downscale_delay: seconds for which the load must call for more or fewer
            replicas before Ray adds or removes them; Ray averages the load over the last 30 s.
        cpus, gpus: what Ray reserves for a replica on its node.
        resources: the same for custom resources of the cluster's nodes.
    """

    min_replicas: int = 1
    max_replicas: int = 1
    upscale_delay: float = 30.0
    downscale_delay: float = 600.0
    cpus: float = 1.0
    gpus: float = 0.0
    resources: Mapping[str, float] = attrs.field(factory=dict)

    def __attrs_post_init__(self) -> None:
        if not 1 <= self.min_replicas <= self.max_replicas <= 10_000:
            raise ConfigError("replicas must be: 1 <= min_replicas <= max_replicas <= 10000")
        for name in ("upscale_delay", "downscale_delay"):
            if not 0 <= getattr(self, name) <= 86_400:
                raise ConfigError(f"{name} must be from 0 to 86400 seconds")
        if not 0 <= self.cpus <= 1024:
            raise ConfigError("cpus must be from 0 to 1024")
        if not 0 <= self.gpus <= 64:
            raise ConfigError("gpus must be from 0 to 64")


@attrs.frozen
class ModelConfig:
    """One model of the cluster."""

    engine: EngineConfig
    scale: Scale


@attrs.frozen
class ClusterConfig:
    """The whole configuration.  Raises ConfigError for a bad value.

    Args:
        ingress: the number and resources of the replicas that serve HTTP.
    """

    models: tuple[ModelConfig, ...]
    server: ServerConfig = attrs.field(factory=ServerConfig)
    ingress: Scale = attrs.field(factory=Scale)

    def __attrs_post_init__(self) -> None:
        if not self.models:
            raise ConfigError("models must list at least one model")
        if self.ingress.gpus:
            raise ConfigError("ingress: gpus must be 0, because it runs no model")
        if self.server.port == 0:
            raise ConfigError("server: port must be from 1 to 65535 in a cluster")


def read_config(path: Path) -> ClusterConfig:
    """Read a YAML file.  Raises ConfigError, which names the file or the field."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read: {error}".replace("\n", " ")) from error
    return parse(content)


def parse(content: Any) -> ClusterConfig:
    """The configuration from what a YAML or JSON file contains.  Raises ConfigError."""
    fields = _mapping(content, "the configuration", ("models", "server", "ingress"))
    models = fields.get("models")
    if not isinstance(models, list):
        raise ConfigError("models must be a list")
    server = _mapping(fields.get("server"), "server", _names(ServerConfig))
    for name in REPLACED:
        if name in server:
            raise ConfigError(f"server: {name} cannot be set in a cluster")
    return ClusterConfig(
        tuple(_model(model, f"models[{index}]") for index, model in enumerate(models)),
        _convert(server, ServerConfig, "server"),
        _convert(_mapping(fields.get("ingress"), "ingress", _names(Scale)), Scale, "ingress"),
    )


def content_of(config: ClusterConfig) -> dict[str, Any]:
    """What `parse` reads: the settings that differ from their defaults, for JSON and YAML."""
    return {
        "models": [
            {"model": model.engine.model} | _given(model.engine) | _given(model.scale)
            for model in config.models
        ],
        "server": _given(config.server),
        "ingress": _given(config.ingress),
    }


def _given(settings: Any) -> dict[str, Any]:
    return {
        field.name: list(value) if isinstance(value, tuple) else value
        for field in attrs.fields(type(settings))
        if (value := getattr(settings, field.name)) not in (field.default, {})
    }


def _model(content: Any, place: str) -> ModelConfig:
    scale = _names(Scale)
    fields = _mapping(content, place, (*_names(EngineConfig), *scale))
    engine = {name: value for name, value in fields.items() if name not in scale}
    rest = {name: value for name, value in fields.items() if name in scale}
    model = ModelConfig(_convert(engine, EngineConfig, place), _convert(rest, Scale, place))
    if model.engine.device == "auto-all" or len(model.engine.workers()) > 1:
        raise ConfigError(
            f"{place}: replicas and several devices cannot be set in a cluster; set min_replicas, "
            "and the gpus of each"
        )
    return model


def _names(config: type[Any]) -> tuple[str, ...]:
    return tuple(field.name for field in attrs.fields(config))


def _mapping(content: Any, place: str, known: tuple[str, ...]) -> Mapping[str, Any]:
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{place} must be a mapping")
    for name in content:
        if name not in known:
            raise ConfigError(f"{place}: unknown field {str(name)[:100]!r}")
    return content


def _convert(content: Mapping[str, Any], config: type[C], place: str) -> C:
    try:
        return msgspec.convert(content, config)
    except (msgspec.ValidationError, ConfigError) as error:
        raise ConfigError(f"{place}: {error}") from error
