"""Words of a live text: which are passed on at once, and which wait for the sentence to end."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from vox_serve.server.websocket.live import Bit, LiveWords
from vox_serve.text import FrontEnd

TEXTS = [
    "Hello there, you. How are you? I'm fine - thanks; it's 3.14 (or so).",
    "She said \"No!\" and left. Then 'Yes.' Mr. Smith came at 5 p.m. sharp",
    "Plain words and **bold ones** here. And then more plain words.",
    "1. a list\n2. of things\n\n- and more\n\nA paragraph. Another one.",
    "Wait [pause 0.5s] for it. <speak>Hi <break time='1s'/> you. All.</speak> Then more.",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002\u4eca\u5929\u5929\u6c14\u5f88\u597d\uff01 Good.",
    "Stra\u00dfe und sch\u00f6n, ja. Na\u00efve caf\u00e9?",
]


def cut(text: str, size: int, as_written: bool = False) -> list[Bit]:
    words = LiveWords(10_000, as_written)
    bits = []
    for start in range(0, len(text), size):
        bits += words.feed(text[start : start + size])
    return bits + words.flush()


def visible(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("as_written", [False, True])
def test_nothing_is_lost_or_said_twice_however_a_text_is_cut(text: str, as_written: bool):
    for size in (1, 2, 3, 7, 1000):
        joined = "".join(bit.text for bit in cut(text, size, as_written))
        assert visible(joined) == visible(text)
        assert " ".join(joined.split()) == " ".join(text.split())


def test_a_word_is_passed_on_when_white_space_follows():
    words = LiveWords(100, as_written=False)
    assert words.feed("Hello the") == [Bit("Hello ")]
    assert words.feed("re") == []
    assert words.feed(" you") == [Bit("there ", inline=True)]
    assert words.feed(". ") == [Bit("you. ", inline=True)]
    assert words.feed("A") == [Bit("", ends=True)]
    assert words.flush() == [Bit("A", ends=True, unread=True, inline=True)]


def test_from_a_word_that_may_be_markup_on_the_sentence_waits():
    words = LiveWords(100, as_written=False)
    assert words.feed("This is **very") == [Bit("This is ")]
    assert words.feed(" bold** text") == []
    assert words.feed("! Next one ") == [
        Bit("**very bold** text!", ends=True, unread=True, inline=True),
        Bit(" Next one ", inline=True),
    ]


def test_a_list_mark_waits_and_so_does_a_line_break():
    words = LiveWords(100, as_written=False)
    assert words.feed("1. first thing ") == []
    assert words.feed("\n") == []
    assert words.flush() == [Bit("1. first thing", ends=True, unread=True)]
    assert words.feed("one line\nand ") == [Bit("one ")]
    assert words.flush() == [Bit("line\nand", ends=True, unread=True, inline=True)]


def test_scripts_without_spaces_wait_for_one_more_character():
    words = LiveWords(100, as_written=False)
    assert words.feed("\u4f60\u597d") == [Bit("\u4f60", unread=True)]
    assert words.feed("\uff0c") == []
    found = words.feed("\u4e16\u754c\u3002")
    assert found == [Bit("\u597d\uff0c\u4e16", unread=True, inline=True)]
    assert words.flush() == [Bit("\u754c\u3002", ends=True, unread=True, inline=True)]


def test_a_document_needs_a_request_of_its_own():
    bits = cut("<speak>One. Two.</speak>", 4)
    assert bits == [Bit("<speak>One. Two.</speak>", ends=True, alone=True)]


def test_as_written_nothing_waits():
    words = LiveWords(100, as_written=True)
    assert words.feed("# **a\n\nb [c") == [Bit("# **a", ends=True), Bit("\n\nb ")]


def test_plain_words_are_those_that_a_front_end_for_markup_leaves_unchanged():
    front_end = FrontEnd(language=None)
    random = Random(1)
    texts = [p.read_text() for p in sorted(Path("docs").glob("*.md"))]
    sentences = [s for text in texts for s in text.split("\n\n")]
    checked = 0
    for sentence in random.sample(sentences, 150) + TEXTS:
        for bit in cut(sentence, 9):
            if bit.text.strip() and not bit.unread and not bit.alone:
                text = f"{'a ' * bit.inline}{bit.text.strip()}{'' if bit.ends else ' a.'}"
                assert front_end.read(text).text == text, bit
                checked += 1
    assert checked > 500
