"""Turns markup into text to read aloud: Markdown, HTML, SSML, LaTeX, subtitles, `[pause 0.5s]`.

markdown-it, `html.parser` and expat parse; this module interprets.  A heading, a paragraph, a row
and a long list item end a sentence; a short item, a cell and a short line end with a comma.
Wrapped lines are joined.  Markup characters, link addresses and comments are not read.
"""

from __future__ import annotations

# ruff: noqa: RUF001 - quotation marks of all kinds
# ruff: noqa: SIM905 - lists of names read best as plain text
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from html.parser import HTMLParser
from typing import TYPE_CHECKING, NamedTuple
from xml.parsers import expat

from vox_serve.errors import InvalidRequest

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

SSML_STARTS = ("<speak", "<?xml")
LONGEST_PAUSE = 10.0
MOST_SILENCE = 60.0
"""Limits in seconds: for one pause that a text asks for, and for all of them together."""
PARAGRAPH_SECONDS = 0.3
"""Silence between paragraphs and after a heading, in addition to that of a full stop."""

_PAUSE = re.compile(r"\[pause (\d{1,6}(?:\.\d{1,6})?)(ms|s)\]")
# pysubs2 keeps the names of cues, and drops what comes before the first one.
_CUE = re.compile(r"(?m)^(?:\d+[ \t]*\r?\n)?(?:\d+:)?\d\d:\d\d[.,]\d{3} --> .*$")
_FORMULA = re.compile(r"[\\^=+<>{}]|(?<![A-Za-z]{2})_|^\w{1,2}$")
"""Found in `$...$` if that is a formula and not names of variables (`$HOME/bin:$PATH`)."""
_FOOTNOTE = re.compile(r"\[\^[^\[\]\s]{1,40}\]:?")
_CHECKBOX = re.compile(r"^\[[ xX]\] ")
_TIME = re.compile(r"\+?(\d{0,6}(?:\.\d{1,6})?)(ms|s)")
_STRENGTHS = {
    "none": 0.0,
    "x-weak": 0.1,
    "weak": 0.2,
    "medium": 0.4,
    "strong": 0.7,
    "x-strong": 1.0,
}

_BLOCKS = frozenset(
    "address article aside blockquote body caption center dd details div dl dt fieldset "
    "figcaption figure footer form h1 h2 h3 h4 h5 h6 header hr html legend li main nav ol p "
    "pre section sentence speak summary table tbody tfoot thead title tr ul".split()
)
_PARAGRAPHS = frozenset("h1 h2 h3 h4 h5 h6 p".split())
_COMMAS = frozenset("br td th".split())
_INLINE = frozenset(
    "a abbr acronym b bdi bdo big cite code data del dfn em font i ins kbd label mark q rp rt "
    "ruby s samp small span strike strong sub sup time tt u var wbr".split()
)
_SILENT = frozenset("script style template head svg math iframe".split())
_SPELLED = frozenset("characters spell-out verbatim digits telephone".split())
_CLOSERS = "\"'”’»)]} "
_SHORT_LINE = 60
"""Characters; lines of wrapped text are longer."""
_SHORT_ITEM = 5
"""Words; a longer list item is a separate sentence."""


class Part(NamedTuple):
    """A stretch of text, and the seconds of silence after it; either may be empty or 0."""

    text: str
    pause: float = 0.0


class Plain(NamedTuple):
    """Text without markup, in parts, and the names of tags that had no effect."""

    parts: list[Part]
    ignored: frozenset[str]


