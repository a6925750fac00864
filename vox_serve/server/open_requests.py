"""What is being spoken or waits, by the ids that clients know."""

from __future__ import annotations

from typing import Protocol


class Open(Protocol):
    """A request or a session that has not ended."""

    def cancel(self) -> None:
        """End it on behalf of another."""


class OpenRequests:
    """Several may have one id: a proxy sends its own with each try of a request."""

    def __init__(self) -> None:
        self._open: dict[str, set[Open]] = {}

    def add(self, name: str, one: Open) -> None:
        self._open.setdefault(name, set()).add(one)

    def remove(self, name: str, one: Open) -> None:
        """Forget one; it must be there."""
        self._open[name].remove(one)
        if not self._open[name]:
            del self._open[name]

    def cancel(self, name: str) -> bool:
        """End all that have this id; False if there is none."""
        found = tuple(self._open.get(name, ()))
        for one in found:
            one.cancel()
        return bool(found)
