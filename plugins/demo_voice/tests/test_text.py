"""How this voice spells texts: its letters, and the names of single letters."""

from __future__ import annotations

import pytest

from vox_serve import UnspeakableText
from vox_serve_demo_voice.text import ALPHABET, normalise

READINGS = {
    "Hello there": "hello there.",
    "  two\n lines\t here ": "two, lines here.",
    "WHY NOT?": "why not?",
    "The USA and the EU": "the you ess ay and the ee you.",
    "\u201cYes,\u201d he said \u2013 \u2018no\u2019 \u2014 don\u2019t": "yes, he said, no, don't.",
    "café naïve Ærøskøbing straße": "cafe naive aeroskobing strasse.",
    "Wait... what?!": "wait. what?",
    "Dr. Smith met Mrs. Jones.": "doctor smith met missus jones.",
    "a well-known (old) trick": "a well known, old, trick.",
    "the dogs' house": "the dogs house.",
    "b": "bee.",
    "T": "tee.",
    "Plan B is ready. Plan A too. A dog. I am I.": (
        "plan bee is ready. plan ay too. a dog. i am eye."
    ),
    "AI and A. B. Smith": "ay eye and ay bee smith.",
    "BBC's PDFs at 5pm": "bee bee see's pee dee eff's at five pee em.",
    "he's I'm y'all o'neil": "he's i'm y'all o'neil.",
    "nth kg": "enth kilograms.",
    "well \N{THUMBS UP SIGN}\N{EMOJI MODIFIER FITZPATRICK TYPE-4}!": "well!",
    "\N{BULLET} milk \N{BULLET} bread": "milk, bread.",
    "# Plan\n* **First** this,\n* _then_ that": "plan. first this, then that.",
    "\N{INVERTED QUESTION MARK}why?": "why?",
    "me@home": "me at home.",
}


@pytest.mark.parametrize(("written", "spoken"), READINGS.items())
def test_texts_are_spelled_as_they_are_read(written: str, spoken: str) -> None:
    assert normalise(written) == spoken


@pytest.mark.parametrize("written", READINGS)
def test_normalising_twice_changes_nothing(written: str) -> None:
    once = normalise(written)
    assert normalise(once) == once
    assert set(once) <= set(ALPHABET)
    assert once[-1] in ".!?"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("你好", "cannot speak"),
        ("привет", "cannot speak"),
        ("\N{GRINNING FACE}", "nothing"),
        ("", "nothing"),
        ("?!...", "nothing"),
    ],
)
def test_a_text_without_a_reading_is_refused(text: str, says: str) -> None:
    with pytest.raises(UnspeakableText, match=says) as caught:
        normalise(text)
    assert caught.value.param == "text"
