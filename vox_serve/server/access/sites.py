"""Which web pages may use the server, and by which host names.

A browser lets any page send requests to any address that the browser can reach, this one included:
plain POST requests and WebSockets need nobody's leave, only the answer is kept from the page.  So
everything that changes or costs something asks where the request comes from.  A page can also make
its own name resolve to this address (DNS rebinding) and is then at home here; that is why the name
in the Host header counts, too.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit

from vox_serve.config import ServerConfig
from vox_serve.server.errors import Forbidden

HTTP_SITES = ("cross-site", "same-site")
"""Values of Sec-Fetch-Site that stand for a page of another origin."""


class Sites:
    """The origins and host names that a server allows.

    Args:
        server: names them.
    """

    def __init__(self, server: ServerConfig) -> None:
        self._http = frozenset(map(str.lower, server.cors_origin))
        self._websocket = self._http | frozenset(map(str.lower, server.ws_origin))
        self._hosts = frozenset(_bare(host) for host in server.allowed_hosts)
        self._local = not self._hosts and is_loopback(server.host)
        self._bound = _bare(server.host)

    def check_host(self, headers: Mapping[str, str]) -> None:
        """Raise Forbidden if the Host header holds a name that is not allowed."""
        given = headers.get("host", "")
        host = _bare(_without_port(given))
        if not self._hosts and not self._local:
            return
        if not given or (self._is_local(host) if self._local else self._is_listed(host)):
            return
        raise Forbidden(f"this server does not go by the name {host[:200]!r}; see --allowed-hosts")

    def check_origin(self, headers: Mapping[str, str], websocket: bool = False) -> None:
        """Raise Forbidden if a web page of an origin that is not allowed sent the request.

        Programs other than browsers send no Origin.
        """
        allowed = self._websocket if websocket else self._http
        origin = headers.get("origin")
        if "*" in allowed or (origin is not None and origin.lower() in allowed):
            return
        if origin is None:
            # A browser says nothing of the origin when a page merely embeds or links an address.
            foreign = headers.get("sec-fetch-site") in HTTP_SITES
        else:
            foreign = _site(origin) != headers.get("host", "").lower()
        if foreign:
            flag = "--cors-origin or --ws-origin" if websocket else "--cors-origin"
            raise Forbidden(f"a page of another origin may not do this; see {flag}")

    def _is_local(self, host: str) -> bool:
        """Can no stranger make this name resolve to us?

        That needs a domain, so names of one label are safe, as are addresses.
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
    """Does a server that listens on this host serve its own machine only?"""
    try:
        return ipaddress.ip_address(_bare(host)).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() and (":" not in name or name.endswith("]")) else host


def _bare(host: str) -> str:
    """A host as it is compared: lower case, no brackets, no final dot."""
    return host.strip().lower().removeprefix("[").removesuffix("]").removesuffix(".")


def _site(origin: str) -> str:
    """The `host:port` of an origin; something that is no host if there is none."""
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
