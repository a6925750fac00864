"""Long texts: cut into parts, spoken as one stream, and remembered as one conversation."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import pytest

from tests.conftest import TONE, RunningServer, until
from tests.server.conftest import Gate, post_raw, read_stream, value
from vox_serve.config import ServerConfig
from vox_serve.engine.engine import Engine
from vox_serve.engine.messages import EngineInfo, SpeechRequest
from vox_serve.engine.runner import ModelRunner
from vox_serve.engine.sequence import Sequence
from vox_serve.server.parts import in_parts, private_conversation

StartServer = Callable[..., RunningServer]
LONG = "This says 9 things to you all. " * 8
FRAMES = 9 * 4
"""Each of four parts holds two sentences, and hums as its first number says."""


@pytest.fixture
def info(tone_engine: Engine) -> EngineInfo:
    return tone_engine.info("tone", "tone", 0.0)


def test_a_short_text_is_left_as_it_is(info: EngineInfo) -> None:
    request = SpeechRequest("a", "  two   spaces ")
    assert attrs.asdict(in_parts(request, info)) == attrs.asdict(request)


def test_the_parts_of_a_long_text(info: EngineInfo) -> None:
    request = SpeechRequest("a", LONG, voice="hum_b", sampling={"seed": 3}, max_seconds=10)
    made = in_parts(request, info)
    texts = [made.text, *made.later]
    assert " ".join(texts).split() == LONG.split()
    assert all(len(text) <= 96 for text in texts)
    assert made.conversation == private_conversation("a")
    back = attrs.evolve(made, text=LONG, later=(), conversation=None)
    assert attrs.asdict(back) == attrs.asdict(request)


def test_a_seed_repeats_all_parts(tone_server: RunningServer) -> None:
    body = {"text": LONG, "temperature": 1.0}
    first = tone_server.http.post("/generate", json=body)
    again = {"seed": int(first.headers["X-Seed"])}
    assert tone_server.http.post("/generate", json=body | again).content == first.content
    assert tone_server.http.post("/generate", json=body).content != first.content


def test_the_limits_are_those_of_the_model(info: EngineInfo) -> None:
    limited = attrs.evolve(info, max_characters=40, max_words=6, takes_context=False)
    found = in_parts(SpeechRequest("a", LONG, context=()), limited)
    assert len(found.later) > 4
    for text in (found.text, *found.later):
        assert len(text) <= 40
        assert len(text.split()) <= 6
    assert found.conversation is None


def test_the_clients_conversation_goes_before_ours(info: EngineInfo) -> None:
    assert in_parts(SpeechRequest("a", LONG, conversation="mine"), info).conversation == "mine"


def test_what_is_normalised_is_what_is_counted(info: EngineInfo) -> None:
    limited = attrs.evolve(info, max_characters=40)
    made = in_parts(SpeechRequest("a", "ab"), limited, lambda text: "a. " * 20)
    assert len(made.later) == 1


@pytest.mark.parametrize("streaming", [False, True])
def test_a_long_text_is_one_answer(tone_server: RunningServer, streaming: bool) -> None:
    before = value(tone_server, "requests_total", mode="stream", outcome="ok")
    body = {"text": LONG, "streaming": streaming}
    answer = tone_server.http.post("/generate", json=body)
    assert answer.status_code == 200
    assert len(answer.content) == 44 + FRAMES * 1280
    tone_server.wait_idle()
    after = value(tone_server, "requests_total", mode="stream", outcome="ok")
    assert after - before == streaming


def test_the_cap_is_for_all_parts(tone_server: RunningServer) -> None:
    seconds = 20 * 0.08  # two parts and two frames of the third
    answer = tone_server.http.post("/generate", json={"text": LONG, "max_seconds": seconds})
    assert len(answer.content) == 44 + 20 * 1280
    assert answer.headers["X-Finish-Reason"] == "length"


def test_what_cannot_be_spoken_is_told_before_the_first_sound(tone_server: RunningServer) -> None:
    text = LONG + "And here is something unspeakable."
    answer = tone_server.http.post("/generate", json={"text": text, "streaming": True})
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == "text"
    tone_server.wait_idle()


def test_the_private_conversation_is_forgotten(tone_server: RunningServer) -> None:
    for streaming in (False, True):
        body = {"text": LONG, "streaming": streaming}
        assert tone_server.http.post("/generate", json=body).status_code == 200
    tone_server.wait_idle()
    gone = tone_server.http.delete("/conversations/~a")
    assert gone.status_code == 404


def test_later_parts_go_before_those_that_wait(
    gate: Gate, start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start_server(
        engine=attrs.evolve(TONE, max_batch_size=1), server=ServerConfig(port=0, max_queue=1)
    )
    spoken: list[str] = []
    assign = ModelRunner.assign

    def noted(runner: ModelRunner, sequence: Sequence) -> None:
        spoken.append(sequence.id)
        assign(runner, sequence)

    monkeypatch.setattr(ModelRunner, "assign", noted)
    gate.close()
    long = post_raw(server, text=LONG, streaming=True)
    until(lambda: server.client.open_requests == 1)
    waiting = post_raw(server, text="3 hums", streaming=True)
    until(lambda: server.client.open_requests == 2)
    gate.open()
    assert len(read_stream(long)) == 44 + FRAMES * 1280
    assert len(read_stream(waiting)) == 44 + 3 * 1280
    long_id, waiting_id = spoken[0], spoken[-1]
    assert spoken == [long_id] * 4 + [waiting_id]
    assert value(server, "finished_total", reason="stop") == 2
    long.close()
    waiting.close()


def test_a_drained_server_speaks_the_parts_that_are_left(
    gate: Gate, start_server: StartServer
) -> None:
    server = start_server()
    gate.close()
    long = post_raw(server, text=LONG, streaming=True)
    until(lambda: server.client.open_requests == 1)
    server.client.drain()
    gate.open()
    assert len(read_stream(long)) == 44 + FRAMES * 1280
    long.close()


def test_a_client_that_leaves_between_parts_frees_its_slot(
    gate: Gate, start_server: StartServer
) -> None:
    server = start_server()
    gate.close()
    long = post_raw(server, text=LONG, streaming=True)
    until(lambda: server.client.open_requests == 1)
    gate.allow(12)
    until(lambda: server.client.stats.running == 1)
    long.close()
    gate.open()
    server.wait_idle()
    assert value(server, "requests_total", mode="stream", outcome="cancelled") == 1


@pytest.mark.parametrize("leave", ["disconnect", "delete"])
def test_an_id_may_be_used_again_at_once(gate: Gate, start_server: StartServer, leave: str) -> None:
    """Nothing of the first request reaches the second, though the engine still speaks it."""
    server = start_server()
    headers = {"X-Request-Id": "abc"}
    body = {"text": "30 frames", "streaming": True}
    for _ in range(5):
        gate.close()
        gate.allow(2)
        with server.http.stream("POST", "/generate", json=body, headers=headers) as response:
            assert response.status_code == 200
            if leave == "delete":
                assert server.http.delete("/requests/abc").status_code == 204
        until(lambda: not server.client.open_requests)
        gate.open()
        again = server.http.post("/generate", json={"text": "3 hums"}, headers=headers)
        assert again.status_code == 200
        assert len(again.content) == 44 + 3 * 1280
        server.wait_idle()
