"""The engines of one server: one for each model, each with its own worker and slots."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from vox_serve.config import EngineConfig, ServerConfig
from vox_serve.errors import ConfigError, InvalidRequest, NotFound
from vox_serve.metrics import Metrics, Registry
from vox_serve.plugins import Plugins
from vox_serve.sampling import RANGES, Allowed
from vox_serve.text import Lexicon, read_lexicon, with_lexicon
from vox_serve.workers.adapter import AdapterClient
from vox_serve.workers.client import WorkerClient
from vox_serve.workers.devices import with_devices
from vox_serve.workers.interface import EngineClient, EngineState, VoiceTaker
from vox_serve.workers.link import AnyLink
from vox_serve.workers.reading import audio_jobs, text_jobs
from vox_serve.workers.sound import Postprocessing


class Engines:
    """Starts, ends and chooses engines.

    Args:
        configs: one for each model to serve.
        server: queue bound and time limits, of each engine.
        plugins: the installed plugins; broken ones are counted.
        in_thread: run the workers in threads of this process; for tests.
        link: makes the link to a model's engine; None starts a worker for each.

    Raises:
        UnknownModel, CheckpointError: a model's name cannot be resolved.
        ConfigError: two models would have the same name, or no plugin has this postprocessor.
    """

    def __init__(
        self,
        configs: Sequence[EngineConfig],
        server: ServerConfig,
        plugins: Plugins,
        *,
        in_thread: bool = False,
        link: Callable[[EngineConfig], AnyLink] | None = None,
    ) -> None:
        self.server = server
        self.created = int(time.time())
        self.plugins = plugins
        self.registry = Registry()
        self.own_parameters: dict[str, Allowed] = {}
        """Sampling parameters that only some of the models have."""
        self._clients: dict[str, EngineClient] = {}
        """By the names that requests use, those of adapters included."""
        self.texts, self.clips = text_jobs(in_thread), audio_jobs(in_thread)
        """Where texts and audio files are read."""
        self._postprocessing = None
        if server.postprocess is not None:
            what = plugins.postprocessor(server.postprocess)
            self._postprocessing = Postprocessing(what, in_thread)
        lexicon = read_lexicon(Path(server.lexicon)) if server.lexicon else Lexicon()
        for config in configs:
            resolved = plugins.resolve(config.model)
            name, front_end = resolved.name, resolved.front_end
            allowed = resolved.spec.parameters.allowed()
            self.own_parameters |= {n: a for n, a in allowed.items() if n not in RANGES}
            client = WorkerClient(
                with_devices(config),
                server,
                Metrics(name, self.registry),
                front_end=with_lexicon(front_end, lexicon),
                texts=self.texts,
                postprocessing=self._postprocessing,
                in_thread=in_thread,
                link=partial(link, config) if link is not None else None,
            )
            served: list[EngineClient] = [client]
            served += [AdapterClient(name, client) for name in config.adapters]
            for one in served:
                if one.model in self._clients:
                    raise ConfigError(f"two models would have the name {one.model!r}")
                self._clients[one.model] = one
        (only, *others) = self
        self.metrics = only.metrics if not others else Metrics("", self.registry)
        """Metrics for events that belong to no engine; with one engine, its own."""
        self.registry.watch_process(self.metrics.model, "server", os.getpid())
        for broken in plugins.broken:
            self.metrics.plugin_errors_total.labels(self.metrics.model, broken.name).inc()

    def __iter__(self) -> Iterator[EngineClient]:
        return (client for client in self._clients.values() if client.base is client)

    @property
    def models(self) -> list[EngineClient]:
        """All models that requests can choose: the engines and their adapters."""
        return list(self._clients.values())

    @property
    def loaded(self) -> list[EngineClient]:
        """All loaded models that requests can choose."""
        return [client for client in self.models if client.info is not None]

    def choose(self, model: str | None) -> EngineClient:
        """The engine of a request: by the model's name, or by its kind if only one has it.

        `None` selects the only engine, without an adapter.

        Raises:
            NotFound: no model has this name, or several have this kind.
            InvalidRequest: `model` is None, and there are several engines.
        """
        if model in self._clients:
            return self._clients[model]
        if model is None:
            fits = list(self)
        else:
            fits = [c for c in self if c.info is not None and c.info.kind == model]
        if len(fits) == 1:
            return fits[0]
        names = ", ".join(self._clients)
        if model is None:
            raise InvalidRequest(f"model is required: this server has {names}", "model")
        problem = "ambiguous" if fits else "unknown"
        raise NotFound(f"{problem} model {model[:200]!r}: this server has {names}", "model")

    @property
    def state(self) -> EngineState:
        """The worst state of any engine."""
        return max((client.state for client in self), key=list(EngineState).index)

    def watch(self, listener: Callable[[EngineClient], None]) -> None:
        """Call `listener` in the event loop with each engine whose state changes."""
        for client in self:
            client.on_change = listener

    def prepare(self, work: Callable[[VoiceTaker], Awaitable[None]]) -> None:
        """Await `work` for each worker after it loads and before it is ready."""
        for client in self:
            client.before_ready = work

    async def start(self) -> None:
        """Start the workers; returns at once, while the models are still loading."""
        for client in self:
            await client.start()
            client.reader.warm_up()
        if self._postprocessing is not None:
            self._postprocessing.warm_up()

    def drain(self) -> None:
        """Accept no more requests; open ones continue."""
        for client in self:
            client.drain()

    async def stop(self) -> None:
        """End the workers, gently first; open requests fail."""
        await asyncio.gather(*(client.stop() for client in self))
        self.texts.close()
        self.clips.close()
        if self._postprocessing is not None:
            self._postprocessing.close()
