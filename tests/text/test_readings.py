"""The texts that a voice of letters only is given to speak, by kind."""

from __future__ import annotations

import string

import pytest

from tests.text.readings import READINGS
from vox_serve.text import FrontEnd

FRONT_END = FrontEnd(alphabet=frozenset(" !',.:;?" + string.ascii_letters))


@pytest.mark.parametrize(
    ("written", "heard"), [row for rows in READINGS.values() for row in rows.items()]
)
def test_a_text_is_read_as_a_person_would_read_it(written: str, heard: str) -> None:
    assert FRONT_END.read(written).text == heard
