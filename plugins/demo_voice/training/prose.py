"""Sentences from existing texts that Debian packages and that are free for any use.

WordNet's definitions and examples (`wordnet-base`; its licence asks for its notice on copies), the
Jargon File (`dict-jargon`) and Bierce's Devil's Dictionary (`dict-devil`), both in the public
domain.  Entries that the dictionary marks as offensive are left out.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

WORDNET = Path("/usr/share/wordnet")
DICTIONARIES = tuple(Path(f"/usr/share/dictd/{name}.dict.dz") for name in ("jargon", "devil"))
LEAST_WORDS, MOST_WORDS, MOST_CHARACTERS = 4, 32, 190
_PLAIN = re.compile(r"[A-Za-z][A-Za-z ,;:'!?-]* [A-Za-z'-]{2,}[.!?]")
"""No digits, because how they are read may change."""
_BARRED = re.compile(
    r"slur|offensive|obscene|disparag|derogat|vulgar|contempt|intercourse|sexual|genital|prostitut"
    r"|nigg|negro|whore|fuck|shit|cunt|penis|vagina|rape|suicid|hitler|nazi|\bjews?\b",
    re.IGNORECASE,
)


@cache
def prose() -> tuple[str, ...]:
    """All sentences in a fixed order, without duplicates; empty if no package is installed."""
    found = dict.fromkeys(s for s in (*_wordnet(), *_dictionaries()) if fits(s))
    return tuple(found)


def fits(sentence: str) -> bool:
    """Can the teachers read this sentence, and does its length suit the voice?"""
    return (
        len(sentence) <= MOST_CHARACTERS
        and LEAST_WORDS <= len(sentence.split()) <= MOST_WORDS
        and _PLAIN.fullmatch(sentence) is not None
        and not _BARRED.search(sentence)
    )


def _wordnet() -> Iterator[str]:
    for part in ("noun", "verb", "adj", "adv"):
        path = WORDNET / f"data.{part}"
        for line in path.read_text(encoding="ascii").splitlines() if path.is_file() else ():
            gloss = line.partition(" | ")[2].strip()
            if not gloss or _BARRED.search(gloss):
                continue
            yield from map(_sentence, re.findall(r'"([^"]+)"', gloss))
            yield _sentence(re.sub(r"\([^)]*\)", "", gloss.partition('"')[0]))


def _dictionaries() -> Iterator[str]:
    for path in DICTIONARIES:
        text = gzip.decompress(path.read_bytes()).decode("utf-8") if path.is_file() else ""
        for paragraph in re.split(r"\n\s*\n", text):
            plain = re.sub(r"[{}]|\[[^\]]*\]", "", " ".join(paragraph.split()))
            plain = plain.replace("\u2019", "'")
            for piece in re.split(r"(?<=[.!?])\s+(?=[A-Z])", plain):
                # The first word of an entry is its headword, and a piece of verse has no sentence
                # end.
                if piece[:1].isupper() and piece[-1:] in ".!?":
                    yield piece


def _sentence(words: str) -> str:
    plain = " ".join(words.split()).strip(" ;:,")
    ended = plain if plain[-1:] in (".", "!", "?") else f"{plain}."
    return ended[:1].upper() + ended[1:]
