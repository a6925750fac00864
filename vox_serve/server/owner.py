"""Ownership of voices, conversations and requests: each key has a separate namespace.

Inside the server and the engine, the name of something that belongs to a key is `KEY/NAME`.
Clients cannot choose names with a slash, so one key cannot name what belongs to another.  Names
without a slash are shared: the model's voices, voices that the operator puts into the directory,
and everything on a server without keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

import attrs
from litestar import Request
from litestar.types import Scope

T = TypeVar("T")
SEPARATOR = "/"


@attrs.frozen
class Owner:
    """The holder of a key.

    Args:
        key: the key's name; empty for requests without a key.
    """

    key: str = ""

    def own(self, name: str) -> str:
        """The inner name of what this owner calls `name`."""
        return f"{self.key}{SEPARATOR}{name}" if self.key else name

    def seen(self, names: Iterable[tuple[str, T]]) -> Iterator[tuple[str, str, T]]:
        """Yield the items that this owner may use.

        Args:
            names: inner names, each with a value.

        Returns:
            the owner's name, the inner name and the value of each; shared items with the same name
            as one of the owner's are left out.
        """
        pairs = list(names)
        start = self.own("")
        mine = {inner.removeprefix(start) for inner, _ in pairs if inner.startswith(start)}
        for inner, value in pairs:
            if self.key and inner.startswith(start):
                yield inner.removeprefix(start), inner, value
            elif SEPARATOR not in inner and not (self.key and inner in mine):
                yield inner, inner, value


NOBODY = Owner()


def split(inner: str) -> tuple[str, str]:
    """The key and the owner's name in an inner name."""
    key, _, name = inner.rpartition(SEPARATOR)
    return key, name


def owner_of(scope: Scope) -> Owner:
    """The sender of the request; see `access.middleware`."""
    found: Owner = scope.get("auth") or NOBODY
    return found


def provide_owner(request: Request) -> Owner:  # type: ignore[type-arg]  # Litestar injects it
    """The dependency `owner` of the routes."""
    return owner_of(request.scope)
