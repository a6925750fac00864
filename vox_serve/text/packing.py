"""Words to pieces of a limited length, cut where a speaker would pause."""

from __future__ import annotations

# ruff: noqa: RUF001 - punctuation of other scripts is the subject here
import unicodedata
from collections.abc import Sequence
from itertools import accumulate, chain, pairwise
from typing import NamedTuple

CJK_ENDS = "。！？｡"
CLOSING = "\"'”’“‘»›«‹)]}*_`」』）】》〉〕"
_STRONG_PAUSE = ";:—–…!?؛" + "；：" + CJK_ENDS
_WEAK_PAUSE = ",،、，"


class Word(NamedTuple):
    """What is never cut but for its length: a word, or a clause of a script without spaces."""

    text: str
    spaced: bool  # whitespace stood before it
    newlines: int = 0  # that this held


def speakable(text: str) -> bool:
    """Whether there is a letter or digit in it; `...` and `***` hold none."""
    return any(map(str.isalnum, text))


class Words:
    """Words, measured once, and the limits of a piece; a piece is a range of words."""

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
        """Into how many parts the limits cut this at the least."""
        return max(
            -(-self.characters(start, end) // (self._max_characters or self._length[-1])),
            -(-self.words(start, end) // (self._max_words or len(self._words))),
        )

    def speaks(self, start: int, end: int) -> bool:
        return self._speakable[end] > self._speakable[start]

    def packed(self, borders: Sequence[int]) -> list[str]:
        """The pieces, packed from sentences that begin and end at these borders."""
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
        """Cut what lies between the last start and the end into parts that fit."""
        while (parts := self.parts(starts[-1], end)) > 1:
            ideal = self.characters(starts[-1], end) / parts
            starts.append(self.best_cut(starts[-1], end, ideal))

    def best_cut(self, start: int, end: int, ideal: float) -> int:
        """Where to end a part that fits and has nearly `ideal` characters.

        A pause counts against the distance from the ideal, as a share of it, and against one part
        more than there must be; nothing to speak on either side is taken only if all cuts have it.
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
        """How much a pause before this word disturbs: 0 not at all, 1.5 inside a word."""
        before = self._words[cut - 1].text.rstrip(CLOSING)
        if before.endswith((*_STRONG_PAUSE, "..")):
            return 0
        if before.endswith((*_WEAK_PAUSE,)):
            return 0.1
        if not self._words[cut].spaced:
            return 1.5
        return 1.25 if before.endswith(".") else 0.75  # Mr. | Smith


def fragments(word: Word, limit: int | None) -> list[Word]:
    """A word that alone is too long, in parts of like size; any other as it is."""
    fragments = []
    while limit is not None and len(word.text) > limit:
        parts = -(-len(word.text) // limit)
        cut = grapheme_border(word.text, -(-len(word.text) // parts), limit)
        fragments.append(Word(word.text[:cut], word.spaced))
        word = Word(word.text[cut:], False)
    return [*fragments, word]


def grapheme_border(text: str, cut: int, limit: int) -> int:
    """The border of graphemes before `cut`, else after it, else `limit`, which it never exceeds.

    Of Unicode's rules (UAX 29) it knows marks, joiners and skin tones, not flags or jamo.
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
        lines: keep line ends and blank lines, and what stands before the first word.
    """
    if lines:
        return "".join(_space_before(word) + word.text for word in words)
    return "".join(" " + word.text if word.spaced else word.text for word in words).lstrip(" ")


def _space_before(word: Word) -> str:
    return "\n" * min(word.newlines, 2) or " " * word.spaced
