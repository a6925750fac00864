"""Postprocessing in separate processes: state travels with the sound; failures are isolated."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import attrs
import numpy as np
import pytest

from tests import marks
from vox_serve import Postprocessor
from vox_serve.errors import PluginError, SequenceFailed
from vox_serve.workers import sound
from vox_serve.workers.sound import Postprocessing

FACTS = attrs.evolve(sound.WARMING, model="tone")
SOUND = (np.sin(np.arange(5000) / 20) * 8000).astype("<i2")


def processing(begin: Callable[..., Any], in_thread: bool = True) -> Postprocessing:
    return Postprocessing(Postprocessor("it", "", begin), in_thread)


async def whole(made: Postprocessing, cuts: list[int]) -> np.ndarray:
    """The postprocessed SOUND, sent in pieces."""
    one = made.begin(FACTS)
    ready: list[bytes | None] = []
    for piece in np.split(SOUND, cuts):
        ready.append(await one.process(piece.tobytes()))
    ready.append(await one.process(None))
    assert await one.process(None) is None
    return np.frombuffer(b"".join(filter(None, ready)), "<i2")


def test_the_result_does_not_depend_on_the_pieces() -> None:
    mark = marks.Mark("tone 24000")
    floats = SOUND.astype(np.float32) / 32767
    expected = np.concatenate([mark.process(floats), mark.finish()])
    made = processing(marks.mark)
    for cuts in ([], [100, 101, 2000], [480, 960]):
        samples = asyncio.run(whole(made, cuts))
        assert np.array_equal(samples, np.rint(expected * 32767).astype(np.int16))
    assert marks.marked(samples / 32767, "tone 24000")
    assert not marks.marked(samples / 32767, "demo 24000")
    assert not marks.marked(SOUND / 32767, "tone 24000")
    made.close()


def test_the_state_goes_from_process_to_process_and_a_crash_costs_one_request() -> None:
    """Real processes, two at a time: one request crashes its process while another continues."""
    made, broken = processing(marks.mark, False), processing(marks.crashes, False)

    async def both() -> list[Any]:
        said: list[Any] = await asyncio.gather(
            whole(made, [100, 2000]),
            whole(made, [500, 3000]),
            whole(broken, [100, 2000, 3000]),
            return_exceptions=True,
        )
        return said

    try:
        one, other, crashed = asyncio.run(both())
        assert np.array_equal(one, other)
        assert isinstance(crashed, SequenceFailed)
        assert "postprocess it failed: its process ended with exit code 7" in crashed.message
    finally:
        made.close()
        broken.close()


@pytest.mark.parametrize(
    ("begin", "says"),
    [(marks.raises, "failed: ZeroDivisionError$"), (marks.silent, "that are not finite")],
)
def test_what_fails_is_said_without_quoting(begin: Callable[..., Any], says: str) -> None:
    made = processing(begin, in_thread=False)
    try:
        with pytest.raises(SequenceFailed, match=says):
            asyncio.run(whole(made, [100, 200, 300]))
    finally:
        made.close()


def test_a_piece_that_takes_too_long_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sound, "SECONDS", 0.3)
    made = processing(marks.hangs, False)
    try:
        with pytest.raises(SequenceFailed, match=r"took longer than 0\.3 seconds"):
            asyncio.run(whole(made, [100, 200, 300]))
    finally:
        made.close()


def test_a_function_without_a_name_cannot_be_sent() -> None:
    with pytest.raises(PluginError, match="postprocess it: begin must be a function of a module"):
        processing(lambda facts: None)
