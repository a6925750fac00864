"""python -m vox_serve.launch: flags to configuration to a running server."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Sequence
from types import FrameType

import uvicorn

from vox_serve import __version__
from vox_serve.config import EngineConfig, ServerConfig
from vox_serve.engine.client import EngineClient, EngineState
from vox_serve.engine.messages import EngineInfo
from vox_serve.errors import ConfigError, VoxServeError
from vox_serve.flags import Parser, add_flags, read_flags
from vox_serve.metrics import Metrics
from vox_serve.plugins import load_plugins
from vox_serve.server.app import create_app

DEATH_NOTICE_SECONDS = 3.0
"""How long a server whose engine died answers 503 before it exits."""
log = logging.getLogger("vox_serve.launch")


class Server(uvicorn.Server):
    """uvicorn that drains the engine first, and ends when the engine does."""

    def __init__(self, config: uvicorn.Config, client: EngineClient, address: str) -> None:
        super().__init__(config)
        self.exit_code = 0
        self._client = client
        self._address = address
        client.on_change = self._engine_changed

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._client.drain()
        await super().shutdown(sockets)

    def _engine_changed(self, state: EngineState) -> None:
        info = self._client.info
        if state is EngineState.READY and info is not None:
            print(banner(info, self._address), flush=True)
        elif state is EngineState.DEAD and not self.should_exit:
            self.exit_code = 1
            log.error("%s", self._client.failure)
            notice = DEATH_NOTICE_SECONDS if info is not None else 0.0
            asyncio.get_running_loop().call_later(notice, self._exit)

    def _exit(self) -> None:
        self.should_exit = True


def banner(info: EngineInfo, address: str) -> str:
    """What a person sees when the server is ready."""
    mib = 2**20
    sampling = info.sampling
    voices = ", ".join(f"{name} ({speaker})" for name, speaker in info.voices)
    lines = [
        f"vox_serve {__version__}",
        f"  model     {info.model} ({info.kind}){': ' + info.summary if info.summary else ''}",
        f"  device    {info.device}, {info.dtype}, torch {info.torch_version}",
        f"  memory    {info.weight_bytes / mib:.0f} MiB of weights, "
        f"{info.cache_bytes / mib:.0f} MiB of cache for {info.num_slots} slots",
        f"  voices    {voices}",
        f"  sampling  temperature {sampling.temperature:g}, top_k {sampling.top_k}, "
        f"top_p {sampling.top_p:g}",
        f"  address   {address}  (ready after {info.load_seconds:.1f} s)",
        "",
        f"  curl -X POST {address}/generate -H 'Content-Type: application/json' \\",
        '       -d \'{"text": "Hello there!", "speaker": 0}\' -o output.wav',
    ]
    return "\n".join(lines)


def run(engine: EngineConfig, server: ServerConfig) -> int:
    """Serve until a signal; returns the exit code.

    Raises:
        VoxServeError: the model is unknown or the address cannot be used.
    """
    logging.basicConfig(
        level=server.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    plugins = load_plugins(engine.plugins)
    metrics = Metrics(plugins.resolve(engine.model).name)
    for broken in plugins.broken:
        metrics.plugin_errors_total.labels(metrics.model, broken.name).inc()
    client = EngineClient(engine, server, metrics)
    listener = listen(server)
    config = uvicorn.Config(
        create_app(client, plugins),
        http="httptools",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=max(1, round(server.shutdown_timeout)),
    )
    port = listener.getsockname()[1]
    host = f"[{server.host}]" if ":" in server.host else server.host
    uvicorn_server = Server(config, client, f"http://{host}:{port}")
    # uvicorn raises a caught signal again once it has shut down; with these in place that
    # ends in our exit code instead of death by signal.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _ignore)
    uvicorn_server.run(sockets=[listener])
    return uvicorn_server.exit_code


def listen(server: ServerConfig) -> socket.socket:
    """Bind the address.  Raises ConfigError if that cannot be done."""
    family = socket.AF_INET6 if ":" in server.host else socket.AF_INET
    try:
        listener = socket.create_server((server.host, server.port), family=family, backlog=2048)
    except OSError as error:
        raise ConfigError(f"cannot listen on {server.host}:{server.port}: {error}") from error
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # Accepted sockets inherit it: the kernel drops a client that never reads.
        milliseconds = round(server.send_timeout * 1000)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
    return listener


def _ignore(number: int, frame: FrameType | None) -> None:
    pass


def parser(prog: str) -> Parser:
    made = Parser(prog=prog, description="Serve a text-to-speech model over HTTP.")
    add_flags(made.add_argument_group("model"), EngineConfig)
    add_flags(made.add_argument_group("server"), ServerConfig)
    return made


def main(argv: Sequence[str] | None = None, prog: str = "python -m vox_serve.launch") -> int:
    arguments = parser(prog).parse_args(argv)
    try:
        engine = read_flags(arguments, EngineConfig)
        return run(engine, read_flags(arguments, ServerConfig))
    except VoxServeError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before the server has its own handlers: while plugins load
        return 0


if __name__ == "__main__":
    sys.exit(main())
