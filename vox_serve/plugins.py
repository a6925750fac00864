"""Finds the installed plugins, and the model that a name refers to.

Plugins are loaded one by one.  A broken one is logged and listed with its error, and
never keeps the others from working.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import attrs
import pluggy

from vox_serve import hookspecs, hub
from vox_serve.errors import ConfigError, PluginError, UnknownModel
from vox_serve.model import API_VERSION, CheckpointSpec, ModelSpec
from vox_serve.postprocess import Postprocessor
from vox_serve.text import FrontEnd

GROUP = "vox_serve"
log = logging.getLogger("vox_serve.plugins")


@attrs.frozen
class PluginInfo:
    """One plugin as `vox-serve plugins` shows it; `error` is None when it works."""

    name: str
    version: str | None
    models: tuple[str, ...] = ()
    checkpoints: tuple[str, ...] = ()
    postprocess: tuple[str, ...] = ()
    error: str | None = None


@attrs.frozen
class ResolvedModel:
    """What `--model NAME` resolved to.

    `name` is what clients and metrics see: the alias, the hub id, or a directory's last part.
    """

    name: str
    spec: ModelSpec
    source: str
    checkpoint: CheckpointSpec | None = None

    @property
    def front_end(self) -> FrontEnd | None:
        """Normalizes a text before it is spoken."""
        own = self.checkpoint.front_end if self.checkpoint is not None else None
        return own or self.spec.front_end

    @property
    def languages(self) -> tuple[str, ...]:
        """Tags of the languages that it speaks."""
        own = self.checkpoint.languages if self.checkpoint is not None else ()
        return own or self.spec.languages

    def directory(self) -> Path:
        """The checkpoint on disk; downloads it if it is on the hub.  Raises CheckpointError."""
        files = self.spec.files
        return hub.fetch(
            self.source, files(hub.read_config(self.source)) if callable(files) else files
        )


@attrs.define
class Plugins:
    """The plugins that were found, and what they offer."""

    infos: list[PluginInfo] = attrs.field(factory=list)
    models: dict[str, ModelSpec] = attrs.field(factory=dict)
    checkpoints: dict[str, CheckpointSpec] = attrs.field(factory=dict)
    postprocess: dict[str, Postprocessor] = attrs.field(factory=dict)

    @property
    def broken(self) -> list[PluginInfo]:
        return [info for info in self.infos if info.error is not None]

    def resolve(self, name: str) -> ResolvedModel:
        """Find the model that `name` means: an alias, a directory or a hub id.

        Raises:
            UnknownModel: no plugin serves it; lists the known models.
            CheckpointError: its `config.json` cannot be read.
        """
        checkpoint = self._checkpoint(name)
        source = checkpoint.source if checkpoint else name
        spec = self._spec(source)
        if checkpoint is not None:
            name = checkpoint.alias
        elif os.path.isdir(name):
            name = Path(name).resolve().name
        if checkpoint is None and spec.max_characters is not None:
            checkpoint = CheckpointSpec(name, source, "", max_characters=spec.max_characters)
        return ResolvedModel(name, spec, source, checkpoint)

    def postprocessor(self, name: str) -> Postprocessor:
        """The postprocessor with this name.  Raises ConfigError, which lists the known ones."""
        if name not in self.postprocess:
            known = ", ".join(self.postprocess) or "none"
            raise ConfigError(f"postprocess {name!r} is unknown; the plugins offer: {known}")
        return self.postprocess[name]

    def _checkpoint(self, name: str) -> CheckpointSpec | None:
        """The checkpoint of this alias, or the one whose files are in this directory."""
        if name in self.checkpoints or not os.path.isdir(name):
            return self.checkpoints.get(name)
        for checkpoint in self.checkpoints.values():
            if os.path.isdir(checkpoint.source) and os.path.samefile(checkpoint.source, name):
                return checkpoint
        return None

    def _spec(self, source: str) -> ModelSpec:
        for spec in self.models.values():
            if hub.split(source)[0] in spec.hub_ids:
                return spec
        if os.path.isdir(source) or hub.is_hub_id(source):
            return self._matching(source)
        raise UnknownModel(f"unknown model {source!r}: no such alias or directory; {self._known()}")

    def _matching(self, source: str) -> ModelSpec:
        if os.path.isdir(source):
            held = [spec for spec in self.models.values() if spec.holds(Path(source))]
            if len(held) == 1:
                return held[0]
        config = hub.read_config(source)
        fits = [spec for spec in self.models.values() if _matches(spec, config)]
        if len(fits) == 1:
            return fits[0]
        kind = f"model_type {config.get('model_type')!r}"
        if not fits:
            raise UnknownModel(f"{source}: no plugin serves {kind}; {self._known()}")
        names = ", ".join(spec.name for spec in fits)
        raise UnknownModel(f"{source}: several plugins claim {kind}: {names}")

    def _known(self) -> str:
        hub_ids = (hub_id for spec in self.models.values() for hub_id in spec.hub_ids)
        known = ", ".join([*self.checkpoints, *hub_ids]) or "none"
        hint = f" (broken plugins: {', '.join(b.name for b in self.broken)})" if self.broken else ""
        return f"known models: {known}{hint}"


def load_plugins(
    extra_modules: Iterable[str] = (), points: Iterable[EntryPoint] | None = None
) -> Plugins:
    """Load every installed plugin that the environment does not exclude.

    VOX_SERVE_PLUGINS names the only entry points to load, VOX_SERVE_BLOCK_PLUGINS those not to
    load; both separate names by commas.

    Args:
        extra_modules: names of further modules to load as plugins, for development.
        points: entry points to load; those of the installed distributions by default.
    """
    found = Plugins()
    for point in entry_points(group=GROUP) if points is None else points:
        if not _allowed(point.name):
            log.debug("plugin %s is not loaded: the environment excludes it", point.name)
            continue
        version = point.dist.version if point.dist is not None else None
        _load(found, point.name, version, point.load)
    for module in extra_modules:
        _load(found, module, None, partial(importlib.import_module, module))
    return found


def _allowed(name: str) -> bool:
    allowed, blocked = (_listed(key) for key in ("VOX_SERVE_PLUGINS", "VOX_SERVE_BLOCK_PLUGINS"))
    return name not in blocked and (not allowed or name in allowed)


def _matches(spec: ModelSpec, config: Mapping[str, Any]) -> bool:
    try:
        return spec.matches(config)
    except Exception:
        log.exception("the plugin of %s cannot look at this checkpoint", spec.name)
        return False


def _listed(variable: str) -> set[str]:
    return {name.strip() for name in os.environ.get(variable, "").split(",") if name.strip()}


def _load(found: Plugins, name: str, version: str | None, load: Callable[[], Any]) -> None:
    try:
        info, models, checkpoints, postprocess = _inspect(found, name, version, load())
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001  # a plugin may fail in any way, SystemExit too
        reason = f"{type(error).__name__}: {error}"
        log.error("plugin %s cannot be used: %s", name, reason)
        found.infos.append(PluginInfo(name, version, error=reason))
        return
    found.infos.append(info)
    found.models.update({spec.name: spec for spec in models})
    found.checkpoints.update({spec.alias: spec for spec in checkpoints})
    found.postprocess.update({one.name: one for one in postprocess})


def _inspect(
    found: Plugins, name: str, version: str | None, module: Any
) -> tuple[PluginInfo, list[ModelSpec], list[CheckpointSpec], list[Postprocessor]]:
    """Ask one plugin what it offers.

    Each plugin gets a separate manager, because a shared one calls the hook of all plugins at once,
    raises the first error, and rejects a second distribution with the same entry point name.
    """
    manager = pluggy.PluginManager("vox_serve")
    manager.add_hookspecs(hookspecs)
    manager.register(module, name)
    manager.check_pending()
    models = [spec for specs in manager.hook.vox_serve_models() for spec in specs]
    checkpoints = [spec for specs in manager.hook.vox_serve_checkpoints() for spec in specs]
    postprocess = [one for several in manager.hook.vox_serve_postprocess() for one in several]
    for model in models:
        if model.api_version != API_VERSION:
            raise PluginError(
                f"model {model.name!r} is written for plugin interface {model.api_version}; this "
                f"vox_serve has {API_VERSION}: upgrade "
                + ("the plugin" if model.api_version < API_VERSION else "vox-serve-core")
            )
        if model.name in found.models:
            raise PluginError(f"another plugin offers a model named {model.name!r}")
    for checkpoint in checkpoints:
        if checkpoint.alias in found.checkpoints:
            raise PluginError(f"another plugin offers the alias {checkpoint.alias!r}")
    for one in postprocess:
        if one.name in found.postprocess:
            raise PluginError(f"another plugin offers a postprocess named {one.name!r}")
    info = PluginInfo(
        name,
        version,
        tuple(spec.name for spec in models),
        tuple(spec.alias for spec in checkpoints),
        tuple(one.name for one in postprocess),
    )
    return info, models, checkpoints, postprocess
