"""The calls of a model that are in progress, so that one that hangs can be named."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Calls:
    """Keeps track of the calls of each thread."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._stacks: dict[int, list[tuple[int, str]]] = {}

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Note that the block is a call of this name."""
        stack = self._stacks.setdefault(threading.get_ident(), [])
        stack.append((next(self._numbers), name))
        try:
            yield
        finally:
            stack.pop()

    @property
    def running(self) -> tuple[tuple[int, str], ...]:
        """A number of its own and the name of each thread's innermost call; for any thread."""
        return tuple(call for stack in list(self._stacks.values()) for call in stack[-1:])
