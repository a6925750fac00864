"""Long texts are cut into parts, and spoken as one stream and one conversation."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable

import attrs
import pytest

from tests.conftest import TONE, RunningServer, until
from tests.server.conftest import Gate, post_raw, read_stream, value
from tests.server.test_bad_requests import check_error
from tests.tone import ToneCodec
from vox_serve.config import ServerConfig
from vox_serve.engine.engine import Engine
from vox_serve.engine.runner import ModelRunner
from vox_serve.engine.sequence import Sequence
from vox_serve.errors import UnspeakableText
from vox_serve.messages import LONG_TEXT_CHARACTERS, EngineInfo, SpeechRequest
from vox_serve.parts import in_parts, private_conversation
from vox_serve.text import FrontEnd
from vox_serve.workers.reading import TextReader, text_jobs

StartServer = Callable[..., RunningServer]
LONG = "This says 9 things to you all. " * 8
FRAMES = 9 * 4
"""Each of the four parts has two sentences, and lasts as long as its first number says."""


@pytest.fixture
def info(tone_engine: Engine) -> EngineInfo:
    return tone_engine.info("tone", "tone", 0.0)


def test_a_short_text_is_left_unchanged(info: EngineInfo) -> None:
    request = SpeechRequest("a", "  two   spaces ")
    assert attrs.asdict(in_parts(request, info)) == attrs.asdict(request)


def test_a_long_text_is_cut_into_parts_with_the_same_settings(info: EngineInfo) -> None:
    request = SpeechRequest("a", LONG, voice="hum_b", sampling={"seed": 3}, max_seconds=10)
    made = in_parts(request, info)
    texts = [made.text, *made.following]
    assert made.more
    assert " ".join(texts).split() == LONG.split()
    assert all(len(text) <= 96 for text in texts)
    assert made.conversation == private_conversation("a")
    back = attrs.evolve(made, text=LONG, following=(), more=False, conversation=None)
    assert attrs.asdict(back) == attrs.asdict(request)


def test_a_seed_repeats_all_parts(tone_server: RunningServer) -> None:
    body = {"text": LONG, "temperature": 1.0}
    first = tone_server.http.post("/generate", json=body)
    again = {"seed": int(first.headers["X-Seed"])}
    assert tone_server.http.post("/generate", json=body | again).content == first.content
    assert tone_server.http.post("/generate", json=body).content != first.content


def test_parts_respect_the_limits_of_the_model(info: EngineInfo) -> None:
    limited = attrs.evolve(info, max_characters=40, max_words=6, takes_context=False)
    found = in_parts(SpeechRequest("a", LONG, context=()), limited)
    assert len(found.following) > 4
    for text in (found.text, *found.following):
        assert len(text) <= 40
        assert len(text.split()) <= 6
    assert found.conversation is None


def test_the_clients_conversation_replaces_the_private_one(info: EngineInfo) -> None:
    assert in_parts(SpeechRequest("a", LONG, conversation="mine"), info).conversation == "mine"


def test_the_limits_count_the_normalised_text(info: EngineInfo) -> None:
    limited = attrs.evolve(info, max_characters=40)
    front_end = FrontEnd(language=None, finish=lambda text: "a. " * 20)
    made = in_parts(SpeechRequest("a", "ab"), limited, front_end)
    assert len(made.following) == 1


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


def test_max_seconds_limits_all_parts_together(tone_server: RunningServer) -> None:
    seconds = 20 * 0.08  # two parts and two frames of the third
    answer = tone_server.http.post("/generate", json={"text": LONG, "max_seconds": seconds})
    assert len(answer.content) == 44 + 20 * 1280
    assert answer.headers["X-Finish-Reason"] == "length"


def test_unspeakable_text_is_reported_before_the_first_sound(
    tone_server: RunningServer,
) -> None:
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


def test_later_parts_go_before_waiting_requests(
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
    slots = TONE.replicas
    long = [post_raw(server, text=LONG, streaming=True) for _ in range(slots)]
    until(lambda: server.client.open_requests == slots)
    waiting = post_raw(server, text="3 hums", streaming=True)
    until(lambda: server.client.open_requests == slots + 1)
    gate.open()
    for one, frames in (*((one, FRAMES) for one in long), (waiting, 3)):
        assert len(read_stream(one)) == 44 + frames * 1280
        one.close()
    counts = Counter(spoken)
    assert sorted(counts.values()) == [1] + [4] * slots
    waiting_id = min(counts, key=counts.__getitem__)
    assert 4 in Counter(spoken[: spoken.index(waiting_id)]).values(), "a long text had ended"
    assert value(server, "finished_total", reason="stop") == slots + 1


def test_a_draining_server_speaks_the_remaining_parts(
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


LATER = "And 9 more of them. " * 80
"""About twenty parts of 9 frames each."""


@pytest.fixture
def long_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames of 8 s; a few of them overflow every buffer on the way."""
    monkeypatch.setattr(ToneCodec, "frame_size", 64_000)


def is_still(server: RunningServer) -> bool:
    """Whether no frame is generated for a while."""
    made = value(server, "frames_total")
    time.sleep(0.3)
    return value(server, "frames_total") == made


