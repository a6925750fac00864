"""Text that arrives in bits is given out in sentences, and an SSML document as a whole."""

from __future__ import annotations

import pytest

from vox_serve.errors import InvalidRequest
from vox_serve.text import Incoming

ONE, TWO = "<speak>One. Two.</speak>", "<?xml version='1.0'?><speak>A. B! C.</speak>"


@pytest.mark.parametrize("size", [1, 5, 1000])
@pytest.mark.parametrize(
    ("text", "given"),
    [
        (ONE, [ONE]),
        (f" {ONE} {TWO} And three. Four.", [f" {ONE}", f" {TWO}", " And three.", " Four."]),
        ("Bold. <spa", ["Bold.", " <spa"]),
        ("<", ["<"]),
        ("<speak>Open. And", ["<speak>Open. And"]),
        ("Plain. <i>Text.</i>", ["Plain.", " <i>Text.</i>"]),
        ("\n\nOne. Two.", ["\n\nOne.", " Two."]),
    ],
)
def test_a_document_is_given_out_whole(text: str, given: list[str], size: int) -> None:
    incoming = Incoming(1000)
    bits = [text[at : at + size] for at in range(0, len(text), size)]
    found = [sentence for bit in bits for sentence in incoming.feed(bit)]
    assert found + incoming.flush() == given
    assert incoming.flush() == []


def test_a_document_that_never_ends_is_refused() -> None:
    incoming = Incoming(100)
    incoming.feed("<speak>" + "a" * 90)
    with pytest.raises(InvalidRequest, match="more than 100 characters"):
        incoming.feed("aaaa")
