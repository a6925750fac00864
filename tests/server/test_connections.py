"""Connections are limited, in total and per address; silent ones are closed for new ones."""

from __future__ import annotations

import resource
import socket
from collections.abc import Callable
from contextlib import ExitStack
from urllib.parse import urlsplit

import httpx
import pytest

from tests.conftest import RunningServer, until
from tests.server.conftest import Gate, post_raw, read_stream, value
from tests.server.test_bad_requests import check_error
from vox_serve.config import ServerConfig
from vox_serve.errors import ConfigError
from vox_serve.server import connections
from vox_serve.server.connections import (
    RESERVED_DESCRIPTORS,
    SPARE_PLACES,
    Connections,
    most_connections,
    raise_descriptor_limit,
)

StartServer = Callable[..., RunningServer]
INFINITE = resource.RLIM_INFINITY


def connect(server: RunningServer, source: str = "127.0.0.1") -> socket.socket:
    address = urlsplit(server.url)
    where = (str(address.hostname), address.port or 0)
    return socket.create_connection(where, timeout=10, source_address=(source, 0))


def ask(server: RunningServer, path: str, source: str = "127.0.0.1") -> httpx.Response:
    """Send a request over a new connection from one of this machine's addresses."""
    transport = httpx.HTTPTransport(local_address=source)
    with httpx.Client(base_url=server.url, transport=transport) as client:
        if path == "/generate":
            return client.post(path, json={"text": "5"})
        return client.get(path)


def is_closed(connection: socket.socket) -> bool:
    connection.settimeout(0.0)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def test_silent_connections_do_not_keep_others_out(gate: Gate, start_server: StartServer) -> None:
    config = ServerConfig(port=0, max_connections=20, max_connections_per_address=20)
    server = start_server(server=config)
    gate.close()
    with ExitStack() as stack:
        running = stack.enter_context(post_raw(server, text="5", streaming=True, format="pcm"))
        until(lambda: server.client.open_requests == 1)
        silent = [stack.enter_context(connect(server)) for _ in range(60)]
        assert ask(server, "/health").status_code == 200
        assert ask(server, "/voices").status_code == 200
        until(lambda: sum(map(is_closed, silent)) >= 40)
        assert not is_closed(silent[-1]), "a newer one was closed"
        assert all(map(is_closed, silent[:20]))
        gate.open()
        assert len(read_stream(running)) == 5 * 1280, "an answer was cut"
    assert value(server, "connections_refused_total", reason="evicted") >= 40


@pytest.mark.parametrize(("most", "each"), [(6, 6), (50, 6)], ids=["all", "one address"])
def test_if_all_connections_are_busy_only_health_checks_are_answered(
    gate: Gate, start_server: StartServer, most: int, each: int
) -> None:
    config = ServerConfig(port=0, max_connections=most, max_connections_per_address=each)
    server = start_server(server=config)
    server.http.close()  # because it keeps a connection open
    gate.close()
    with ExitStack() as stack:
        running = [
            stack.enter_context(post_raw(server, text="5", streaming=True, format="pcm"))
            for _ in range(6)
        ]
        until(lambda: server.client.open_requests == 6)
        for path in ("/health", "/ready", "/metrics"):
            assert ask(server, path).status_code == 200
        refused = ask(server, "/generate")
        check_error(refused, 503, code="unavailable")
        assert refused.headers["Retry-After"] == "1"
        assert refused.headers["Connection"] == "close"
        with connect(server) as dialling:
            dialling.sendall(
                b"GET /v1/audio/stream HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n"
                b"Upgrade: websocket\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\n"
            )
            assert dialling.recv(4096).startswith(b"HTTP/1.1 503 ")
        spare = [stack.enter_context(connect(server)) for _ in range(2 * SPARE_PLACES)]
        assert ask(server, "/health").status_code == 200
        if most > each:  # other addresses have room
            until(lambda: ask(server, "/voices", "127.0.0.2").status_code == 200)
        else:
            until(lambda: sum(map(is_closed, spare)) >= SPARE_PLACES)
        gate.open()
        assert [len(read_stream(one)) for one in running] == [5 * 1280] * 6
    until(lambda: ask(server, "/generate").status_code == 200)


def test_a_websocket_counts_as_a_connection_until_it_closes(start_server: StartServer) -> None:
    from websockets.sync.client import connect as dial

    config = ServerConfig(port=0, max_connections=3, max_connections_per_address=3)
    server = start_server(server=config)
    server.http.close()
    url = server.url.replace("http", "ws") + "/v1/audio/stream"
    for _ in range(3):
        with dial(url) as one, dial(url) as two, dial(url) as three:
            for socket_ in (one, two, three):
                socket_.send('{"type": "start"}')
                assert "started" in str(socket_.recv(5))
            assert ask(server, "/voices").status_code == 503
        until(lambda: ask(server, "/voices").status_code == 200)


class Transport:
    """The part of a transport that `Connections` uses."""

    def __init__(self, address: str) -> None:
        self.address = address

    def get_extra_info(self, name: str) -> tuple[str, int]:
        return (self.address, 1)


def test_ipv6_addresses_are_counted_by_network_and_forgotten_at_the_end() -> None:
    bound = Connections(ServerConfig())
    near = [Transport("2001:db8::1"), Transport("2001:db8::2"), Transport("2001:db8:0:1::1")]
    for one in [*near, Transport("::ffff:1.2.3.4"), Transport("fe80::1%eth0")]:
        bound.take(one)  # type: ignore[arg-type]
    assert bound._of_address["2001:db8::/64"] == 2
    assert len(bound) == 5
    for transport in list(bound._addresses):
        bound.closed(transport)
        bound.closed(transport)
    assert len(bound) == 0
    assert not bound._of_address
    assert not bound._waiting_of


@pytest.mark.parametrize(
    ("soft", "hard", "flag", "raised", "most"),
    [
        (1024, 20_000, 0, 4608, 4096),
        (1024, INFINITE, 0, 4608, 4096),
        (INFINITE, INFINITE, 0, INFINITE, 4096),
        (1024, 1024, 0, 1024, 512),
        (1024, 2048, 1500, 2012, 1500),
        (65536, 65536, 50_000, 65536, 50_000),
    ],
)
def test_some_descriptors_are_reserved(
    soft: int, hard: int, flag: int, raised: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = [(soft, hard)]
    fake = {"getrlimit": lambda _: limits[-1], "setrlimit": lambda _, new: limits.append(new)}
    for name, function in fake.items():
        monkeypatch.setattr(connections.resource, name, function)
    server = ServerConfig(max_connections=flag)
    raise_descriptor_limit(server)
    assert limits[-1] == (raised, hard)
    assert most_connections(server) == most


@pytest.mark.parametrize(("limit", "flag"), [(1024, 4000), (256, 0), (1024, 513)])
def test_too_few_descriptors_are_reported(
    limit: int, flag: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections.resource, "getrlimit", lambda _: (limit, limit))
    with pytest.raises(ConfigError, match=r"max_connections: .* may open .* files") as caught:
        most_connections(ServerConfig(max_connections=flag))
    assert str((flag or 64) + RESERVED_DESCRIPTORS) in str(caught.value)