def plain(
    text: str,
    kept_tags: frozenset[str] = frozenset(),
    formula: Callable[[str], str] = str,
) -> Plain:
    """Read Markdown that may contain HTML, or SSML if the text begins with `<speak` or `<?xml`.

    Args:
        kept_tags: names of tags that the model knows, e.g. `laugh`; they stay in the text.
        formula: puts LaTeX, without its delimiters, into words.

    Raises:
        InvalidRequest: the SSML is not well formed, or a pause is too long.
    """
    lowered = text.lower()
    reader = _Reader(kept_tags, frozenset(tag for tag in _SILENT if f"</{tag}" in lowered))
    if is_ssml(text):
        _read_ssml(text.strip("\ufeff \t\r\n"), reader)
    else:
        _read_markdown(_CUE.sub("", text.removeprefix("WEBVTT")), reader, formula)
    return reader.finish()


def is_ssml(text: str) -> bool:
    """Whether a text is an SSML document, which only makes sense as a whole."""
    return text.lstrip("\ufeff \t\r\n").startswith(SSML_STARTS)


class _Reader:
    """Builds parts from text, tags and line ends.

    Args:
        kept_tags: tags that stay in the text.
        closed: tags whose content is skipped; only those that the text closes somewhere.
    """

    def __init__(self, kept_tags: frozenset[str], closed: frozenset[str]) -> None:
        self._kept = kept_tags
        self._parts: list[Part] = []
        self._ignored: set[str] = set()
        self._lines: list[str] = []
        self._line: list[str] = []
        self._said_as: list[tuple[str, list[str]]] = []  # how, and the line before it
        self._silent = ""  # the tag whose content is being skipped
        self._closed = closed
        self._raised = False  # the next digit is an exponent
        self._silence = 0.0
        self._due = False
        """A paragraph has ended; its silence is due before more text."""

    def text(self, text: str) -> None:
        if self._silent:
            return
        if self._due and text.strip():
            self._due = False
            if not _PAUSE.match(text.lstrip()):  # which replaces the paragraph's silence
                self._cut(PARAGRAPH_SECONDS)
        if self._raised and text[:1].isdigit() and self._line and self._line[-1][-1:].isalnum():
            text = f"^{text}"
        self._raised = False
        read = 0
        for match in _PAUSE.finditer(text):
            self._line.append(text[read : match.start()])
            self.pause(float(match[1]) / (1000 if match[2] == "ms" else 1))
            read = match.end()
        self._line.append(text[read:])

    def end(self, mark: str) -> None:
        """End a line, with `mark` if it has no punctuation at its end."""
        line = " ".join("".join(self._line).split())
        self._line.clear()
        if not line:
            return
        bare = line.rstrip(_CLOSERS)
        if bare and (bare[-1].isalnum() or bare[-1] in "%°²³$€£"):
            line = f"{line}{mark}"
        elif mark == "." and bare[-1:] in (",", ";"):
            line = f"{bare[:-1]}."
        self._lines.append(line)

    def end_paragraph(self) -> None:
        self.end(".")
        self._due = bool(self._lines) and not self._said_as

    def end_item(self) -> None:
        self.end("," if len("".join(self._line).split()) <= _SHORT_ITEM else ".")

    def end_list(self) -> None:
        """Turn the last item's comma into a full stop."""
        if self._lines and self._lines[-1].endswith(","):
            self._lines[-1] = f"{self._lines[-1][:-1]}."

    def pause(self, seconds: float) -> None:
        """Raises InvalidRequest."""
        self._silence += seconds
        if seconds > LONGEST_PAUSE or self._silence > MOST_SILENCE:
            raise InvalidRequest(
                f"text has a pause of {seconds:g} s; a pause may last {LONGEST_PAUSE:g} s,"
                f" all pauses together {MOST_SILENCE:g} s",
                "text",
            )
        if seconds > 0 and not self._said_as:
            self._due = False
            self._cut(seconds)

    def start_tag(self, tag: str, attributes: Mapping[str, str | None], written: str) -> None:
        if self._silent:
            return
        if tag in self._kept:
            self.text(written)
        elif tag in self._closed:
            self._silent = tag
        elif tag == "break":
            self.pause(_break_seconds(attributes))
        elif tag == "img":
            self.text(attributes.get("alt") or "")
        elif tag == "sub" and attributes.get("alias"):
            self.text(attributes["alias"] or "")
            self._silent = tag
        elif tag == "say-as":
            self._said_as.append((attributes.get("interpret-as") or "", self._line))
            self._line = []
        elif tag in _COMMAS:
            self.end(",")
        elif tag in _BLOCKS:
            self.end(".")
        elif None in attributes.values():
            self.text(written)  # `a <b and c> d` is a comparison
        elif tag == "sup":
            self._raised = True
        elif tag not in _INLINE:
            self._ignored.add(tag)

    def end_tag(self, tag: str) -> None:
        if self._silent:
            self._silent = "" if tag == self._silent else self._silent
        elif tag in self._kept:
            self.text(f"</{tag}>")
        elif tag == "say-as" and self._said_as:
            how, around = self._said_as.pop()
            self._line = [*around, _said_as("".join(self._line), how)]
        elif tag == "li":
            self.end_item()
        elif tag in ("ul", "ol"):
            self.end_list()
        elif tag in _COMMAS:
            self.end(",")
        elif tag in _PARAGRAPHS:
            self.end_paragraph()
        elif tag in _BLOCKS:
            self.end(".")

    def finish(self) -> Plain:
        while self._said_as:
            self.end_tag("say-as")
        self._cut(0.0)
        return Plain(self._parts, frozenset(self._ignored))

    def _cut(self, seconds: float) -> None:
        """End a part, with this much silence after it."""
        lines = [*self._lines, " ".join("".join(self._line).split())]
        text = "\n".join(filter(None, lines))
        self._lines, self._line = [], []
        if text or seconds:
            self._parts.append(Part(text, seconds))


