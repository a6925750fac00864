"""python -m vox_serve.launch: reads flags and runs a server."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import multiprocessing
import signal
import socket
import sys
from collections.abc import Sequence
from types import FrameType

import attrs
import uvicorn

from vox_serve import __version__
from vox_serve.config import EngineConfig, ServerConfig
from vox_serve.errors import ConfigError, VoxServeError
from vox_serve.flags import Parser, add_flags, read_flags
from vox_serve.logs import configure
from vox_serve.messages import EngineInfo
from vox_serve.plugins import load_plugins
from vox_serve.server import traces
from vox_serve.server.access.keys import Keys
from vox_serve.server.access.sites import is_loopback
from vox_serve.server.app import create_app
from vox_serve.server.connections import raise_descriptor_limit
from vox_serve.server.protocol import uvicorn_settings
from vox_serve.workers.devices import require_room
from vox_serve.workers.engines import Engines
from vox_serve.workers.interface import EngineClient, EngineState

DEATH_NOTICE_SECONDS = 3.0
"""How long a server whose engine died answers 503 before it exits."""
QUEUED_CONNECTIONS = 2048
"""How many new connections the kernel queues while the event loop is busy."""
log = logging.getLogger("vox_serve.launch")


class Server(uvicorn.Server):
    """A uvicorn server that drains the engines before shutdown, and exits when one dies."""

    def __init__(self, config: uvicorn.Config, engines: Engines, keys: Keys, address: str) -> None:
        super().__init__(config)
        self._keys = keys
        self.exit_code = 0
        self._engines = engines
        self._address = address
        self._announced = False
        engines.watch(self._engine_changed)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(QUEUED_CONNECTIONS)
        if self._engines.server.api_keys_file is not None:
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGHUP, self._keys.reload)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._engines.drain()
        await super().shutdown(sockets)

    def _engine_changed(self, client: EngineClient) -> None:
        if client.state is EngineState.READY:
            if self._engines.state is EngineState.READY and not self._announced:
                self._announced = True
                self._announce()
        elif client.state is EngineState.DEAD and not self.should_exit:
            self.exit_code = 1
            log.error("%s: %s", client.model, client.failure)
            notice = DEATH_NOTICE_SECONDS if client.info is not None else 0.0
            asyncio.get_running_loop().call_later(notice, self._exit)

    def _announce(self) -> None:
        """Announce the server's address, to a person or in the JSON log."""
        if self._engines.server.log_format == "json":
            log.info("ready", extra={"fields": {"address": self._address}})
        else:
            print(banner(self._engines.models, self._address), flush=True)

    def _exit(self) -> None:
        self.should_exit = True


def banner(clients: Sequence[EngineClient], address: str) -> str:
    """The text that is printed when the server is ready."""
    lines = [f"vox_serve {__version__}"]
    bases = [client for client in clients if client.base is client]
    infos = [client.info for client in bases if client.info is not None]
    for client, info in zip(bases, infos, strict=True):
        adapters = ", ".join(one.model for one in clients if one.base is client is not one)
        lines += [*_describe(info, client.voices), *_replicas(client)]
        lines += [*([f"  adapters  {adapters}"] if adapters else []), ""]
    ready = max(info.load_seconds for info in infos)
    model = f', "model": "{infos[-1].model}"' if len(infos) > 1 else ""
    lines += [
        f"  address   {address}  (ready after {ready:.1f} s)",
        "",
        f"  curl -X POST {address}/generate -H 'Content-Type: application/json' \\",
        f'       -d \'{{"text": "Hello there!", "speaker": 0{model}}}\' -o output.wav',
    ]
    return "\n".join(lines)


def _replicas(client: EngineClient) -> list[str]:
    if len(client.replicas) == 1:
        return []
    devices = [replica.info.device for replica in client.replicas if replica.info is not None]
    return [f"  replicas  {len(devices)}, on {', '.join(devices)}"]


def _describe(info: EngineInfo, names: Sequence[tuple[str, int]]) -> list[str]:
    mib = 2**20
    given = [(name, value) for name, value in info.sampling.items() if value not in (None, "")]
    sampling = [f"{n} {v if isinstance(v, str) else format(v, 'g')}" for n, v in given]
    voices = ", ".join(f"{name} ({speaker})" for name, speaker in names)
    return [
        f"  model     {info.model} ({info.kind}){': ' + info.summary if info.summary else ''}",
        f"  device    {info.device}, {info.dtype}, torch {info.torch_version}",
        f"  memory    {info.weight_bytes / mib:.0f} MiB of weights, "
        f"{info.cache_bytes / mib:.0f} MiB of cache for {info.num_slots} slots",
        f"  voices    {voices}",
        f"  sampling  {', '.join(sampling)}",
    ]


