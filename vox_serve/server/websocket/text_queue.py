"""The queue of text that a session has yet to speak, and its division into requests."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from enum import Enum, auto

import attrs

from vox_serve.errors import InvalidRequest
from vox_serve.messages import EngineInfo, SpeechRequest
from vox_serve.parts import PART_CHARACTERS, cut
from vox_serve.server.websocket.live import Bit, as_read
from vox_serve.text import Normalize, is_ssml
from vox_serve.workers.interface import EngineClient

MAX_WAITING_CHARACTERS = 10_000
"""Limit on text that waits to be spoken; each `flush` counts as one character."""


class Mark(Enum):
    """A queue entry that is not a sentence."""

    FLUSH = auto()
    END = auto()  # the client ends the session
    SHUTDOWN = auto()  # the server shuts down


class TextQueue:
    """Sentences or words in order, with marks between them.

    Args:
        client: the engine.
        info: the model that the engine has loaded.
        template: the request for each text, without the text.
    """

    def __init__(self, client: EngineClient, info: EngineInfo, template: SpeechRequest) -> None:
        self._client = client
        self._info = info
        self._template = template
        front_end = client.front_end
        self.as_written = front_end.as_written or template.normalize is Normalize.OFF
        """Whether the model reads texts as they were written, with their white space."""
        self._items: deque[str | Bit | Mark] = deque()
        self._came = asyncio.Event()
        """Set when something is added."""
        self._waiting = 0
        """Characters in the queue; a mark counts as one."""

    def __bool__(self) -> bool:
        return bool(self._items)

    @property
    def head(self) -> str | Bit | Mark:
        return self._items[0]

    def check_room(self, characters: int) -> None:
        if self._waiting + characters > MAX_WAITING_CHARACTERS:
            raise InvalidRequest(
                f"{self._waiting} characters are waiting to be spoken; {characters} more would "
                f"exceed the limit of {MAX_WAITING_CHARACTERS}",
                "text",
            )

    def put(self, item: str | Bit | Mark) -> None:
        self._items.append(item)
        self._waiting += _size(item)
        self._came.set()

    def pop(self) -> None:
        self._waiting -= _size(self._items.popleft())

    def _replace(self, head: Bit) -> None:
        self.pop()
        self._items.appendleft(head)
        self._waiting += _size(head)

    def next_text(self) -> str:
        """Take the next text from the queue: as many sentences as fit, but at least one."""
        text = ""
        while self._items and isinstance(head := self._items[0], str):
            # The lengths first: cutting a very long sentence would delay other sessions.
            together = len(text) + len(head)
            if text and (is_ssml(text) or is_ssml(head)):
                break
            if text and (together > PART_CHARACTERS or len(cut(text + head, self._info)) > 1):
                break
            text += head
            self.pop()
        return text

    async def take(self, text: str) -> tuple[str, bool]:
        """The next words of a segment after its `text`, and whether more may follow.

        A segment ends at the end of an utterance or paragraph, where text needs its own request,
        at the end of a sentence if the segment is more than half full, and when it is full.  So
        it depends only on the text, unless no text arrives for too long.
        """
        while await self._something_came():
            head = self._items[0]
            if not isinstance(head, Bit) or head.alone:
                break
            space = head.text[: len(head.text) - len(head.text.lstrip())]
            if text and "\n\n" in space:
                break
            if head.unread:
                read = await as_read(head, self._client.reader, self._template, self._info)
                self._replace(read)
                continue
            words = self._fitting(text, head)
            if len(words) < len(head.text):
                rest = head.text[len(words) :]
                self._replace(attrs.evolve(head, text=rest, alone=not text + words))
                return self._spaced(text, words), False
            self.pop()
            more = not head.ends or self._fits(2 * (text + words))
            return self._spaced(text, words), more
        return "", False

    def _spaced(self, text: str, words: str) -> str:
        """The words with one space between them and `text`, if there is any white space."""
        if self.as_written or not text or not words:
            return words
        apart = words[0].isspace() and not text[-1].isspace()
        return " " * apart + words.lstrip()

    async def _something_came(self) -> bool:
        """Wait until the queue has an entry; False if none arrives in time."""
        if not self._items:
            self._came.clear()
            try:
                async with asyncio.timeout(self._client.server.text_timeout):
                    await self._came.wait()
            except TimeoutError:
                return False
        return True

    def _fitting(self, text: str, bit: Bit) -> str:
        """The words of the bit that fit into a segment after `text`."""
        words = ""
        for word in re.findall(r"\s*\S+", bit.text):
            if not self._fits(text + words + word):
                break
            words += word
        return words if len(words) < len(bit.text.rstrip()) else bit.text

    def _fits(self, text: str) -> bool:
        return len(text) <= PART_CHARACTERS and len(cut(text, self._info)) == 1


def _size(item: str | Bit | Mark) -> int:
    if isinstance(item, Mark):
        return 1
    return len(item if isinstance(item, str) else item.text)
