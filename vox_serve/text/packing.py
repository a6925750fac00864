"""Packs words into pieces of limited length, cut where a speaker would pause."""

from __future__ import annotations

# ruff: noqa: RUF001 - this module is about punctuation of all scripts
import unicodedata
from collections.abc import Sequence
from itertools import accumulate, chain, pairwise
from typing import NamedTuple

CJK_ENDS = "。！？｡"
CLOSING = "\"'”’“‘»›«‹)]}*_`」』）】》〉〕"
_STRONG_PAUSE = ";:—–…!?؛" + "；：" + CJK_ENDS
_WEAK_PAUSE = ",،、，"


class Word(NamedTuple):
    """A word, or a clause of a script without spaces; cut only if it is too long."""

    text: str
    spaced: bool  # whitespace came before it
    newlines: int = 0  # in that whitespace


def speakable(text: str) -> bool:
    """Whether the text contains a letter or digit; `...` and `***` do not."""
    return any(map(str.isalnum, text))


class Words:
    """Words, measured once, and the limits of a piece, which is a range of words."""

    def __init__(
        self, words: Sequence[Word], max_characters: int | None, max_words: int | None
    ) -> None:
        self._words = words
        self._max_characters = max_characters
        self._max_words = max_words
        self._length = [0, *accumulate(len(word.text) + word.spaced for word in words)]
        self._spaces = [0, *accumulate(word.spaced for word in words)]
        self._speakable = [0, *accumulate(speakable(word.text) for word in words)]

    def characters(self, start: int, end: int) -> int:
        return self._length[end] - self._length[start] - self._words[start].spaced

    def words(self, start: int, end: int) -> int:
        return self._spaces[end] - self._spaces[start + 1] + 1

    def parts(self, start: int, end: int) -> int:
        """The fewest parts into which the limits force this to be cut."""
        return max(
            -(-self.characters(start, end) // (self._max_characters or self._length[-1])),
            -(-self.words(start, end) // (self._max_words or len(self._words))),
        )

    def speaks(self, start: int, end: int) -> bool:
        return self._speakable[end] > self._speakable[start]

    def packed(self, borders: Sequence[int]) -> list[str]:
        """Pack sentences, which begin and end at these borders, into pieces."""
        starts = [0]
        for start, end in pairwise(borders):
            if self.parts(starts[-1], end) == 1:
                continue
            if self.speaks(starts[-1], start) and self.speaks(start, end):
                starts.append(start)
            self._divide(starts, end)
        ends = [*starts[1:], len(self._words)]
        return [joined(self._words[a:b]) for a, b in zip(starts, ends, strict=True) if a < b]

    def _divide(self, starts: list[int], end: int) -> None:
        """Cut the words from the last start to the end into parts that fit."""
        while (parts := self.parts(starts[-1], end)) > 1:
            ideal = self.characters(starts[-1], end) / parts
            starts.append(self.best_cut(starts[-1], end, ideal))

    def best_cut(self, start: int, end: int, ideal: float) -> int:
        """Where to end a part that fits and has about `ideal` characters.

        Minimises a cost: the relative distance from the ideal, plus how much a pause there
        disturbs, plus a penalty for needing one part more than necessary.  A side without anything
        to speak costs so much that it is chosen only if no cut avoids it.
        """
        parts = self.parts(start, end)
        best, least = start + 1, float("inf")
        for cut in range(start + 1, end):
            if self.parts(start, cut) > 1:
                break
            cost = abs(self.characters(start, cut) / ideal - 1) + self._break(cut)
            if self.parts(cut, end) >= parts:
                cost += 0.3
            if not (self.speaks(start, cut) and self.speaks(cut, end)):
                cost += 10
            if cost < least:
                best, least = cut, cost
        return best

    def _break(self, cut: int) -> float:
        """How much a pause before this word disturbs: 0 not at all, up to 1.5 inside a word."""
        before = self._words[cut - 1].text.rstrip(CLOSING)
        if before.endswith((*_STRONG_PAUSE, "..")):
            return 0
        if before.endswith((*_WEAK_PAUSE,)):
            return 0.1
        if not self._words[cut].spaced:
            return 1.5
        return 1.25 if before.endswith(".") else 0.75  # Mr. | Smith


def fragments(word: Word, limit: int | None) -> list[Word]:
    """Cut a word that is longer than the limit into parts of similar size."""
    fragments = []
    while limit is not None and len(word.text) > limit:
        parts = -(-len(word.text) // limit)
        cut = grapheme_border(word.text, -(-len(word.text) // parts), limit)
        fragments.append(Word(word.text[:cut], word.spaced))
        word = Word(word.text[cut:], False)
    return [*fragments, word]


def grapheme_border(text: str, cut: int, limit: int) -> int:
    """The last grapheme border up to `cut`, else the first after it up to `limit`, else `limit`.

    Handles the marks, joiners and skin tones of UAX 29, but not flags or jamo.
    """
    for border in chain(range(cut, 0, -1), range(cut + 1, limit + 1)):
        if not _extends(text[border]) and text[border - 1] != "\u200d":
            return border
    return limit


def _extends(character: str) -> bool:
    return (
        unicodedata.category(character).startswith("M")
        or character == "\u200d"
        or "\U0001f3fb" <= character <= "\U0001f3ff"
    )


def joined(words: Sequence[Word], lines: bool = False) -> str:
    """The text of words, with single spaces between them.

    Args:
        lines: keep line ends, blank lines and the whitespace before the first word.
    """
    if lines:
        return "".join(_space_before(word) + word.text for word in words)
    return "".join(" " + word.text if word.spaced else word.text for word in words).lstrip(" ")


def _space_before(word: Word) -> str:
    return "\n" * min(word.newlines, 2) or " " * word.spaced
