"""Which web pages may use the server, and under which host names.

A browser lets any page send requests to any address that the browser can reach, including this one.
Plain POST requests and WebSockets need no permission; the browser only hides a POST's response from
the page.  So routes that change or cost something check the request's origin.  A page can also make
its own host name resolve to this address (DNS rebinding), so that it has the same origin as this
server; therefore the Host header is checked too.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit

from vox_serve.config import ServerConfig
from vox_serve.server.errors import Forbidden

HTTP_SITES = ("cross-site", "same-site")
"""Values of Sec-Fetch-Site that mean a page of another origin."""


class Sites:
    """The origins and host names that a server allows.

    Args:
        server: lists them.
    """

    def __init__(self, server: ServerConfig) -> None:
        self._http = frozenset(map(str.lower, server.cors_origin))
        self._websocket = self._http | frozenset(map(str.lower, server.ws_origin))
        self._hosts = frozenset(_bare(host) for host in server.allowed_hosts)
        self._local = not self._hosts and is_loopback(server.host)
        self._bound = _bare(server.host)

    def check_host(self, headers: Mapping[str, str]) -> None:
        """Raise Forbidden if the Host header has a name that is not allowed."""
        given = headers.get("host", "")
        host = _bare(_without_port(given))
        if not self._hosts and not self._local:
            return
        if not given or (self._is_local(host) if self._local else self._is_listed(host)):
            return
        raise Forbidden(f"this server does not go by the name {host[:200]!r}; see --allowed-hosts")

    def check_origin(self, headers: Mapping[str, str], websocket: bool = False) -> None:
        """Raise Forbidden if the request comes from a web page whose origin is not allowed.

        Programs other than browsers do not send Origin.
        """
        allowed = self._websocket if websocket else self._http
        origin = headers.get("origin")
        if "*" in allowed or (origin is not None and origin.lower() in allowed):
            return
        if origin is None:
            # Browsers send no Origin when a page only embeds or links to an address.
            foreign = headers.get("sec-fetch-site") in HTTP_SITES
        else:
            foreign = _site(origin) != headers.get("host", "").lower()
        if foreign:
            flag = "--cors-origin or --ws-origin" if websocket else "--cors-origin"
            raise Forbidden(f"a page of another origin may not do this; see {flag}")

    def _is_local(self, host: str) -> bool:
        """Whether no outsider can make this name resolve to this server.

        That needs a domain, so names with a single label are safe, and so are addresses.
        """
        return (
            "." not in host
            or host.endswith(".localhost")
            or host == self._bound
            or _is_address(host)
        )

    def _is_listed(self, host: str) -> bool:
        return (
            "*" in self._hosts
            or host in self._hosts
            or any(host.endswith(one[1:]) for one in self._hosts if one.startswith("*."))
        )


def is_loopback(host: str) -> bool:
    """Whether a server that listens on this host can be reached only from its own machine."""
    try:
        return ipaddress.ip_address(_bare(host)).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() and (":" not in name or name.endswith("]")) else host


def _bare(host: str) -> str:
    """Normalise a host for comparison: lower case, no brackets, no final dot."""
    return host.strip().lower().removeprefix("[").removesuffix("]").removesuffix(".")


def _site(origin: str) -> str:
    """The `host:port` of an origin; "?", which matches no host, if it has none."""
    try:
        return urlsplit(origin).netloc.lower() or "?"
    except ValueError:
        return "?"


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
