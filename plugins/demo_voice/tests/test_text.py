"""The text frontend: whatever people type, in the letters that the voice was trained on."""

from __future__ import annotations

import pytest

from vox_serve import UnspeakableText
from vox_serve_demo_voice.text import ALPHABET, cardinal, normalise, ordinal

READINGS = {
    "Hello there": "hello there.",
    "  two\n lines\t here ": "two lines here.",
    "WHY NOT?": "why not?",
    "The USA and the EU": "the you ess ay and the ee you.",
    "\u201cYes,\u201d he said \u2013 \u2018no\u2019 \u2014 don\u2019t": "yes, he said, no, don't.",
    "café naïve Ærøskøbing straße": "cafe naive aeroskobing strasse.",
    "Wait... what?!": "wait. what?",
    "Dr. Smith met Mrs. Jones.": "doctor smith met missus jones.",
    "a well-known (old) trick": "a well known, old, trick.",
    "1 dog, 12 cats, 123 birds and 4567 fish": (
        "one dog, twelve cats, one hundred twenty three birds and "
        "four thousand five hundred sixty seven fish."
    ),
    "1,250 and 1250": "one thousand two hundred fifty and one thousand two hundred fifty.",
    "agent 007": "agent zero zero seven.",
    "12345678": "one two three four five six seven eight.",
    "pi is 3.14": "pi is three point one four.",
    "-5 degrees": "minus five degrees.",
    "on May 21st, the 3rd": "on may twenty first, the third.",
    "$1, $2.50, €3 and £40": "one dollar, two dollars fifty, three euros and forty pounds.",
    "at 10:30, 9:05 and 7:00": "at ten thirty, nine oh five and seven o'clock.",
    "20% & more": "twenty percent and more.",
    "me@home": "me at home.",
    "the dogs' house": "the dogs house.",
    "well \N{THUMBS UP SIGN}\N{EMOJI MODIFIER FITZPATRICK TYPE-4}!": "well!",
    "done! \N{HEAVY BLACK HEART}\ufe0f": "done!",
    "co\u00adoperate,\u200b now\ufeff": "cooperate, now.",
    "\N{BULLET} milk \N{BULLET} bread": "milk, bread.",
    "home \N{RIGHTWARDS ARROW} work": "home, work.",
    "# Plan\n* **First** this,\n* _then_ that": "plan first this, then that.",
    "a snake_case name": "a snake underscore case name.",
    "an *important* word, 2 * 3": "an important word, two star three.",
    "\N{INVERTED QUESTION MARK}why?": "why?",
    "5 \N{MICRO SIGN}m at 20 °": "five micro m at twenty degrees.",
}


@pytest.mark.parametrize(("written", "spoken"), READINGS.items())
def test_readings(written: str, spoken: str) -> None:
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
        ("bell\x07", "cannot speak"),
        ("", "nothing"),
        ("?!...", "nothing"),
    ],
)
def test_what_has_no_reading_is_refused(text: str, says: str) -> None:
    with pytest.raises(UnspeakableText, match=says) as caught:
        normalise(text)
    assert caught.value.param == "text"


def test_numbers_in_words() -> None:
    assert cardinal(0) == "zero"
    assert cardinal(100) == "one hundred"
    assert cardinal(9999) == "nine thousand nine hundred ninety nine"
    assert ordinal(12) == "twelfth"
    assert ordinal(20) == "twentieth"
    assert ordinal(101) == "one hundred first"
    assert len({cardinal(n) for n in range(10000)}) == 10000