def test_later_parts_wait_until_the_client_reads(
    start_server: StartServer, long_frames: None
) -> None:
    """Meanwhile it takes neither a slot nor memory for the rest; then it continues."""
    server = start_server(engine=attrs.evolve(TONE, max_batch_size=1))
    body = {"text": LATER, "streaming": True, "format": "pcm"}
    whole = server.http.post("/generate", json={**body, "streaming": False}).content
    frames = len(whole) // 128_000
    before = value(server, "frames_total")
    assert before == frames > 150
    with post_raw(server, receive_buffer=4096, **body) as idle:
        until(lambda: value(server, "frames_total") > before)
        until(lambda: is_still(server), 10)
        made = value(server, "frames_total") - before
        assert made < 100
        other = server.http.post("/generate", json={"text": "5 frames"})
        assert other.status_code == 200, "the only slot is not free"
        assert value(server, "frames_total") - before == made + 5
        assert server.client.open_requests == 1
        assert read_stream(idle) == whole
    server.wait_idle()
    assert value(server, "requests_total", mode="stream", outcome="ok") == 1
    assert value(server, "finished_total", reason="stop") == 3


def test_a_client_that_leaves_between_unread_parts_frees_everything(
    start_server: StartServer, long_frames: None
) -> None:
    """Between two parts no sequence can be aborted, but the conversation is still busy."""
    server = start_server()
    body = {"text": LATER, "streaming": True, "conversation": "talk"}
    with post_raw(server, receive_buffer=4096, **body):
        until(lambda: value(server, "frames_total") > 0)
        until(lambda: is_still(server), 10)
        busy = server.http.post("/generate", json={"text": "5", "conversation": "talk"})
        check_error(busy, 409, code="conflict", param="conversation")
    until(lambda: not server.client.open_requests)
    until(lambda: value(server, "finished_total", reason="cancelled") == 1)
    again = server.http.post("/generate", json={"text": "5", "conversation": "talk"})
    assert again.status_code == 200


class Cutter:
    """A text normaliser that blocks on long texts until the test lets it finish."""

    def __init__(self) -> None:
        self.working = threading.Event()
        self.done = threading.Event()
        self.asked = 0

    def __call__(self, text: str) -> str:
        self.asked += 1
        if len(text) > LONG_TEXT_CHARACTERS:
            self.working.set()
            assert self.done.wait(10)
            if "unsayable" in text:
                raise UnspeakableText("text holds what cannot be said", "text")
        return text


CUTTERS: list[Cutter] = []


def finish(text: str) -> str:
    """A module-level function, because only those can be sent to another process."""
    return CUTTERS[-1](text)


def with_cutter(server: RunningServer) -> Cutter:
    CUTTERS.append(Cutter())
    front_end = FrontEnd(language=None, finish=finish)
    server.client.reader = TextReader(front_end, text_jobs(in_thread=True))
    return CUTTERS[-1]


@pytest.fixture
def narrow(start_server: StartServer) -> RunningServer:
    """A server with one slot for each replica and a queue of one."""
    return start_server(
        engine=attrs.evolve(TONE, max_batch_size=1), server=ServerConfig(port=0, max_queue=1)
    )


@pytest.mark.parametrize("end", ["spoken", "refused", "left"])
def test_other_requests_go_on_while_a_long_text_is_cut(narrow: RunningServer, end: str) -> None:
    cutter = with_cutter(narrow)
    text = LATER + "unsayable" * (end == "refused")
    with post_raw(narrow, text=text, streaming=True, max_seconds=1) as long:
        assert cutter.working.wait(5)
        assert narrow.http.post("/generate", json={"text": "5"}).status_code == 200
        if end == "left":
            long.close()
            until(lambda: value(narrow, "requests_total", mode="stream", outcome="cancelled") == 1)
        cutter.done.set()
        if end == "spoken":
            assert len(read_stream(long)) == 44 + 12 * 1280
        elif end == "refused":
            assert long.recv(12) == b"HTTP/1.1 422"
    narrow.wait_idle()
    assert narrow.client._expected == 0


def test_a_full_queue_is_reported_before_anything_is_cut(gate: Gate, narrow: RunningServer) -> None:
    cutter = with_cutter(narrow)
    gate.close()
    waiting = [post_raw(narrow, text="5 frames") for _ in range(TONE.replicas)]
    until(lambda: narrow.client.open_requests == TONE.replicas)
    waiting.append(post_raw(narrow, text=LATER))  # it keeps its place in the queue while it is cut
    assert cutter.working.wait(5)
    asked = cutter.asked
    for text in ("5 frames", LATER):
        check_error(narrow.http.post("/generate", json={"text": text}), 429, code="queue_full")
    assert cutter.asked == asked
    cutter.done.set()
    gate.open()
    for connection in waiting:
        assert connection.recv(15) == b"HTTP/1.1 200 OK"
        connection.close()


@pytest.mark.parametrize("leave", ["disconnect", "delete"])
def test_an_id_may_be_used_again_at_once(gate: Gate, start_server: StartServer, leave: str) -> None:
    """The second request gets no audio of the first, although the engine still speaks that one."""
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
