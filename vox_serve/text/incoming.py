"""Cuts text that arrives in pieces into parts that can be spoken separately."""

from __future__ import annotations

from vox_serve.errors import InvalidRequest
from vox_serve.text.markup import SSML_STARTS, is_ssml
from vox_serve.text.sentences import Sentences

_END = "</speak>"


class Incoming:
    """Cuts text into sentences; an SSML document that begins a sentence stays whole.

    Args:
        longest: the most characters of a document.
    """

    def __init__(self, longest: int) -> None:
        self._sentences = Sentences(lines=True)
        self._longest = longest
        self._document = ""
        """A document that has not ended, or what may become the beginning of one."""

    def feed(self, bit: str) -> list[str]:
        """The sentences and documents that this bit completes.

        Raises:
            InvalidRequest: a document is too long.
        """
        done: list[str] = []
        while bit and (self._document or self._sentences.empty):
            seen = max(0, len(self._document) - len(_END))
            self._document += bit
            bit = ""
            if is_ssml(self._document):
                end = self._document.find(_END, seen)
                if end < 0:
                    self._check_length()
                    return done
                end += len(_END)
                done.append(self._document[:end])
                bit, self._document = self._document[end:], ""
                continue
            begun = self._document.lstrip()
            if begun and not any(start.startswith(begun) for start in SSML_STARTS):
                text, self._document = self._document, ""
                return done + self._sentences.feed(text)
            self._check_length()
        return done + self._sentences.feed(bit)

    def _check_length(self) -> None:
        if len(self._document) > self._longest:
            raise InvalidRequest(
                f"text holds an SSML document of more than {self._longest} characters", "text"
            )

    def flush(self) -> list[str]:
        """The rest, as if the text ended here.  Afterwards another text can be fed."""
        rest, self._document = self._document, ""
        if is_ssml(rest):
            return [rest]
        return self._sentences.feed(rest) + self._sentences.flush()
