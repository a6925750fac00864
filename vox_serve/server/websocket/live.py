"""Cuts text that arrives in pieces into words, for a model that takes text while it speaks.

A word is passed on as soon as white space follows it.  A word that may be markup may depend on the
words after it, so from there on, the rest of the sentence is passed on in one piece.
"""

from __future__ import annotations

import re

import attrs

from vox_serve.errors import RequestError
from vox_serve.messages import EngineInfo, SpeechRequest
from vox_serve.text import Incoming, is_ssml
from vox_serve.workers.reading import TextReader

_MARKUP = r"<>\[\]{}*_`~#|\\&"
_SIGN = rf"\s{_MARKUP}"
_HAN = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
"""Scripts without spaces.  The last character waits, because a sign after it is read with it."""
_PLAIN_WORDS = re.compile(rf"(?:[^{_SIGN}]*(?:\w[^{_SIGN}]* |[{_HAN}](?=[{_HAN}])))+")
_ANY_WORDS = re.compile(rf"(?:\S*(?:\S\s|[{_HAN}](?=[{_HAN}]))\s*)+")
_PLAIN = re.compile(rf"\s?(?:[^{_SIGN}]+(?: [^{_SIGN}]+)*)? ?", re.ASCII)
_CLOSED = re.compile(r"[.!?:][\"')]*\s*\Z")
_LIST_MARK = re.compile(r"\s*(?:[-+>]|\d{1,9}[.)])\s")


@attrs.frozen
class Bit:
    """A stretch of text, with the white space around it.

    Args:
        text: empty if the piece only reports that a sentence has ended.
        ends: a sentence ends here.
        unread: the front end has yet to read it.
        inline: other text precedes it on its line.
        alone: it needs a request of its own.
    """

    text: str
    ends: bool = False
    unread: bool = False
    inline: bool = False
    alone: bool = False


class LiveWords:
    """Takes text in pieces and returns words.

    Args:
        longest: the maximum length of an SSML document, in characters.
        as_written: no front end changes the text.
    """

    def __init__(self, longest: int, as_written: bool) -> None:
        self._sentences = Incoming(longest)
        self._as_written = as_written
        self._text = ""
        """The text from the beginning of the current sentence."""
        self._given = 0
        """How much of it has been returned."""
        self._first = True
        """Whether the current sentence is the first."""
        self._held = False
        """Whether the rest of the sentence waits for its end."""

    def feed(self, text: str) -> list[Bit]:
        """The words that can be spoken now.  Raises InvalidRequest: a document is too long."""
        self._text += text
        bits = [self._complete(sentence) for sentence in self._sentences.feed(text)]
        return bits + ([] if self._held else self._begun())

    def flush(self) -> list[Bit]:
        """The rest, as if the text ended here.  Afterwards another text can be fed."""
        bits = [self._complete(sentence) for sentence in self._sentences.flush()]
        self._text, self._given, self._held, self._first = "", 0, False, True
        return bits

    def _complete(self, sentence: str) -> Bit:
        """The rest of a complete sentence."""
        end = max(self._given, _reach(self._text, sentence))
        rest, inline = self._text[self._given : end], self._inline()
        whole = self._given == 0
        self._text, self._given, self._held = self._text[end:], 0, False
        self._first = False
        if is_ssml(sentence):
            return Bit(sentence, ends=True, alone=True)
        if self._as_written or not rest.strip():
            return Bit(rest, ends=True)
        plain = rest.isascii() and _PLAIN.fullmatch(rest) and _CLOSED.search(rest)
        marked = whole and _LIST_MARK.match(rest)
        return Bit(rest, ends=True, unread=not plain or bool(marked), inline=inline)

    def _begun(self) -> list[Bit]:
        """The words of an incomplete sentence that can already be spoken."""
        start = self._given
        if start == 0:
            start = len(self._text) - len(self._text.lstrip())
            marked = not self._as_written and _LIST_MARK.match(self._text)
            if marked or self._text.startswith("<", start):
                self._held = True
                return []
        found = (_ANY_WORDS if self._as_written else _PLAIN_WORDS).match(self._text, start)
        end = start if found is None else found.end()
        # A word that is complete, and is not plain, has white space after it.
        self._held = (
            not self._as_written and re.search(rf"\S\s|[{_MARKUP}]", self._text[end:]) is not None
        )
        if found is None:
            return []
        unread = not (self._as_written or self._text[self._given : end].isascii())
        bit = Bit(self._text[self._given : end], unread=unread, inline=self._inline())
        self._given = end
        return [bit]

    def _inline(self) -> bool:
        space = self._text[: len(self._text) - len(self._text.lstrip())]
        return self._given > 0 or not (self._first or "\n" in space)


def _reach(text: str, sentence: str) -> int:
    """The index where `sentence`, the beginning of `text` except for white space, ends in it."""
    left = len("".join(sentence.split()))
    for place, character in enumerate(text):
        left -= not character.isspace()
        if left == 0:
            return place + 1
    return len(text)


async def as_read(bit: Bit, reader: TextReader, template: SpeechRequest, info: EngineInfo) -> Bit:
    """The bit as the front end reads it in context, between the other words on its line.

    It becomes `alone` if it has pauses, is too long, or cannot be read.
    """
    before, after = "a " if bit.inline else "", "" if bit.ends else " a"
    words = bit.text.strip()
    try:
        text = f"{before}{words}{after}"
        read = await reader.split(attrs.evolve(template, text=text), info)
    except RequestError:  # it is reported when it is spoken
        return attrs.evolve(bit, alone=True)
    said = read.text if bit.ends else read.text.removesuffix(f"{after}.")
    if read.following or read.pauses or not said.startswith(before):
        return attrs.evolve(bit, alone=True)
    return Bit(bit.text.replace(words, said.removeprefix(before)), bit.ends)
