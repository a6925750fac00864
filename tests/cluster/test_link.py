"""The link to a cluster, tested with a fake deployment handle instead of a cluster."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

pytest.importorskip("ray", reason="needs the extra `ray`")

from ray.exceptions import RayActorError

from vox_serve.cluster import link as module
from vox_serve.cluster.link import ClusterLink
from vox_serve.errors import InvalidRequest, Unavailable
from vox_serve.messages import (
    Abort,
    Add,
    AddVoice,
    Audio,
    Done,
    Failed,
    Finished,
    FinishReason,
    FromWorker,
    MoreText,
    SpeechRequest,
    StepOutput,
)

SOUND = Audio("one", b"..")
END = Finished("one", FinishReason.STOP, 3, 0)


class Responses:
    """The result of a streaming call."""

    def __init__(self, events: list[Any]) -> None:
        self.cancelled = False
        self._events = events

    async def __aiter__(self) -> AsyncIterator[Any]:
        for event in self._events:
            if event is None:
                await asyncio.Event().wait()
            elif isinstance(event, Exception):
                raise event
            else:
                yield event

    def cancel(self) -> None:
        self.cancelled = True


class Handle:
    """A deployment whose calls return the given answers in order."""

    def __init__(self, *answers: list[Any]) -> None:
        self.sessions: list[str | None] = []
        self.calls: list[Responses] = []
        self.texts: list[MoreText] = []
        self._answers = list(answers)
        self.speak = self

    def options(self, stream: bool, session_id: str | None = None) -> Handle:
        self.sessions.append(session_id)
        return self

    def remote(self, *_: Any) -> Responses:
        self.calls.append(Responses(self._answers.pop(0)))
        return self.calls[-1]

    def broadcast(self, method: str, *arguments: Any) -> Any:
        if method != "more_text":
            raise RayActorError
        self.texts.append(arguments[0])
        return self

    async def results_async(self, **_: Any) -> list[Any]:
        return []


def events_of(messages: list[FromWorker]) -> list[Any]:
    return [event for m in messages if isinstance(m, StepOutput) for event in m.events]


async def run(handle: Handle, act: Callable[[ClusterLink], None], count: int) -> list[Any]:
    """The first `count` events after `act`, or fewer if no more come."""
    messages: list[FromWorker] = []
    made = ClusterLink(handle, keeps_voices=False)
    made.start(messages.append, lambda reason: None)
    act(made)
    for _ in range(100):
        await asyncio.sleep(0.001)
        if len(events_of(messages)) >= count:
            break
    await made.stop()
    return events_of(messages)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", (0.0, 0.0))


def test_the_events_of_a_request_arrive():
    handle = Handle([SOUND, END])
    add = Add(SpeechRequest("one", "hello"))
    assert asyncio.run(run(handle, lambda link: link.send(add), 2)) == [SOUND, END]
    assert handle.sessions == [None]


def test_a_request_without_any_event_is_retried():
    handle = Handle([RayActorError()], [RayActorError()], [SOUND, END])
    add = Add(SpeechRequest("one", "hello"))
    assert asyncio.run(run(handle, lambda link: link.send(add), 2)) == [SOUND, END]


def test_a_request_that_has_begun_fails_with_its_replica():
    handle = Handle([SOUND, RayActorError()])
    add = Add(SpeechRequest("one", "hello"))
    heard, failed = asyncio.run(run(handle, lambda link: link.send(add), 2))
    assert heard == SOUND
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, Unavailable)


def test_a_request_fails_if_no_replica_answers():
    handle = Handle(*[[RayActorError()]] * 3)
    add = Add(SpeechRequest("one", "hello"))
    (failed,) = asyncio.run(run(handle, lambda link: link.send(add), 1))
    assert isinstance(failed.error, Unavailable)


def test_text_that_grows_goes_to_the_replica_once_it_has_the_request():
    taken = Done("one", True)
    handle = Handle([taken, RayActorError()], [taken, SOUND, None])

    def act(link: ClusterLink) -> None:
        link.send(Add(SpeechRequest("one", "hello", waits=5.0)))
        link.send(MoreText("one", " you"))
        link.send(MoreText("one", " there", end=True))
        link.send(MoreText("another", " unheard of"))

    assert asyncio.run(run(handle, act, 2)) == [SOUND]
    assert handle.texts[-1] == MoreText("one", " you there", end=True)
    assert len(handle.calls) == 2


def test_a_conversation_is_a_session():
    handle = Handle([END])
    add = Add(SpeechRequest("one", "hello", conversation="c"))
    asyncio.run(run(handle, lambda link: link.send(add), 1))
    assert handle.sessions == ["c"]


def test_an_abort_cancels_the_call():
    handle = Handle([SOUND, None])

    def act(link: ClusterLink) -> None:
        link.send(Add(SpeechRequest("one", "hello")))
        asyncio.get_running_loop().call_later(0.01, link.send, Abort("one"))

    assert asyncio.run(run(handle, act, 2)) == [SOUND]
    assert handle.calls[0].cancelled


def test_voices_without_a_shared_directory_are_refused():
    add = AddVoice("one", "anna", 0, ())
    (done,) = asyncio.run(run(Handle(), lambda link: link.send(add), 1))
    assert isinstance(done, Done)
    assert isinstance(done.error, InvalidRequest)
    assert "--voices-dir" in str(done.error)
