"""The voices of a model, while threads add and look for them."""

from __future__ import annotations

from tests.conftest import TONE
from tests.tone import ToneModel
from vox_serve.engine.prompts import Prompts


def test_voices_can_be_added_while_another_thread_goes_through_them() -> None:
    voices = Prompts(ToneModel(), TONE, None).voices
    own = voices.names
    looked_at = iter(voices)
    next(looked_at)
    for name in ("ann", "bob"):
        voices.add(name, 0, ())
    list(looked_at)
    going_through = iter(voices)
    for _ in range(len(own) + 1):
        next(going_through)
    voices.remove("bob")
    assert len(list(going_through)) == 1, "it goes on with what there was"
    assert voices.names == (*own, ("ann", 0))
