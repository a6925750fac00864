"""Conversations: one turn at a time, bounded in number and in idle time."""

from __future__ import annotations

import time

import pytest

from tests.conftest import run_engine
from vox_serve.conversation import Conversations
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


def test_no_turn_comes_between_two_parts_of_a_text(tone_engine: Engine) -> None:
    conversations = tone_engine.prompts.conversations
    tone_engine.add(SpeechRequest("a", "3 hums", conversation="ours", more=True))
    first = run_engine(tone_engine)["a"].end
    assert isinstance(first, Finished)
    assert first.more
    with pytest.raises(Conflict):
        conversations.begin("ours", "b")
    tone_engine.add(SpeechRequest("a", "4 hums", conversation="ours", continues=True))
    second = run_engine(tone_engine)["a"].end
    assert isinstance(second, Finished)
    assert not second.more
    assert len(conversations.begin("ours", "b").turns) == 2


def test_a_text_that_is_aborted_between_two_parts_frees_its_conversation(
    tone_engine: Engine,
) -> None:
    tone_engine.add(SpeechRequest("a", "3 hums", conversation="ours", more=True))
    run_engine(tone_engine)
    tone_engine.abort("a")
    assert len(tone_engine.prompts.conversations.begin("ours", "b").turns) == 1


def test_a_key_with_many_makes_room_by_its_own() -> None:
    open_ones = Conversations(60, 4)
    for name in ("alice/a", "bob/a", "bob/b", "bob/c", "bob/d", "bob/e"):
        remember(open_ones, name)
    assert open_ones.forget("alice/a")
    assert [open_ones.forget(f"bob/{name}") for name in "abcde"] == [False, False, True, True, True]
