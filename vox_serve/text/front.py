"""The text front end: turns any text into what a voice can say, in the same steps for all voices.

1. ftfy repairs transmission damage: broken encodings, terminal codes, lone surrogates
2. markup: turns Markdown, HTML, SSML, LaTeX, subtitles and pauses into lines and silence
3. the pronunciation dictionary
4. the language: writes numbers, money, dates, addresses, signs and capitals as words
5. the voice's alphabet: folds, transliterates, or drops and counts
6. the voice's own spelling

A voice declares a `FrontEnd`; a request controls it with `Normalize`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum

import attrs

from vox_serve.errors import NothingToSpeak
from vox_serve.text import alphabet, english, markup
from vox_serve.text.lexicon import Lexicon
from vox_serve.text.markup import Part
from vox_serve.text.packing import speakable

_LANGUAGES: dict[str | None, Callable[[str, bool, str], str]] = {"en": english.words}
_FORMULAS: dict[str | None, Callable[[str], str]] = {"en": english.formula}


_NAMES = {
    "chinese": "zh",
    "dutch": "nl",
    "english": "en",
    "french": "fr",
    "german": "de",
    "italian": "it",
    "japanese": "ja",
    "korean": "ko",
    "portuguese": "pt",
    "russian": "ru",
    "spanish": "es",
}
"""Some clients write a name in place of the tag."""
_LONE_SIGNS = ("#", "+", ">")
"""These are not markup if they are the whole text."""


class Normalize(StrEnum):
    """How much the front end may change a request's text."""

    AUTO = "auto"
    """All steps; characters that cannot be spoken are dropped and counted."""
    STRICT = "strict"
    """All steps, but the text is refused if it has a character that cannot be spoken."""
    OFF = "off"
    """Pronunciations only; the text must be in the voice's alphabet."""


@attrs.frozen
class Spoken:
    """The text to speak.

    Args:
        parts: stretches of text with the silence after each; at least one can be spoken.
        dropped: the number of characters dropped because they have no reading.
        ignored: names of tags that had no effect.
    """

    parts: tuple[Part, ...]
    dropped: int = 0
    ignored: frozenset[str] = frozenset()

    @property
    def text(self) -> str:
        """The text of all parts, without the pauses."""
        return " ".join(part.text for part in self.parts if part.text)


def _unchanged(text: str) -> str:
    return text


@attrs.frozen
class FrontEnd:
    """How to prepare text for one voice.

    Args:
        language: the language in which numbers and addresses are written out (`en`); None leaves
            them unchanged.
        alphabet: all characters that the voice knows, including the space; None: any.
        finish: the voice's own spelling, applied last; the voice reads its result.
        kept_tags: tags that the model knows, e.g. `laugh`.
        lexicon: the server's dictionary.
        as_written: apply only pronunciations, whatever the request says.
    """

    language: str | None = "en"
    alphabet: frozenset[str] | None = None
    finish: Callable[[str], str] = _unchanged
    kept_tags: frozenset[str] = frozenset()
    lexicon: Lexicon = attrs.field(factory=Lexicon)
    as_written: bool = False

    @property
    def idle(self) -> bool:
        """Whether texts stay unchanged unless a request brings pronunciations."""
        return self.as_written and not self.lexicon

    @property
    def keeps_words(self) -> bool:
        """Whether only markup, repairs and pronunciations change a text, not its words."""
        return self.as_written or (
            self.language is None and self.alphabet is None and self.finish is _unchanged
        )

    def speaks(self, tag: str | None) -> bool:
        """Whether this tag is in the front end's language; None and `auto` count as such."""
        return language_of(tag or "auto") in ("auto", self.language)

    def read(
        self,
        text: str,
        normalize: Normalize = Normalize.AUTO,
        pronunciations: Mapping[str, str] | None = None,
        tag: str | None = None,
    ) -> Spoken:
        """Prepare a text.  Time and memory are linear in its length.

        Args:
            tag: the text's language tag, e.g. `en-GB`; a tag of another language is ignored.

        Raises:
            NothingToSpeak: there is nothing to say.
            UnspeakableText: too little of it can be spoken.
            InvalidRequest: broken SSML, or a pause that is too long.
        """
        lexicon = self.lexicon.with_more(pronunciations or {})
        normalize = Normalize.OFF if self.as_written else normalize
        tag = _tag(tag or "auto")
        tag = tag if self.speaks(tag) and tag != "auto" else self.language or ""
        if normalize is Normalize.OFF or text.strip() in _LONE_SIGNS:
            found = markup.Plain([Part(text)], frozenset())
        else:
            formula = _FORMULAS.get(self.language, str)
            mended = _mended(text, self.language is not None)
            found = markup.plain(mended, self.kept_tags, formula)
        parts, dropped = [], 0
        for written, pause in found.parts:
            said = lexicon.apply(written)
            if self.language is not None and normalize is not Normalize.OFF:
                said = _LANGUAGES[self.language](said, self.alphabet is not None, tag)
            if self.alphabet is not None:
                fitted = alphabet.fit(said, self.alphabet, normalize is not Normalize.AUTO)
                said, dropped = " ".join(fitted.text.split()), dropped + fitted.dropped
            parts.append(Part(self.finish(said) if speakable(said) else "", pause))
        if not any(part.text for part in parts):
            raise NothingToSpeak("text contains nothing that this voice can speak", "text")
        return Spoken(tuple(parts), dropped, found.ignored)


def language_of(tag: str) -> str:
    """The language of a tag, without region or script: `pt` of `pt-BR`, also of `Portuguese`."""
    return _tag(tag).partition("-")[0]


def _tag(language: str) -> str:
    """A language tag in lower case; some clients write `en_US` or `English`."""
    tag = language.lower().replace("_", "-")
    return _NAMES.get(tag, tag)


def with_lexicon(front_end: FrontEnd | None, lexicon: Lexicon) -> FrontEnd:
    """A voice's front end with the server's dictionary; or only the dictionary if it has none."""
    if front_end is None:
        return FrontEnd(language=None, lexicon=lexicon, as_written=True)
    return attrs.evolve(front_end, lexicon=lexicon)


AS_WRITTEN = with_lexicon(None, Lexicon())
"""For voices that declare no front end: only a request's pronunciations change a text."""


def _mended(text: str, narrow: bool) -> str:
    """Repair damage from programs that handled the text.

    Args:
        narrow: also write full-width signs as ASCII.  Chinese and Japanese are written with them.
    """
    if text.isascii() and text.isprintable():
        return text
    import ftfy

    # The markup parser decodes entities, as it knows where they count; the voice handles quotes.
    return ftfy.fix_text(text, unescape_html=False, uncurl_quotes=False, fix_character_width=narrow)
