"""The order of the front end's steps, and the modes that change it."""

from __future__ import annotations

import string
import subprocess
import sys
from collections.abc import Callable

import pytest

from vox_serve.errors import UnspeakableText
from vox_serve.text import FrontEnd, Normalize, Part, grammar

LETTERS = FrontEnd(alphabet=frozenset(" !',.:;?" + string.ascii_letters))
WRITTEN = FrontEnd()


@pytest.mark.parametrize(
    ("written", "heard", "dropped"),
    [
        ("Well done 😀 all.", "Well done all.", 1),
        ("Well done \ud83d", "Well done", 1),
        ("\ude00 well done", "well done.", 1),
        ("A \x1b[31mred\x1b[0m word.", "A red word.", 0),
        ("It\u2019s donâ€™t", "It's don't.", 0),
        ("co\u00adoperate,\u200b now\ufeff", "cooperate, now.", 0),
        ("Her name is Анна, she said.", "Her name is Anna, she said.", 0),
        ("👍🏾 fine", "fine.", 1),
    ],
)
def test_an_odd_character_does_not_spoil_the_whole_text(
    written: str, heard: str, dropped: int
) -> None:
    spoken = LETTERS.read(written)
    assert spoken.text.lstrip(" .") == heard
    assert spoken.dropped == dropped


@pytest.mark.parametrize("text", ["😀", "...", "—", "***", "", "[pause 1s]", "\ud83d"])
def test_nothing_to_speak_is_refused(text: str) -> None:
    with pytest.raises(UnspeakableText, match="nothing that this voice can speak"):
        LETTERS.read(text)


@pytest.mark.parametrize("text", ["你好", "привет", "hello שלום", "Это слово hello"])
def test_a_text_of_another_script_is_refused(text: str) -> None:
    with pytest.raises(UnspeakableText, match="which this voice cannot speak"):
        LETTERS.read(text)


@pytest.mark.parametrize("text", ["Well 😀 done", "The word 你好 means hello."])
def test_strict_refuses_what_auto_drops(text: str) -> None:
    with pytest.raises(UnspeakableText, match="which this voice cannot speak"):
        LETTERS.read(text, Normalize.STRICT)
    assert LETTERS.read("It costs $5.", Normalize.STRICT).text == "It costs five dollars."


def test_off_applies_only_the_dictionary() -> None:
    written = "# Not a *heading* & 5 kg"
    assert WRITTEN.read(written, Normalize.OFF).text == written
    assert WRITTEN.read("a GIF", Normalize.OFF, {"GIF": "jif"}).text == "a jif"
    with pytest.raises(UnspeakableText, match="'5'"):
        LETTERS.read("5 kg", Normalize.OFF)


def test_a_voice_of_written_text_keeps_what_its_model_can_read() -> None:
    written = "The BBC said “café” & DO NOT wait ≥ 5 min."
    said = "The BBC said “café” & DO NOT wait at least five minutes."
    assert WRITTEN.read(written).text == said


def test_pauses_are_returned_as_numbers() -> None:
    assert LETTERS.read("One [pause 0.5s] 2").parts == (Part("One", 0.5), Part("two."))


def test_pronunciations_are_applied_first() -> None:
    assert LETTERS.read("an SQL file", pronunciations={"SQL": "sequel"}).text == "an sequel file."


KINDS = [
    "7", "7 ", "a", "A ", "The quick brown fox. ", "$5.30 ", "1,", "a.", "555-", "(", "[", "![",
    "*", "`", "<b>", "<", "&amp;", "a\n", "- a\n", "|a", "π", "é", "😀", "'", "#", "a@b.co ",
    "http://a.b/c ", "[pause 0s]", "- ", "--", "+1 555 ", "½", "\x1b[31m", "\ud83d", "U.S.", "2^2",
    "A$5 ", "1.5M ", "0x1", "fe:", "a1-", "1h ", "call 5", "H2S", "5\" ", "[^", "x42 ", "1 000 ",
    "$x$", "$a", "\\(a\\)", "$\\frac{1}{2}$ ", "5 kWh/d ", "5/", "^_^ ", "i-th ", "SEK 5 ",
    "0171 123456 ", "1\n00:00:01,000 --> 00:00:04,000\na\n",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_work_grows_no_faster_than_the_text(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts Python's calls, and the characters that the grammars read."""
    read: list[int] = []
    through = grammar._grammar()
    monkeypatch.setattr(
        grammar, "_grammar", lambda: lambda text: (read.append(len(text)), through(text))[1]
    )

    def work(size: int) -> int:
        read.clear()
        text = (kind * size)[:size]
        return _calls(lambda: LETTERS.read(text)) + sum(read)

    work(100)  # imports
    small, large = work(400), work(800)
    assert large < 2.5 * small + 500
    assert max(read, default=0) < 4000


def _calls(do: Callable[[], object]) -> int:
    count = 0

    def profile(*_: object) -> None:
        nonlocal count
        count += 1

    sys.setprofile(profile)
    try:
        do()
    except UnspeakableText:
        pass
    finally:
        sys.setprofile(None)
    return count


def test_libraries_are_imported_only_when_a_text_needs_them() -> None:
    code = (
        "import sys, vox_serve.text;"
        "print([m for m in ('damga', 'spellchecker', 'ftfy', 'anyascii', 'markdown_it', 'torch',"
        " 'pint', 'phonenumbers', 'babel', 'normt2s') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_full_width_signs_are_kept_for_a_model_that_reads_chinese() -> None:
    chinese = "\u4f60\u597d\uff0c\u4e16\u754c\uff01"
    assert FrontEnd(language=None).read(chinese).text == chinese
    said = FrontEnd(language="en").read("\uff28ello\uff01 and \uff11\uff12\uff13").text
    assert said == "Hello! and one hundred and twenty three."
