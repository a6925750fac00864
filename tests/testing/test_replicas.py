"""The kit's promises that also apply to a server, tested with two workers behind one queue.

The others are about the model's own calls, or need an engine that a test steps itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import attrs
import numpy as np
import pytest

from tests import tone
from tests.testing.test_conformance import WRONG, ToneConformance
from tests.workers.test_client import events_of
from vox_serve.config import EngineConfig, ServerConfig
from vox_serve.messages import Audio, Failed
from vox_serve.metrics import Metrics
from vox_serve.testing.utterances import Utterance
from vox_serve.workers.client import WorkerClient

PROMISES = (
    "test_a_batch_speaks_as_each_would_alone",
    "test_a_slot_is_clean_for_its_next_sequence",
    "test_what_is_kept_of_a_conversation_changes_nothing",
    "test_each_word_is_heard",
    "test_the_seed_decides",
)


class TwoWorkers(ToneConformance):
    """The kit, whose requests go to two workers."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.clients: list[WorkerClient] = []

    def _engine(self, slots: int = 4, **settings: Any) -> Any:
        config = EngineConfig("tone", plugins=("tests.tone",), max_batch_size=slots, replicas=2)
        config = attrs.evolve(config, **settings)
        client = WorkerClient(config, ServerConfig(), Metrics("tone"), in_thread=True)
        self.clients.append(client)
        self.loop.run_until_complete(client.start())
        self.loop.run_until_complete(client.wait_ready())
        takes_context = SimpleNamespace(takes_context=True)
        return SimpleNamespace(client=client, prompts=takes_context, model=self.load("cpu"))

    def _speak(self, engine: Any, *texts: str, **fields: Any) -> list[Utterance]:
        async def speak() -> list[Utterance]:
            requests = [self._request(str(n), text, **fields) for n, text in enumerate(texts)]
            queues = [engine.client.submit(request) for request in requests]
            return [spoken(await events_of(queue)) for queue in queues]

        return self.loop.run_until_complete(speak())


def spoken(events: list[Any]) -> Utterance:
    """A client gets no codes, so the test compares samples."""
    pcm = b"".join(event.pcm for event in events if isinstance(event, Audio))
    last = events[-1]
    end = last.error.code if isinstance(last, Failed) else last.reason.value
    return Utterance([tuple(np.frombuffer(pcm, "<i2").tolist())], pcm, end)


@contextmanager
def two_workers(model: type[tone.ToneModel], patch: pytest.MonkeyPatch) -> Iterator[TwoWorkers]:
    patch.setattr(tone, "_load", lambda options: model())
    with asyncio.Runner() as runner:
        suite = TwoWorkers(runner.get_loop())
        suite.model = model
        yield suite
        for client in suite.clients:
            runner.run(client.stop())


@pytest.mark.parametrize("promise", PROMISES)
def test_two_workers_keep_it(promise: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with two_workers(ToneConformance.model, monkeypatch) as suite:
        getattr(suite, promise)()


@pytest.mark.parametrize("promise", PROMISES)
def test_a_wrong_model_fails(promise: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with two_workers(WRONG[promise], monkeypatch) as suite, pytest.raises(AssertionError):
        getattr(suite, promise)()
