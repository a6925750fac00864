"""Texts as people send them, over each of three interfaces, and what the voice is given."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.cases.conftest import CASES, Reader
from tests.cases.siblings import SIBLINGS

TEXTS = [
    (name, text["text"], text.get("reads_as"), text.get("never"))
    for name, case in CASES.items()
    for text in case.get("texts", ())
    if name != "nothing-to-speak"
] + [(name, text, heard, None) for name, texts in SIBLINGS.items() for text, heard in texts.items()]
OTHERWISE = {
    "Phone 0800 123 456.": "phone zero eight zero zero, one two three, four five six.",
    "See section G.2 below.": "see section gee point two below.",
    "The BBC and NASA met in the USA.": "the bee bee see and nasa met in the you ess ay.",
}
"""How we read the texts whose reading a case does not prescribe."""
WORDS = {"metre": "meter", "metres": "meters", "oh": "zero", "centimetres": "centimeters"}
WORDS |= {"kilometres": "kilometers"}
KINDS = ("headings-and-lists",)
"""Cases in which pauses matter, so punctuation is compared too."""


def same(text: str) -> str:
    """The words of a text, without punctuation and with one spelling per word."""
    words = re.findall(r"[a-z']+", text.lower())
    return " ".join(WORDS.get(word, word) for word in words if word != "and")


def check(name: str, text: str, reads_as: str | None, never: str | None, heard: str) -> None:
    expected = OTHERWISE.get(text, reads_as)
    if expected is not None:
        assert same(heard) == same(expected)
        if name in KINDS:
            assert heard.rstrip(".") == expected.rstrip(".")
    assert heard.strip(" .,")
    assert never is None or never not in heard


@pytest.mark.parametrize(("name", "text", "reads_as", "never"), TEXTS)
def test_a_text_is_read_as_a_person_would_read_it(
    reader: Reader, tmp_path: Path, name: str, text: str, reads_as: str | None, never: str | None
) -> None:
    answer = reader.by_http(text)
    assert answer.status_code == 200, answer.text
    heard = reader.heard()
    check(name, text, reads_as, never, heard)

    *_, done = reader.by_websocket(text)
    assert isinstance(done, dict)
    assert done["type"] == "done"
    check(name, text, reads_as, never, reader.heard())

    assert reader.by_say(text, tmp_path / "out.pcm") == 0
    assert reader.heard() == heard


SILENT = ("?!", "\u200b", "†", "[pause 0.2s]", "<br>", "- - -", "👍🏽 🇫🇷")
"""More texts like those of the case `nothing-to-speak`."""


@pytest.mark.parametrize(
    "text", [*(one["text"] for one in CASES["nothing-to-speak"]["texts"]), *SILENT]
)
def test_a_text_without_words_has_its_own_error_code(
    reader: Reader, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    answer = reader.by_http(text)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "nothing_to_speak")
    kinds = [message["type"] for message in reader.by_websocket(text)]  # type: ignore[index]
    assert kinds == ["started", "done"], "the WebSocket skips such a text"
    assert reader.by_say(text, tmp_path / "out.wav") == 2
    assert "nothing that this voice can speak" in capsys.readouterr().err


def test_every_case_is_used() -> None:
    elsewhere = {name for name, case in CASES.items() if "texts" not in case}
    tests = "".join(file.read_text() for file in Path(__file__).parent.glob("test_*.py"))
    assert [
        name for name in elsewhere if f'"{name}"' not in tests and f"`{name}`" not in tests
    ] == []
    assert len(CASES) == 21


@pytest.mark.parametrize(
    ("text", "dropped"),
    [("Well done 😀", 1), ("The word 你好 means hello.", 0), ("A ☃ and a ☎ here.", 2)],
)
def test_the_number_of_dropped_characters_is_reported(
    reader: Reader, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, dropped: int
) -> None:
    assert int(reader.by_http(text).headers.get("X-Text-Dropped", "0")) == dropped
    (segment,) = [
        m for m in reader.by_websocket(text) if isinstance(m, dict) and m["type"] == "segment"
    ]
    assert segment.get("dropped", 0) == dropped
    assert reader.by_say(text, tmp_path / "out.wav") == 0
    assert (f"{dropped} characters left out" in capsys.readouterr().out) is bool(dropped)
