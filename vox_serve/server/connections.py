"""Limits the number of open connections, in total and per client address.

When a new connection arrives and there is no room, the connection that has waited longest for a
request is closed, so that idle clients cannot keep others out.  If all connections are being
answered, the new one gets a spare place, which answers only health checks and metrics.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import resource
from collections import Counter, defaultdict
from enum import Enum, auto

from vox_serve.config import ServerConfig
from vox_serve.errors import ConfigError
from vox_serve.metrics import Metrics

MOST_CONNECTIONS = 4096
"""The limit if neither a flag nor the descriptor limit sets a lower one."""
FEWEST_CONNECTIONS = 64
RESERVED_DESCRIPTORS = 512
"""Reserved for files, pipes, spare places, and connections that are opening or closing."""
SPARE_PLACES = 32
BACKLOG = 64
"""Connections that asyncio accepts at a time, before we can refuse any."""
log = logging.getLogger("vox_serve.server")


class Place(Enum):
    """The place that a new connection gets."""

    OWN = auto()
    SPARE = auto()  # answers only health checks and metrics
    NONE = auto()


def raise_descriptor_limit(server: ServerConfig) -> None:
    """Raise this process's limit on open files to what the connections need, if allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = (server.max_connections or MOST_CONNECTIONS) + RESERVED_DESCRIPTORS
    if hard != resource.RLIM_INFINITY:
        needed = min(needed, hard)
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def most_connections(server: ServerConfig) -> int:
    """How many connections may be open.

    Raises:
        ConfigError: this process may not open enough files.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = server.max_connections or MOST_CONNECTIONS
    room = wanted if limit == resource.RLIM_INFINITY else limit - RESERVED_DESCRIPTORS
    if room < (server.max_connections or FEWEST_CONNECTIONS):
        needed = (server.max_connections or FEWEST_CONNECTIONS) + RESERVED_DESCRIPTORS
        raise ConfigError(
            f"max_connections: this process may open {limit} files and needs {needed}; "
            "raise the limit (ulimit -n, LimitNOFILE) or lower --max-connections"
        )
    return min(wanted, room)


class Connections:
    """The open connections of a server.

    Args:
        server: sets the limits.
        metrics: where to count them.

    Raises:
        ConfigError: as `most_connections`.
    """

    def __init__(self, server: ServerConfig, metrics: Metrics | None = None) -> None:
        self.most = most_connections(server)
        self.per_address = server.max_connections_per_address or max(1, self.most // 2)
        self._metrics = metrics
        self._addresses: dict[asyncio.BaseTransport, str] = {}
        self._of_address: Counter[str] = Counter()
        # Connections that wait for their client, longest first.
        self._waiting: dict[asyncio.BaseTransport, None] = {}
        self._waiting_of: defaultdict[str, dict[asyncio.BaseTransport, None]] = defaultdict(dict)

    def __len__(self) -> int:
        return len(self._addresses)

    def take(self, transport: asyncio.Transport) -> Place:
        """Find a place for a new connection; for NONE, the caller must close it."""
        address = _address(transport)
        if self._of_address[address] >= self.per_address:
            self._evict(self._waiting_of[address])
        if len(self) >= self.most:
            self._evict(self._waiting)
        full = len(self) >= self.most or self._of_address[address] >= self.per_address
        if full:
            log.warning(
                "no room for a connection of %s, which has %d of %d", address,
                self._of_address[address], len(self),
            )  # fmt: skip
            self._count("full")
        if len(self) >= self.most + SPARE_PLACES:
            self._forget(address)
            return Place.NONE
        self._addresses[transport] = address
        self._of_address[address] += 1
        self.waits(transport)
        self._show()
        return Place.SPARE if full else Place.OWN

    def waits(self, transport: asyncio.BaseTransport) -> None:
        """From now on, the connection waits for its client."""
        address = self._addresses.get(transport)
        if address is not None:
            self.works(transport)
            self._waiting[transport] = None
            self._waiting_of[address][transport] = None

    def works(self, transport: asyncio.BaseTransport) -> None:
        """A request is being answered; the connection must not be evicted."""
        self._waiting.pop(transport, None)
        self._waiting_of[self._addresses.get(transport, "")].pop(transport, None)

    def closed(self, transport: asyncio.BaseTransport) -> None:
        """The connection is closed; later calls do nothing."""
        if transport in self._addresses:
            self.works(transport)
            address = self._addresses.pop(transport)
            self._of_address[address] -= 1
            self._forget(address)
            self._show()

    def _evict(self, waiting: dict[asyncio.BaseTransport, None]) -> None:
        """Close the connection that has waited longest, if any."""
        oldest = next(iter(waiting), None)
        if oldest is not None:
            assert isinstance(oldest, asyncio.Transport)
            oldest.abort()
            self.closed(oldest)
            self._count("evicted")

    def _forget(self, address: str) -> None:
        """Delete the records of an address without connections."""
        if self._of_address[address] <= 0:
            del self._of_address[address]
            self._waiting_of.pop(address, None)
            self._waiting_of.pop("", None)

    def _count(self, reason: str) -> None:
        if self._metrics is not None:
            refused = self._metrics.connections_refused_total
            refused.labels(self._metrics.model, reason).inc()

    def _show(self) -> None:
        if self._metrics is not None:
            self._metrics.connections.labels(self._metrics.model).set(len(self))


def _address(transport: asyncio.BaseTransport) -> str:
    """The client's address; for IPv6 its /64 network, which usually belongs to one client."""
    peer = transport.get_extra_info("peername")
    address = str(peer[0]) if isinstance(peer, tuple) else ""
    if ":" in address and not address.startswith("::ffff:"):
        return str(ipaddress.ip_network((address.partition("%")[0], 64), strict=False))
    return address
