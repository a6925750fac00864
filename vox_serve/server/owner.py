"""Whose voices, conversations and requests are: each holder of a key has names of its own.

Inside the server and the engine, the name of a key's thing is `KEY/NAME`.  No name that a client
may choose contains a slash, so what belongs to one key cannot be named with another.  Names
without a slash are everybody's: the model's own voices, voices that the operator has put into the
directory, and everything of a server that has no keys.
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
        """The inner name of a thing that this owner calls `name`."""
        return f"{self.key}{SEPARATOR}{name}" if self.key else name

    def seen(self, names: Iterable[tuple[str, T]]) -> Iterator[tuple[str, str, T]]:
        """Those of these named things that this owner may use.

        Args:
            names: inner names, each with a value.

        Returns:
            what this owner calls it, the inner name, the value; everybody's things that have the
            same name as one of the owner's are left out.
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
    """Key and own name of an inner name."""
    key, _, name = inner.rpartition(SEPARATOR)
    return key, name


def owner_of(scope: Scope) -> Owner:
    """Who has sent the request; see `access.middleware`."""
    found: Owner = scope.get("auth") or NOBODY
    return found


def provide_owner(request: Request) -> Owner:  # type: ignore[type-arg]  # Litestar injects it
    """The dependency `owner` of the routes."""
    return owner_of(request.scope)
