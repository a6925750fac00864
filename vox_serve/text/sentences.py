"""Text to sentences and pieces, cut where a speaker would pause.

It knows characters and nothing of models, voices or requests; it has no word lists beyond a few
abbreviations and needs no data.  `Sentences` reads one character at a time, so how a text was
split on its way here cannot matter; `pieces` is `Sentences` over a whole text, then packing.

A sentence ends

- after `! ?` and their kin as soon as whitespace follows, without waiting for more;
- after `. …`, and after any mark with a closing quote, once the first character of the next word
  is there, unless that is a lower-case letter (a dot ends before one too if the sentence itself
  began without a capital);
- after an ordinary dot at a newline, at a blank line always, and before a line that begins with a
  bullet or a number;
- after `。！？` at once, with or without whitespace.  A closing quote there goes on unless
  whitespace or an opening quote follows.

It does not end after titles, `e.g.`, `U.S.` and initials, nor after `No.` before a digit, nor
where a mark stands inside a word (3.14, example.com).  `etc.` and `p.m.` end before a capital.
"""

from __future__ import annotations

# ruff: noqa: RUF001 - punctuation of other scripts is the subject here
# ruff: noqa: SIM905 - lists of words read best as words
import re
from enum import Enum, auto

from vox_serve.text.packing import (
    CJK_ENDS,
    CLOSING,
    Word,
    Words,
    fragments,
    grapheme_border,
    joined,
    speakable,
)

_CJK_PAUSES = "、，；："
_CJK_MARKS = CJK_ENDS + _CJK_PAUSES
_LOUD = "!?؟۔।॥"
_MARKS = ".…" + _LOUD + CJK_ENDS
_OPENING = "\"'“‘„‚«‹»›([{*_`¿¡「『（【《〈〔"
# Without quotes that also open: 。“ begins something new.
_CJK_TAIL = _CJK_MARKS + "\"'”’)]}」』）】》〉〕"
_LONE_CLOSING = "»”’\"'"
_GOES_ON = ",;:)]}"
_NO_BREAK = "\u00a0\u202f"  # French sets one between the mark and the closing quote
_NEWLINES = {"\n": 1, "\u2028": 1, "\u2029": 2}

_ABBREVIATIONS = frozenset(
    "mr mrs ms mx dr prof messrs mme mlle jr sr sra srta vs cf viz approx ca bzw ext tel ver est"
    " figs vol vols pp eq eqs dept".split()
)
_TITLES = frozenset(  # words of their own unless capitalised
    "St Mt Ft Gen Col Sgt Capt Lt Cmdr Maj Adm Rev Hon Pres Gov Sen Rep Supt Fig Sec Ch".split()
)
_BEFORE_CAPITALS = frozenset("etc al inc ltd co corp ave blvd usw a.m p.m".split())
_BEFORE_DIGITS = frozenset(
    "no nos nr jan feb mar apr jun jul aug sep sept oct nov dec"
    " mon tue tues wed thu thurs fri".split()
)
_DOTTED = re.compile(r"(?:[^\W\d_]{1,2}\.)+[^\W\d_]")  # U.S  e.g  Ph.D
_LIST_MARK = re.compile(r"[-*+•‣◦▪–]|#{1,6}|\d{1,3}[.)]")


class _End(Enum):
    """What the end of a word says about the end of the sentence."""

    NONE = auto()
    NEVER = auto()  # Mr.
    SURE = auto()  # ! and ?: whitespace settles it
    PERIOD = auto()  # an ordinary dot
    DOUBTFUL = auto()  # an ellipsis, or a closing quote: a lower-case letter goes on
    CAPITAL = auto()  # etc.: only a capital ends it
    NUMBERED = auto()  # No. and 3.: a digit goes on, otherwise a period


def likely_seconds(text: str) -> float:
    """How long a text takes to speak, from its length: a rough figure, on the long side.

    English is spoken at about 15 characters a second; bytes instead of characters make
    scripts with a sound per character come out right; a digit is a word.
    """
    digits = sum(c.isdigit() for c in text)
    return 0.5 + 0.08 * len(text.encode()) + 0.4 * digits


