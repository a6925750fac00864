"""Cuts text into sentences and pieces where a speaker would pause.

Works on characters only: no models, voices, requests or data files, and no word lists beyond a few
abbreviations.  `Sentences` reads one character at a time, so the result does not depend on how a
text was split on its way here; `pieces` runs `Sentences` over a whole text and packs the result.

A sentence ends

- after `! ?` and similar marks as soon as whitespace follows, without waiting for more;
- after `. …`, and after any mark with a closing quote, once the first character of the next word
  arrives, unless that is a lower-case letter (a dot ends the sentence before a lower-case letter
  too if the sentence itself began with one);
- after an ordinary dot at a newline, always at a blank line, and before a line that begins with a
  bullet or a number;
- after `。！？` at once, with or without whitespace.  After a closing quote there, the sentence
  continues unless whitespace or an opening quote follows.

A sentence does not end after titles, `e.g.`, `U.S.` and initials, nor after `No.` before a digit,
nor at a mark inside a word (3.14, example.com).  `etc.` and `p.m.` end it before a capital.
"""

from __future__ import annotations

# ruff: noqa: RUF001 - this module is about punctuation of all scripts
# ruff: noqa: SIM905 - word lists read best as plain text
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
# Without quotes that can also open: 。“ begins a new sentence.
_CJK_TAIL = _CJK_MARKS + "\"'”’)]}」』）】》〉〕"
_LONE_CLOSING = "»”’\"'"
_GOES_ON = ",;:)]}"
_NO_BREAK = "\u00a0\u202f"  # French sets one between the mark and the closing quote
_NEWLINES = {"\n": 1, "\u2028": 1, "\u2029": 2}

_ABBREVIATIONS = frozenset(
    "mr mrs ms mx dr prof messrs mme mlle jr sr sra srta vs cf viz approx ca bzw ext tel ver est"
    " figs vol vols pp eq eqs dept rs sq".split()
)
_TITLES = frozenset(  # ordinary words unless capitalised
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
    DOUBTFUL = auto()  # an ellipsis, or a closing quote: continues before a lower-case letter
    CAPITAL = auto()  # etc.: only a capital ends it
    NUMBERED = auto()  # No. and 3.: continues before a digit, else as PERIOD


def likely_seconds(text: str) -> float:
    """Estimates how many seconds a text takes to speak, rather too high than too low.

    English is spoken at about 15 characters per second.  Bytes are counted instead of characters,
    because some scripts write a syllable or more per character.  A digit counts as a word.
    """
    digits = sum(c.isdigit() for c in text)
    return 0.5 + 0.08 * len(text.encode()) + 0.4 * digits


def pieces(text: str, max_characters: int | None = None, max_words: int | None = None) -> list[str]:
    """Cut a long text into pieces that a model can speak one after another.

    A piece holds as many whole sentences as fit.  A sentence that is too long is cut into parts of
    similar size, preferably at `; : —`, then at commas, then between words, and inside a word only
    if the word is too long.  Words without anything to speak join a neighbour if the limits allow
    it.  Only surplus whitespace is lost.

    Args:
        text: any text; whitespace alone gives no pieces.
        max_characters: the most characters in a piece, spaces included; None: no limit.
        max_words: the most words in a piece, as `str.split` counts them; None: no limit.

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
    """Turns text that arrives in pieces into complete sentences, as early as is safe.

    Words are separated by single spaces.  Punctuation by itself waits for the words after it, so
    each sentence has something to speak, with two exceptions: what `flush` returns (`...` at the
    end of a text) and what `max_characters` forces out.  Check those with `speakable`.

    Args:
        max_characters: the most characters in a sentence; a longer one is cut at its best pause.
            None waits for the end of each sentence.
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

    @property
    def empty(self) -> bool:
        """Whether the next character begins a sentence."""
        return not self._words and not self._word

    def flush(self) -> list[str]:
        """The rest, as if the text ended here.  Afterwards another text can be fed."""
        return [joined(words, self._lines) for words in self._rest()]

    def _reset(self) -> None:
        self._words: list[Word] = []  # of the current sentence
        self._word: list[str] = []  # characters of the current word
        self._characters = 0  # of both, with single spaces
        self._spaced = False  # before the word
        self._newlines = 0  # in the whitespace before the word
        self._undecided = False  # the word consists of opening quotes so far
        self._tail = False  # the word ends with a CJK mark so far
        self._begin()

    def _begin(self) -> None:
        self._words = []
        self._end = _End.NONE
        self._speakable = False
        self._casual: bool | None = None  # it began in lower case; None: no letter so far
        self._guillemet = False  # a « with space around it is open
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
        """Whether the sentence ends here, whatever follows this whitespace."""
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
        """Whether the last word ended the sentence, if the next begins with this character."""
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
        """End a clause of a script without spaces; `following` comes directly after it."""
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
        """Emit the sentence; if it has nothing to speak, it becomes part of the next one."""
        if self._speakable:
            self._done.append(self._words)
            self._begin()

    def _cut(self) -> None:
        """Emit the beginning of a sentence that is too long, up to its best cut."""
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
    """What a word says about the end of its sentence; `first`: it begins the sentence."""
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
    """What a single dot after this stem means."""
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