def _break_seconds(attributes: Mapping[str, str | None]) -> float:
    """How long a `<break>` lasts.  Raises InvalidRequest."""
    time, strength = attributes.get("time"), attributes.get("strength") or "medium"
    if time is None:
        if strength not in _STRENGTHS:
            known = ", ".join(_STRENGTHS)
            raise InvalidRequest(
                f"text: the strength of a break must be one of {known}, not {strength!r}", "text"
            )
        return _STRENGTHS[strength]
    match = _TIME.fullmatch(time.strip())
    if match is None or not match[1]:
        raise InvalidRequest(
            f"text: the time of a break must look like 0.5s or 500ms, not {time!r}", "text"
        )
    return float(match[1]) / (1000 if match[2] == "ms" else 1)


def _said_as(text: str, how: str) -> str:
    """The content of `<say-as>`, rewritten so that it is read as asked."""
    if how in _SPELLED:
        return " ".join("".join(text.split()))
    if how == "ordinal" and text.strip().isdecimal():
        number = text.strip()
        teen = number[-2:-1] == "1"
        return number + ("th" if teen else {"1": "st", "2": "nd", "3": "rd"}.get(number[-1], "th"))
    if how in ("cardinal", "number") and text.strip().isdecimal() and len(text.strip()) < 19:
        return f"{int(text):,}"
    return text


def _read_ssml(text: str, reader: _Reader) -> None:
    """Raises InvalidRequest."""

    def refuse(name: str, *_: object) -> None:
        raise InvalidRequest("text: SSML may not declare a document type", "text")

    def local(tag: str) -> str:
        name = tag.rpartition(":")[2].lower()
        return "sentence" if name == "s" else name  # `s` is strikethrough in HTML

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    parser.buffer_text = True
    parser.StartElementHandler = lambda tag, attributes: reader.start_tag(
        local(tag), attributes, f"<{tag}>"
    )
    parser.EndElementHandler = lambda tag: reader.end_tag(local(tag))
    parser.CharacterDataHandler = reader.text
    try:
        parser.Parse(text.encode("utf-8", "replace"), True)
    except expat.ExpatError as error:
        raise InvalidRequest(f"text: SSML is not well formed: {error}", "text") from error


