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


def remember(conversations: Conversations, name: str) -> None:
    conversations.end(conversations.begin(name), TURN)


def test_a_conversation_has_one_turn_at_a_time() -> None:
    conversations = Conversations(60, 10)
    first = conversations.begin("a")
    with pytest.raises(Conflict) as caught:
        conversations.begin("a")
    assert caught.value.param == "conversation"
    conversations.end(first, TURN)
    assert conversations.begin("a").turns == TURN


def test_a_failed_turn_leaves_the_earlier_ones() -> None:
    conversations = Conversations(60, 10)
    remember(conversations, "a")
    conversations.end(conversations.begin("a"))
    assert conversations.begin("a").turns == TURN
    conversations.end(conversations.begin("new"))
    assert not conversations.forget("new")


def test_a_conversation_can_be_forgotten_while_it_is_spoken() -> None:
    conversations = Conversations(60, 10)
    running = conversations.begin("a")
    assert conversations.forget("a")
    assert not conversations.forget("a")
    conversations.end(running, TURN)
    assert len(conversations) == 0
    assert conversations.begin("a").turns == ()


def test_idle_conversations_expire(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    conversations = Conversations(60, 10)
    remember(conversations, "old")
    now[0] += 50
    remember(conversations, "young")
    speaking = conversations.begin("speaking")
    now[0] += 59
    assert conversations.begin("young").turns == TURN
    assert conversations.begin("old").turns == ()
    now[0] += 1000
    with pytest.raises(Conflict):
        conversations.begin("speaking")
    conversations.end(speaking)


def test_the_least_recently_used_conversation_is_dropped() -> None:
    conversations = Conversations(60, 3)
    for name in ("a", "b", "c"):
        remember(conversations, name)
    again = conversations.begin("a")
    assert again.turns == TURN  # continuing one drops none
    conversations.end(again, TURN)
    assert len(conversations) == 3
    remember(conversations, "d")
    assert len(conversations) == 3
    assert not conversations.forget("b")
    assert all(conversations.forget(name) for name in ("a", "c", "d"))


def test_the_end_of_a_forgotten_conversation_does_not_touch_its_successor() -> None:
    conversations = Conversations(60, 10)
    first = conversations.begin("a")
    conversations.forget("a")
    second = conversations.begin("a")
    conversations.end(first)
    with pytest.raises(Conflict):
        conversations.begin("a")
    conversations.end(second, TURN)
    assert conversations.begin("a").turns == TURN


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


def test_a_key_with_many_conversations_loses_only_its_own() -> None:
    conversations = Conversations(60, 4)
    for name in ("alice/a", "bob/a", "bob/b", "bob/c", "bob/d", "bob/e"):
        remember(conversations, name)
    assert conversations.forget("alice/a")
    assert [conversations.forget(f"bob/{name}") for name in "abcde"] == [
        False,
        False,
        True,
        True,
        True,
    ]