def pieces(text: str, max_characters: int | None = None, max_words: int | None = None) -> list[str]:
    """Cut a long text into pieces that a model can speak one after another.

    Whole sentences are packed as long as they fit.  A sentence that alone is too long is cut into
    parts of like size, at `; : —` rather than at commas, at commas rather than between words, and
    inside a word only if that word alone is too long.  What holds nothing to speak is put to its
    neighbour unless no cut within the limits allows it.  Nothing is lost but surplus whitespace.

    Args:
        text: anything; only whitespace gives no pieces.
        max_characters: length of a piece at most, its spaces included; None is no limit.
        max_words: words of a piece at most, as `str.split` counts them; None is no limit.

    Raises:
        ValueError: a limit is below 1.
    """
    for limit in (max_characters, max_words):
        _check(limit)
    reader = Sentences(max_characters=None)
    words: list[Word] = []
    borders = [0]
    for sentence in [*reader._read(text), *reader._rest()]:
        for word in sentence:
            words.extend(fragments(word, max_characters))
        borders.append(len(words))
    return Words(words, max_characters, max_words).packed(borders)


class Sentences:
    """Text that arrives in bits to whole sentences, as early as is safe.

    They come with single spaces between their words.  Marks alone wait for words to go with, so
    each holds something to speak, but for what `flush` finds (`...` at the end of a text) and
    what `max_characters` forces out: ask `speakable`.

    Args:
        max_characters: no sentence is longer; one that would be is given out up to its best
            pause.  None holds a sentence back until it ends.
        lines: keep line ends, and the whitespace before each sentence.

    Raises:
        ValueError: `max_characters` is below 1.
    """

    def __init__(self, max_characters: int | None = 400, lines: bool = False) -> None:
        _check(max_characters)
        self._lines = lines
        self._max_characters = max_characters
        self._done: list[list[Word]] = []
        self._reset()

    def feed(self, bit: str) -> list[str]:
        """The sentences that this bit completes."""
        return [joined(words, self._lines) for words in self._read(bit)]

    def flush(self) -> list[str]:
        """What is left, as if the text ended here; then ready for another text."""
        return [joined(words, self._lines) for words in self._rest()]

    def _reset(self) -> None:
        self._words: list[Word] = []  # of the sentence that has not ended
        self._word: list[str] = []  # characters of the word that has not ended
        self._characters = 0  # of both, with single spaces
        self._spaced = False  # before the word
        self._newlines = 0  # in the whitespace before the word
        self._undecided = False  # the word consists of opening quotes so far
        self._tail = False  # the word ends with a CJK mark so far
        self._begin()

    def _begin(self) -> None:
        """Begin a sentence."""
        self._words = []
        self._end = _End.NONE
        self._speakable = False
        self._casual: bool | None = None  # it began in lower case; None: no letter so far
        self._guillemet = False  # a free-standing « is open
        self._characters = len(self._word)

    def _read(self, bit: str) -> list[list[Word]]:
        for character in bit:
            if character.isspace():
                self._space(character)
            else:
                self._visible(character)
        done, self._done = self._done, []
        return done

    def _rest(self) -> list[list[Word]]:
        if self._word:
            self._append("".join(self._word))
        rest = [self._words] if self._words else []
        self._reset()
        return rest

    def _space(self, character: str) -> None:
        if self._word:
            self._end_word()
            self._newlines = 0
        self._spaced = True
        self._newlines += _NEWLINES.get(character, 0)
        if self._settled(character):
            self._end_sentence()

    def _settled(self, space: str) -> bool:
        """Whether the sentence has ended, whatever follows this whitespace."""
        if self._newlines >= 2:
            return True
        if self._end is _End.SURE:
            return not self._guillemet and space not in _NO_BREAK
        return self._end is _End.PERIOD and self._newlines > 0

    def _visible(self, character: str) -> None:
        if not self._word:
            self._undecided = bool(self._words)
            self._characters += self._undecided and self._spaced
        if self._undecided and character not in _OPENING:
            self._undecided = False
            if self._ends_before(character):
                self._end_sentence()
        if self._tail and character not in _CJK_TAIL:
            self._end_clause(character)
        self._tail |= character in _CJK_MARKS
        self._word.append(character)
        self._characters += 1
        if self._max_characters is not None and self._characters > self._max_characters:
            self._cut()

    def _ends_before(self, character: str) -> bool:
        """Whether the last word ended the sentence, if the next one begins like this."""
        if self._end in (_End.NONE, _End.NEVER) or character in _GOES_ON:
            return False
        if self._end is _End.CAPITAL:
            return character.isupper()
        if self._end is _End.NUMBERED and character.isdigit():
            return False
        if character.islower() and self._end is not _End.SURE:
            return self._end is not _End.DOUBTFUL and bool(self._casual)
        return True

    def _end_clause(self, following: str) -> None:
        """End a clause of a script without spaces, before a character that follows it closely."""
        self._end_word()
        self._spaced = False
        self._newlines = 0
        if self._end is _End.SURE or (self._end is _End.DOUBTFUL and following in _OPENING):
            self._end_sentence()
        self._end = _End.NONE

    def _end_word(self) -> None:
        word = "".join(self._word)
        if self._undecided and word[-1] not in _LONE_CLOSING and self._ends_before(word[0]):
            self._end_sentence()
        if self._newlines and _LIST_MARK.fullmatch(word):
            self._end_sentence()
        self._append(word)

    def _append(self, word: str) -> None:
        if word.strip(CLOSING):
            self._end = _ending(word, first=not self._words)
        elif self._end in (_End.SURE, _End.PERIOD):
            self._end = _End.DOUBTFUL
        if word in ("«", "»"):
            self._guillemet = word == "«"
        self._speakable = self._speakable or speakable(word)
        if self._casual is None:
            self._casual = next((c.islower() for c in word if c.isalpha()), None)
        self._words.append(Word(word, self._spaced, self._newlines))
        self._word = []
        self._undecided = self._tail = False

    def _end_sentence(self) -> None:
        """Give the sentence out, unless it has nothing to speak: then it begins the next one."""
        if self._speakable:
            self._done.append(self._words)
            self._begin()

    def _cut(self) -> None:
        """Give out as much of a sentence that is too long as makes a good part."""
        limit = self._max_characters
        assert limit is not None
        words = [*self._words, Word("".join(self._word), self._spaced, self._newlines)]
        if len(words) == 1:
            cut = grapheme_border(words[0].text, limit, limit)
            self._done.append([Word(words[0].text[:cut], self._spaced, self._newlines)])
            self._word = self._word[cut:]
            self._spaced = False
            self._newlines = 0
            self._characters = len(self._word)
            return
        stretch = Words(words, limit, None)
        cut = stretch.best_cut(0, len(words), limit)
        self._done.append(words[:cut])
        self._words = words[cut:-1]
        self._characters = stretch.characters(cut, len(words))
        self._speakable = any(speakable(word.text) for word in self._words)