@lru_cache(1)
def _markdown() -> MarkdownIt:
    from markdown_it import MarkdownIt
    from mdit_py_plugins.dollarmath import dollarmath_plugin
    from mdit_py_plugins.texmath import texmath_plugin

    # Most people do not mean indented text as code, or `[Note]: this` as a link's address.
    # Blocks of HTML are read tag by tag, like inline HTML.
    rules = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    rules.use(dollarmath_plugin, allow_space=False, allow_digits=False, double_inline=True)
    rules.use(texmath_plugin, delimiters="brackets")
    return rules.disable(["code", "reference", "html_block"])


class _Tag(HTMLParser):
    """Passes one tag to the reader."""

    def __init__(self, reader: _Reader) -> None:
        super().__init__()
        self._reader = reader

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._reader.start_tag(tag, dict(attrs), self.get_starttag_text() or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self._reader.end_tag(tag)

    def handle_endtag(self, tag: str) -> None:
        self._reader.end_tag(tag)


def _read_markdown(text: str, reader: _Reader, formula: Callable[[str], str]) -> None:
    begins_item = False
    for token in _markdown().parse(_FOOTNOTE.sub("", text)):
        if token.type == "inline":
            inline = token.children or []
            if begins_item and inline:
                inline[0].content = _CHECKBOX.sub("", inline[0].content)
            begins_item = False
            _read_inline(inline, reader, formula)
        elif token.type in _MATH_BLOCKS:
            reader.text(formula(token.content))
            reader.end_paragraph()
        elif token.type in ("fence", "code_block"):
            for line in token.content.splitlines():
                reader.text(line)
                reader.end(",")
            reader.end_list()
        elif token.type == "list_item_open" and token.info:
            reader.text(f"{token.info}, ")
            begins_item = True
        elif token.type == "list_item_open":
            begins_item = True
        elif token.type in _AT_CLOSE:
            _AT_CLOSE[token.type](reader)
        elif token.type == "paragraph_close":
            reader.end_item() if token.hidden else reader.end_paragraph()


_AT_CLOSE: dict[str, Callable[[_Reader], None]] = {
    "heading_close": _Reader.end_paragraph,
    "bullet_list_close": _Reader.end_list,
    "ordered_list_close": _Reader.end_list,
    "td_close": lambda reader: reader.end(","),
    "th_close": lambda reader: reader.end(","),
    "tr_close": _Reader.end_list,
}


_MATH_BLOCKS = ("math_block", "math_block_label", "math_block_eqno")
_MATH = ("math_inline", "math_inline_double")


def _read_inline(tokens: list[Token], reader: _Reader, formula: Callable[[str], str]) -> None:
    lines = _lines(tokens)
    listed = len(lines) > 1 and all(len(line.split()) <= 3 for line in lines)
    number = 0
    for token in tokens:
        if token.type in ("text", "code_inline", "image"):
            reader.text(token.content)
        elif token.type in _MATH:
            found = _FORMULA.search(token.content)
            reader.text(formula(token.content) if found else f"${token.content}$")
        elif token.type == "html_inline":
            tag = _Tag(reader)
            tag.feed(token.content)
        elif token.type == "hardbreak":
            reader.end(",")
            number += 1
        elif token.type == "softbreak":
            if listed or _ends_line(lines[number], lines[number + 1]):
                reader.end(",")
            else:
                reader.text(" ")
            number += 1


def _lines(tokens: list[Token]) -> list[str]:
    lines = [[""]]
    for token in tokens:
        if token.type in ("softbreak", "hardbreak"):
            lines.append([""])
        elif token.type != "html_inline":
            lines[-1].append(token.content)
    return ["".join(line).strip() for line in lines]


def _ends_line(line: str, following: str) -> bool:
    """Whether a line break is intended: the line is short and the next does not continue it."""
    first = following.lstrip("\"'“‘([")[:1]
    return bool(line) and len(line) < _SHORT_LINE and not first.islower()
