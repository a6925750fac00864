"""The voices of a model may be listed in one thread while another adds some."""

from __future__ import annotations

from tests.conftest import TONE
from tests.tone import ToneModel
from vox_serve.engine.prompts import Prompts


def test_voices_can_be_added_while_another_thread_iterates_over_them() -> None:
    voices = Prompts(ToneModel(), TONE, None).voices
    own = voices.names
    first_iterator = iter(voices)
    next(first_iterator)
    for name in ("ann", "bob"):
        voices.add(name, 0, ())
    list(first_iterator)
    second_iterator = iter(voices)
    for _ in range(len(own) + 1):
        next(second_iterator)
    voices.remove("bob")
    assert len(list(second_iterator)) == 1, "the iterator does not keep its snapshot"
    assert voices.names == (*own, ("ann", 0))