def _ending(word: str, first: bool) -> _End:
    """What a word says about the end of its sentence; `first`: it is the sentence's first."""
    core = word.rstrip(CLOSING)
    if not core or core[-1] not in _MARKS:
        return _End.NONE
    stem = core.rstrip(_MARKS)
    marks = core[len(stem) :]
    if marks == ".":
        kind = _ending_of_dot(stem.lstrip(_OPENING), first)
        return _End.DOUBTFUL if kind is _End.PERIOD and core != word else kind
    if core != word or not set(marks) & set(_LOUD + CJK_ENDS):
        return _End.DOUBTFUL
    return _End.SURE


def _ending_of_dot(stem: str, first: bool) -> _End:
    """What a single dot after this stem is."""
    lower = stem.lower()
    if lower in _BEFORE_CAPITALS:
        return _End.CAPITAL
    if lower in _ABBREVIATIONS or (stem[:1].isupper() and stem.title() in _TITLES):
        return _End.NEVER
    if _DOTTED.fullmatch(stem) or (len(stem) == 1 and (stem.isupper() or first)):
        return _End.NEVER
    if stem.isdecimal():
        return _End.NEVER if first and len(stem) <= 3 else _End.NUMBERED
    return _End.NUMBERED if lower in _BEFORE_DIGITS else _End.PERIOD


def _check(limit: int | None) -> None:
    if limit is not None and limit < 1:
        raise ValueError(f"the limit must be 1 or more, not {limit}")
