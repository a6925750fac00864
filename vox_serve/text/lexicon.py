"""The pronunciation dictionary: spellings that replace words."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from vox_serve.errors import ConfigError, InvalidRequest

MOST_ENTRIES = 1000
LONGEST_ENTRY = 200
"""Limits for one request: entries, and characters of a word or of its spelling."""

_TOKENS = re.compile(r"\w+(?:['’]\w+)*|\s+|[^\w\s]")  # noqa: RUF001 - apostrophes


class Lexicon:
    """Replaces words with spellings.

    Only whole words match, so `cat` does not match `cats`.  A word may contain spaces and signs
    (`C++`, `New York`).  A word in lower case matches any case; other words match exactly.  The
    longest match wins.

    Args:
        entries: the spelling for each word.
    """

    def __init__(self, entries: Mapping[str, str] | None = None) -> None:
        self.entries = dict(entries or {})
        self._by_first: dict[str, list[tuple[list[str], str]]] = {}
        for word, spelling in sorted(self.entries.items(), key=lambda e: -len(e[0])):
            tokens = _tokens(word)
            if tokens:
                self._by_first.setdefault(tokens[0].lower(), []).append((tokens, spelling))

    def __bool__(self) -> bool:
        return bool(self.entries)

    def with_more(self, entries: Mapping[str, str]) -> Lexicon:
        """A lexicon with more entries, which take precedence."""
        return Lexicon({**self.entries, **entries}) if entries else self

    def apply(self, text: str) -> str:
        if not self:
            return text
        return "".join(self._spelled(_tokens(text)))

    def _spelled(self, tokens: list[str]) -> Iterator[str]:
        at = 0
        while at < len(tokens):
            for word, spelling in self._by_first.get(tokens[at].lower(), ()):
                if _same(word, tokens[at : at + len(word)]):
                    yield spelling
                    at += len(word)
                    break
            else:
                yield tokens[at]
                at += 1


def check_pronunciations(entries: Mapping[str, str]) -> None:
    """Check a request's pronunciations.  Raises InvalidRequest."""
    if len(entries) > MOST_ENTRIES:
        raise InvalidRequest(
            f"pronunciations has {len(entries)} words; the limit is {MOST_ENTRIES}",
            "pronunciations",
        )
    for word, spelling in entries.items():
        if not word.strip() or max(len(word), len(spelling)) > LONGEST_ENTRY:
            raise InvalidRequest(
                f"pronunciations: a word or its spelling must have 1 to {LONGEST_ENTRY} characters",
                "pronunciations",
            )


def read_lexicon(path: Path) -> Lexicon:
    """Read a server's dictionary: a file with a JSON object, e.g. `{"nginx": "engine x"}`.

    Raises:
        ConfigError: the file cannot be read or has other content.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    if not isinstance(entries, dict) or not all(isinstance(s, str) for s in entries.values()):
        raise ConfigError(
            f'{path} must contain an object of spellings, e.g. {{"nginx": "engine x"}}'
        )
    return Lexicon(entries)


def _tokens(text: str) -> list[str]:
    return _TOKENS.findall(text)


def _same(word: list[str], tokens: list[str]) -> bool:
    if len(word) != len(tokens):
        return False
    return all(
        mine == theirs
        or (mine.islower() and mine == theirs.lower())
        or (mine.isspace() and theirs.isspace())
        for mine, theirs in zip(word, tokens, strict=True)
    )
