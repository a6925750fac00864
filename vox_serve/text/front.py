"""The text front end: any text to what a voice can say, in one order for all voices.

1. ftfy mends what went wrong on the way: broken encodings, terminal codes, half surrogate pairs
2. markup: Markdown, HTML, SSML and pauses to lines and silence
3. the dictionary of pronunciations
4. the language: numbers, money, dates, addresses, signs, capitals to words
5. the voice's alphabet: fold, transliterate, or drop and count
6. the voice's own spelling

A voice declares a `FrontEnd`; a request steers it by `Normalize`.
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

_LANGUAGES: dict[str, Callable[[str, bool, str], str]] = {"en": english.words}


_LONE_SIGNS = ("#", "+", ">")
"""Alone they are not markup."""


class Normalize(StrEnum):
    """How much a request lets the front end do."""

    AUTO = "auto"
    """Everything; what cannot be spoken is left out and counted."""
    STRICT = "strict"
    """Everything, but a character that cannot be spoken refuses the text."""
    OFF = "off"
    """Pronunciations alone; the text must be in the voice's alphabet."""


@attrs.frozen
class Spoken:
    """What is to be said.

    Args:
        parts: stretches of text with the silence after each; one of them at least can be spoken.
        dropped: the number of characters that were left out for want of a reading.
        ignored: names of the tags that changed nothing.
    """

    parts: tuple[Part, ...]
    dropped: int = 0
    ignored: frozenset[str] = frozenset()

    @property
    def text(self) -> str:
        """All of it, without the pauses."""
        return " ".join(part.text for part in self.parts if part.text)


def _unchanged(text: str) -> str:
    return text


@attrs.frozen
class FrontEnd:
    """What one voice needs done to a text.

    Args:
        language: whose numbers and addresses are written out (`en`); None leaves them as they are.
        alphabet: all characters that the voice knows, the space among them; None: any.
        finish: the voice's own spelling, last; what it returns is what the voice reads.
        kept_tags: tags that the model itself knows, e.g. `laugh`.
        lexicon: the server's dictionary.
        as_written: the text is left as it is but for pronunciations, whatever a request says.
    """

    language: str | None = "en"
    alphabet: frozenset[str] | None = None
    finish: Callable[[str], str] = _unchanged
    kept_tags: frozenset[str] = frozenset()
    lexicon: Lexicon = attrs.field(factory=Lexicon)
    as_written: bool = False

    @property
    def idle(self) -> bool:
        """Does it change no text, unless a request has pronunciations of its own?"""
        return self.as_written and not self.lexicon

    def speaks(self, tag: str | None) -> bool:
        """Is this the tag of a language that is read here?  None and `auto` are."""
        return _tag(tag or "auto").partition("-")[0] in ("auto", self.language)

    def read(
        self,
        text: str,
        normalize: Normalize = Normalize.AUTO,
        pronunciations: Mapping[str, str] | None = None,
        tag: str | None = None,
    ) -> Spoken:
        """Takes time and memory that grow as the text's length, no faster.

        Args:
            tag: the text's language tag, e.g. `en-GB`; one of another language counts as none.

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
            found = markup.plain(_mended(text), self.kept_tags)
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


def _tag(language: str) -> str:
    """A language tag in small letters; some clients write `en_US` or `English`."""
    tag = language.lower().replace("_", "-")
    return {"english": "en"}.get(tag, tag)


def with_lexicon(front_end: FrontEnd | None, lexicon: Lexicon) -> FrontEnd:
    """A voice's front end with the server's dictionary; a voice without one has only this."""
    if front_end is None:
        return FrontEnd(language=None, lexicon=lexicon, as_written=True)
    return attrs.evolve(front_end, lexicon=lexicon)


AS_WRITTEN = with_lexicon(None, Lexicon())
"""Of a voice that declares none: only a request's own pronunciations change a text."""


def _mended(text: str) -> str:
    """What its writer meant, where a program on the way broke it."""
    if text.isascii() and text.isprintable():
        return text
    import ftfy

    # Entities are left to the parser of markup, which knows where they count; quotes to the voice.
    return ftfy.fix_text(text, unescape_html=False, uncurl_quotes=False)