def run(configs: Sequence[EngineConfig], server: ServerConfig) -> int:
    """Serve a model for each configuration until a signal; returns the exit code.

    Raises:
        VoxServeError: a model is unknown or the address cannot be used.
    """
    configure(server.log)
    if server.traces:
        traces.start()
    engines = Engines(configs, server, load_plugins(configs[0].plugins))
    require_room(configs)
    keys = Keys(server)
    warn_if_open(server, keys)
    raise_descriptor_limit(server)
    listener = listen(server)
    config = uvicorn.Config(
        create_app(engines, keys),
        **uvicorn_settings(server, engines.metrics),
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=max(1, round(server.shutdown_timeout)),
    )
    port = listener.getsockname()[1]
    host = f"[{server.host}]" if ":" in server.host else server.host
    uvicorn_server = Server(config, engines, keys, f"http://{host}:{port}")
    # uvicorn raises a caught signal again after it has shut down.  With these handlers, the process
    # then ends with our exit code instead of being killed by the signal.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _ignore)
    # Keep the collector from scanning permanent objects: that delayed every client by about 50 ms.
    gc.collect()
    gc.freeze()
    uvicorn_server.run(sockets=[listener])
    # A second Ctrl-C cancels the gentle end of the workers; Python would wait for them at exit.
    for worker in multiprocessing.active_children():
        worker.kill()
    return uvicorn_server.exit_code


def warn_if_open(server: ServerConfig, keys: Keys) -> None:
    """Warn if other machines can use the server without a key."""
    if not keys.required and not is_loopback(server.host):
        log.warning(
            "anyone who can reach %s may use this server, because it has no keys: see "
            "--api-keys-file, or listen on 127.0.0.1",
            server.host,
        )


def listen(server: ServerConfig) -> socket.socket:
    """Bind the address.  Raises ConfigError if that fails."""
    family = socket.AF_INET6 if ":" in server.host else socket.AF_INET
    both = server.host == "::" and socket.has_dualstack_ipv6()  # every interface, including IPv4
    try:
        listener = socket.create_server(
            (server.host, server.port),
            family=family,
            backlog=QUEUED_CONNECTIONS,
            dualstack_ipv6=both,
        )
    except OSError as error:
        raise ConfigError(f"cannot listen on {server.host}:{server.port}: {error}") from error
    # Accepted sockets inherit this.  asyncio sets it only if the socket's protocol is not 0, but
    # here it is 0.  Without it, audio waits up to 40 ms for earlier data to be acknowledged.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # Accepted sockets inherit this too: the kernel drops a client that never reads.
        milliseconds = round(server.send_timeout * 1000)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
    return listener


def _ignore(number: int, frame: FrameType | None) -> None:
    pass


def parser(prog: str) -> Parser:
    made = Parser(prog=prog, description="Serve a text-to-speech model over HTTP.")
    several = "Give --model again to serve several; the other flags here count for each of them."
    add_flags(made.add_argument_group("model", several), EngineConfig, repeated=("model",))
    add_flags(made.add_argument_group("server"), ServerConfig)
    return made


def read_engines(arguments: argparse.Namespace) -> list[EngineConfig]:
    """A configuration for each --model.  Raises ConfigError or InvalidRequest."""
    given = {**vars(arguments), "model": None}
    common = read_flags(argparse.Namespace(**given), EngineConfig)
    names = arguments.model or [common.model]
    if common.adapter and len(names) > 1:
        raise ConfigError("adapter: it belongs to one model; give a single --model with it")
    return [attrs.evolve(common, model=name) for name in names]


def main(argv: Sequence[str] | None = None, prog: str = "python -m vox_serve.launch") -> int:
    arguments = parser(prog).parse_args(argv)
    try:
        return run(read_engines(arguments), read_flags(arguments, ServerConfig))
    except VoxServeError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # while plugins load, before the server installs its handlers
        return 0


if __name__ == "__main__":
    sys.exit(main())
