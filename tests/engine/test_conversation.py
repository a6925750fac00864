"""Conversations: one turn at a time, bounded in number and in idle time."""

from __future__ import annotations

import threading
import time

import pytest

from tests.conftest import run_engine
from vox_serve.engine.conversation import Conversations
from vox_serve.engine.engine import Engine
from vox_serve.errors import Conflict
from vox_serve.messages import Finished, SpeechRequest
from vox_serve.voice import Segment

TURN = (Segment(0, "hello"),)


def remember(open_ones: Conversations, name: str) -> None:
    open_ones.end(open_ones.begin(name), TURN)


def test_one_turn_at_a_time() -> None:
    open_ones = Conversations(60, 10)
    first = open_ones.begin("a")
    with pytest.raises(Conflict) as caught:
        open_ones.begin("a")
    assert caught.value.param == "conversation"
    open_ones.end(first, TURN)
    assert open_ones.begin("a").turns == TURN


def test_a_turn_that_failed_leaves_what_was_there() -> None:
    open_ones = Conversations(60, 10)
    remember(open_ones, "a")
    open_ones.end(open_ones.begin("a"))
    assert open_ones.begin("a").turns == TURN
    open_ones.end(open_ones.begin("new"))
    assert not open_ones.forget("new")


def test_forgotten_while_it_is_spoken() -> None:
    open_ones = Conversations(60, 10)
    running = open_ones.begin("a")
    assert open_ones.forget("a")
    assert not open_ones.forget("a")
    open_ones.end(running, TURN)
    assert len(open_ones) == 0
    assert open_ones.begin("a").turns == ()


def test_idle_ones_expire(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    open_ones = Conversations(60, 10)
    remember(open_ones, "old")
    now[0] += 50
    remember(open_ones, "young")
    speaking = open_ones.begin("speaking")
    now[0] += 59
    assert open_ones.begin("young").turns == TURN
    assert open_ones.begin("old").turns == ()
    now[0] += 1000
    with pytest.raises(Conflict):
        open_ones.begin("speaking")
    open_ones.end(speaking)


def test_the_least_recently_used_goes() -> None:
    open_ones = Conversations(60, 3)
    for name in ("a", "b", "c"):
        remember(open_ones, name)
    again = open_ones.begin("a")
    assert again.turns == TURN  # to go on with one drops none
    open_ones.end(again, TURN)
    assert len(open_ones) == 3
    remember(open_ones, "d")
    assert len(open_ones) == 3
    assert not open_ones.forget("b")
    assert all(open_ones.forget(name) for name in ("a", "c", "d"))


def test_the_end_of_a_forgotten_one_leaves_its_successor() -> None:
    open_ones = Conversations(60, 10)
    first = open_ones.begin("a")
    open_ones.forget("a")
    second = open_ones.begin("a")
    open_ones.end(first)
    with pytest.raises(Conflict):
        open_ones.begin("a")
    open_ones.end(second, TURN)
    assert open_ones.begin("a").turns == TURN


def test_no_turn_comes_between_two_parts_of_a_text(
    tone_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread tries when the first part has ended, and the second has not begun."""
    refused: list[Conflict] = []

    def intrude() -> None:
        try:
            tone_engine.prompts.conversations.begin("ours")
        except Conflict as error:
            refused.append(error)

    intruder = threading.Thread(target=intrude)
    prepare = tone_engine.prompts.prepare

    def interrupted(request, *voice):
        if request.continues:
            intruder.start()
            intruder.join(0.2)  # time enough to slip in
        return prepare(request, *voice)

    step = tone_engine.step

    def step_and_wait():
        output = step()
        if intruder.ident is not None:  # it has its answer before the text's end frees the name
            intruder.join()
        return output

    monkeypatch.setattr(tone_engine.prompts, "prepare", interrupted)
    monkeypatch.setattr(tone_engine, "step", step_and_wait)
    tone_engine.add(SpeechRequest("a", "3 hums", later=("4 hums",), conversation="ours"))
    spoken = run_engine(tone_engine)["a"]
    assert isinstance(spoken.end, Finished)
    assert spoken.end.frames == 7
    assert len(refused) == 1
