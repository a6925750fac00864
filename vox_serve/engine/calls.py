"""Tracks a model's calls in progress, so that an error can name the one that hangs."""

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
        """Record a call of this name in this thread until the block ends."""
        stack = self._stacks.setdefault(threading.get_ident(), [])
        stack.append((next(self._numbers), name))
        try:
            yield
        finally:
            stack.pop()

    @property
    def running(self) -> tuple[tuple[int, str], ...]:
        """A unique number and the name of each thread's innermost call; safe from any thread."""
        return tuple(call for stack in list(self._stacks.values()) for call in stack[-1:])
