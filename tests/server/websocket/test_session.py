"""WebSocket /v1/audio/stream: text in pieces, audio while it is generated, every kind of end."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from tests.audio.test_formats import EXTRA_SAMPLES, decode
from tests.conftest import TONE, RunningServer, running_server, until
from tests.launched import launched
from tests.server.conftest import Gate, busy, post_raw, value
from tests.server.test_life import FRAME_BYTES, is_idle
from tests.tone import CHECKPOINT, ToneCodec
from vox_serve.config import EngineConfig, ServerConfig
from vox_serve.errors import Unavailable
from vox_serve.messages import SpeechRequest
from vox_serve.server.websocket.connection import MAX_MESSAGE_BYTES
from vox_serve.server.websocket.text_queue import MAX_WAITING_CHARACTERS, TextQueue
from vox_serve.text import FrontEnd
from vox_serve.workers.client import WorkerClient
from vox_serve.workers.reading import TextReader, text_jobs

StartServer = Callable[..., RunningServer]
ROOT = Path(__file__).parents[3]
TEXT = "Here are 7 frames. And 3 more! Is this 4? The last has 5"
SENTENCES = ["Here are 7 frames.", "And 3 more!", "Is this 4?", "The last has 5"]


class Speaker:
    """A client that records the events (dicts) and audio (bytes) it receives, in order."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.got: list[dict[str, Any] | bytes] = []

    def send(self, type: str, **fields: object) -> None:
        self.connection.send(json.dumps({"type": type, **fields}))

    def receive(self, seconds: float = 10) -> dict[str, Any] | bytes:
        message = self.connection.recv(seconds)
        self.got.append(json.loads(message) if isinstance(message, str) else message)
        return self.got[-1]

    def until(self, type: str) -> dict[str, Any]:
        """Receive up to the next event of this type (`audio`: the next sound)."""
        while True:
            message = self.receive()
            if isinstance(message, bytes):
                if type == "audio":
                    return {}
            elif message["type"] == type:
                return message

    def close(self) -> tuple[int | None, str | None]:
        """Receive everything; returns the code and reason with which the server closed."""
        try:
            while True:
                self.receive()
        except ConnectionClosed:
            return self.connection.close_code, self.connection.close_reason

    @property
    def events(self) -> list[dict[str, Any]]:
        return [message for message in self.got if isinstance(message, dict)]

    @property
    def audio(self) -> bytes:
        return b"".join(message for message in self.got if isinstance(message, bytes))

    @property
    def segments(self) -> list[tuple[str, bytes]]:
        """The text of each segment, and the audio that followed."""
        found: list[tuple[str, bytes]] = []
        for message in self.got:
            if isinstance(message, bytes):
                found[-1] = (found[-1][0], found[-1][1] + message)
            elif message["type"] == "segment":
                found.append((message["text"], b""))
        return found


@contextmanager
def dial(url: str, **settings: Any) -> Iterator[Speaker]:
    address = url.replace("http://", "ws://") + "/v1/audio/stream"
    with connect(address, close_timeout=5, **settings) as connection:
        yield Speaker(connection)


@contextmanager
def session(server: RunningServer, **start: object) -> Iterator[Speaker]:
    """A started session."""
    with dial(server.url) as speaker:
        speaker.send("start", **start)
        assert speaker.until("started")["type"] == "started"
        yield speaker


def said(server: RunningServer, text: str, **fields: object) -> bytes:
    """The audio of /generate for a text."""
    answer = server.http.post("/generate", json={"text": text, "format": "pcm", **fields})
    assert answer.status_code == 200, answer.text
    return answer.content


def check_fatal(speaker: Speaker, close: int, code: str, param: str | None = None) -> str:
    """Check the last event and the close code; returns the error's message."""
    assert speaker.close() == (close, code)
    error = speaker.events[-1]
    assert error["type"] == "error"
    assert error["fatal"] is True
    assert (error["error"]["code"], error["error"]["param"]) == (code, param)
    server_fault = close in (1001, 1011, 1013) and code not in ("queue_full", "conflict")
    assert error["error"]["type"] == ("server_error" if server_fault else "invalid_request_error")
    return str(error["error"]["message"])


def spoken_whole(server: RunningServer, bits: list[str], **start: object) -> Speaker:
    with session(server, **start) as speaker:
        for bit in bits:
            speaker.send("text", text=bit)
        speaker.send("end")
        assert speaker.close() == (1000, "done")
    return speaker


# Text in, audio out


def test_the_first_event_describes_the_audio(tone_server: RunningServer) -> None:
    with session(tone_server) as speaker:
        (started,) = speaker.events
    assert re.fullmatch("[0-9a-f]{32}", started.pop("request_id"))
    assert started == {
        "type": "started",
        "model": "tone",
        "format": "pcm",
        "sample_rate": 8000,
        "channels": 1,
    }


def test_open_sessions_are_counted(tone_server: RunningServer) -> None:
    def counted() -> float:
        return value(tone_server, "websocket_sessions")

    with session(tone_server), session(tone_server):
        assert counted() == 2
    until(lambda: counted() == 0)


@pytest.mark.parametrize("bits", [[TEXT], list(TEXT), re.findall(r"\S+\s*", TEXT)])
def test_text_is_spoken_however_it_is_split(tone_server: RunningServer, bits: list[str]) -> None:
    speaker = spoken_whole(tone_server, bits, speaker=1)
    assert " ".join(text for text, _ in speaker.segments) == TEXT
    for text, audio in speaker.segments:
        assert audio == said(tone_server, text, speaker=1), text
    starts = [event["start_seconds"] for event in speaker.events if event["type"] == "segment"]
    lengths = [len(audio) / 16_000 for _, audio in speaker.segments]
    assert starts == pytest.approx([sum(lengths[:n]) for n in range(len(lengths))])
    assert speaker.events[-1] == {
        "type": "done",
        "finish_reason": "stop",
        "seconds": pytest.approx(len(speaker.audio) / 16_000),
        "segments": len(lengths),
    }
    tone_server.wait_idle()


def test_a_sentence_is_spoken_before_the_next_one_arrives(tone_server: RunningServer) -> None:
    with session(tone_server) as speaker:
        for sentence, more in zip(SENTENCES[:3], "AIT", strict=True):
            speaker.send("text", text=f"{sentence} {more}")
            assert speaker.until("segment")["text"].endswith(sentence[1:])
            speaker.until("audio")
        assert [event["segment"] for event in speaker.events[1:]] == [0, 1, 2]
        tone_server.wait_idle()


def test_waiting_sentences_are_joined_into_one_segment(
    gate: Gate, gated_server: RunningServer
) -> None:
    gate.close()
    with session(gated_server) as speaker:
        speaker.send("text", text="1 first. And ")
        until(lambda: gated_server.client.open_requests == 1)
        speaker.send("text", text="2 second. And 3 third. And 4")
        gate.open()
        speaker.send("end")
        speaker.close()
    assert [text for text, _ in speaker.segments] == [
        "1 first.",
        "And 2 second. And 3 third. And 4",
    ]


def test_text_that_is_too_long_is_cut(tone_server: RunningServer) -> None:
    """The tone's context has room for 96 characters per segment."""
    text = " ".join(f"{n} is the number of this sentence." for n in range(1, 12))
    speaker = spoken_whole(tone_server, [text])
    assert len(speaker.segments) > 3
    assert all(len(text) <= 96 for text, _ in speaker.segments)
    assert " ".join(text for text, _ in speaker.segments) == text


def test_text_without_words_is_silent(tone_server: RunningServer) -> None:
    for bits in ([], [""], [" \n", "..."]):
        speaker = spoken_whole(tone_server, bits)
        assert [event["type"] for event in speaker.events] == ["started", "done"]
        assert speaker.audio == b""
        assert speaker.events[-1]["seconds"] == 0


def test_aliases_of_voices_work_here_too(start_server: Callable[..., RunningServer]) -> None:
    """The route is under /v1, where all of OpenAI's voices have aliases."""
    server = start_server(server=ServerConfig(port=0, voice_alias=("narrator=hum_b",)))
    spoken = {}
    for voice in ("hum_a", "hum_b", "alloy", "ash", "narrator"):
        with session(server, voice=voice, seed=3) as speaker:
            speaker.send("text", text="5 frames.")
            speaker.send("end")
            speaker.until("done")
            spoken[voice] = speaker.audio
    assert spoken["alloy"] == spoken["hum_a"] != spoken["hum_b"]
    assert spoken["ash"] == spoken["narrator"] == spoken["hum_b"]


def test_sampling_voice_and_max_seconds_come_from_start(tone_server: RunningServer) -> None:
    fields = {"voice": "hum_b", "temperature": 1.5, "seed": 3, "top_k": 9, "max_seconds": 0.4}
    speaker = spoken_whole(tone_server, ["150 frames"], model="tone", **fields)
    assert speaker.audio == said(tone_server, "150 frames", **fields)
    assert len(speaker.audio) == 5 * FRAME_BYTES
    assert speaker.events[-1]["finish_reason"] == "length"


@pytest.mark.parametrize("form", ["wav", "flac", "mp3", "opus", "aac"])
def test_each_utterance_is_a_file(tone_server: RunningServer, form: str) -> None:
    with session(tone_server, format=form) as speaker:
        assert speaker.events[0]["format"] == form
        speaker.send("text", text="20 frames! And 5 frames! ")
        speaker.send("flush")
        speaker.until("flushed")
        first = speaker.audio
        speaker.send("text", text="10 frames")
        speaker.send("end")
        speaker.close()
    seconds = [event["seconds"] for event in speaker.events if "seconds" in event]
    assert seconds in ([2.0, 2.8], [1.6, 2.4])  # in one segment or in two
    for file, length in ((first, seconds[0]), (speaker.audio[len(first) :], 0.8)):
        audio, rate = decode(file)
        surplus = len(audio) - length * rate
        assert 0 <= surplus <= EXTRA_SAMPLES[form]
        assert np.abs(audio).max() > 10_000


def test_segments_are_turns_of_a_private_conversation(tone_server: RunningServer) -> None:
    """It is forgotten with the session."""

    def forget(speaker: Speaker) -> bool:
        name = f"~{speaker.events[0]['request_id']}"
        assert tone_server.http.delete(f"/conversations/{name}").status_code == 404
        client = tone_server.client
        return asyncio.run_coroutine_threadsafe(
            client.forget(name), client.replicas[0].worker._link._loop
        ).result(5)

    for speak, found in ((True, True), (False, False)):
        with session(tone_server) as speaker:
            if speak:
                speaker.send("text", text="3! ")
                speaker.send("flush")
                speaker.until("flushed")
            assert forget(speaker) == found
    speaker = spoken_whole(tone_server, ["3! ", "And 4"])
    assert not forget(speaker)


def test_a_model_without_context_has_no_conversations(start_server: StartServer) -> None:
    server = start_server()
    server.client.replicas[0].worker.info = attrs.evolve(server.client.info, takes_context=False)
    speaker = spoken_whole(server, ["3! ", "And 4"])
    name = speaker.events[0]["request_id"]
    with dial(server.url) as speaker:
        speaker.send("start", conversation="talk")
        check_fatal(speaker, 1008, "unspeakable_text", "conversation")
    server.client.replicas[0].worker.info = attrs.evolve(server.client.info, takes_context=True)
    assert server.http.delete(f"/conversations/~{name}").status_code == 404


def with_words(text: str) -> str:
    return text.rstrip(".").replace("fee", "3 " + "words " * 12)


def test_limits_count_the_normalised_text_and_clients_see_the_original(
    start_server: StartServer,
) -> None:
    server = start_server()
    front_end = FrontEnd(language=None, finish=with_words)
    server.client.reader = TextReader(front_end, text_jobs(in_thread=True))
    speaker = spoken_whole(server, ["fee fee "])
    assert [text for text, _ in speaker.segments] == ["fee fee"]
    assert len(speaker.audio) == 2 * 3 * FRAME_BYTES, "it is not spoken in two parts"


# flush, cancel, end


def test_flush_speaks_an_unfinished_sentence(tone_server: RunningServer) -> None:
    with session(tone_server) as speaker:
        speaker.send("text", text="Well, 3 and")
        with pytest.raises(TimeoutError):
            speaker.receive(0.2)
        speaker.send("flush")
        assert speaker.until("flushed") == {"type": "flushed", "seconds": 0.24}
        assert speaker.segments == [("Well, 3 and", said(tone_server, "Well, 3 and"))]
        speaker.send("flush")
        assert speaker.until("flushed")["seconds"] == 0.24
        speaker.send("text", text="2 others")
        speaker.send("end")
        assert speaker.close() == (1000, "done")
    assert speaker.segments[1:] == [("2 others", said(tone_server, "2 others"))]


@pytest.mark.parametrize("speaking", [True, False])
def test_a_session_is_ended_by_its_id(
    gate: Gate, gated_server: RunningServer, speaking: bool
) -> None:
    server = gated_server
    with session(server) as speaker:
        if speaking:
            gate.allow(2)
            speaker.send("text", text="150 frames of this. And 20 of that. ")
            speaker.until("audio")
        path = f"/requests/{speaker.events[0]['request_id']}"
        assert server.http.delete(path).status_code == 204
        message = check_fatal(speaker, 1008, "cancelled")
        assert message == "the session was cancelled"
        assert server.http.delete(path).status_code == 404
        gate.open()
        until(lambda: is_idle(server), 1)
    assert value(server, "requests_total", mode="stream", outcome="cancelled") == speaking
    assert value(server, "client_disconnects_total", phase="stream") == 0, (
        "the client was counted as gone"
    )


def test_cancel_silences_and_the_next_text_is_spoken(
    gate: Gate, gated_server: RunningServer
) -> None:
    server = gated_server
    with session(server) as speaker:
        gate.allow(2)  # the first two frames are sent separately
        speaker.send("text", text="150 frames of this. And 20 of that. And what is")
        while len(speaker.audio) < 2 * FRAME_BYTES:
            speaker.until("audio")
        speaker.send("cancel")
        cancelled = speaker.until("cancelled")
        assert cancelled == {"type": "cancelled", "segment": 0, "seconds": 0.16}
        assert len(speaker.audio) == 2 * FRAME_BYTES
        assert not server.client.open_requests
        gate.open()
        until(lambda: is_idle(server), 1)
        before = len(speaker.got)
        speaker.send("text", text="2 frames")
        speaker.send("flush")
        speaker.until("flushed")
        assert isinstance(speaker.got[before], dict), "audio came after `cancelled`"
        speaker.send("end")
        assert speaker.close() == (1000, "done")
    assert speaker.segments[1:] == [("2 frames", said(server, "2 frames"))]
    assert value(server, "requests_total", mode="stream", outcome="cancelled") == 1
    assert value(server, "requests_total", mode="stream", outcome="ok") == 1
    assert value(server, "finished_total", reason="cancelled") == 1
    phases = ("queued", "first_audio", "stream")
    assert sum(value(server, "client_disconnects_total", phase=p) for p in phases) == 0
    assert value(server, "frames_total") < 100


def test_a_text_that_waits_for_a_slot_can_be_cancelled(
    gate: Gate, start_server: StartServer
) -> None:
    server = start_server(engine=attrs.evolve(TONE, max_batch_size=1))
    gate.close()
    slots = TONE.replicas
    with busy(server, slots), session(server) as speaker:
        speaker.send("text", text="Now 9! ")
        until(lambda: server.client.open_requests == slots + 1)
        speaker.send("cancel")
        assert speaker.until("cancelled") == {"type": "cancelled", "segment": None, "seconds": 0}
        assert server.client.open_requests == slots
        gate.open()


def test_cancel_without_anything_to_cancel_is_answered(tone_server: RunningServer) -> None:
    with session(tone_server) as speaker:
        for _ in range(2):
            speaker.send("cancel")
            assert speaker.until("cancelled")["segment"] is None
        speaker.send("text", text="This will never be whole")
        speaker.send("cancel")
        speaker.send("end")
        assert speaker.close() == (1000, "done")
    assert speaker.audio == b""


def test_cancel_after_end_stops_the_speech(gate: Gate, gated_server: RunningServer) -> None:
    gate.allow(1)
    with session(gated_server) as speaker:
        speaker.send("text", text="150 frames. And 20 of that")
        speaker.send("end")
        speaker.until("audio")
        speaker.send("cancel")
        assert speaker.close() == (1000, "done")
    assert [e["type"] for e in speaker.events] == ["started", "segment", "cancelled", "done"]
    assert speaker.events[-1]["seconds"] == 0.08
    gate.open()
    until(lambda: is_idle(gated_server), 1)


# Errors and limits


@pytest.mark.parametrize(
    ("message", "close", "param"),
    [
        ("{", 1007, None),
        ("", 1007, None),
        ("[]", 1007, None),
        ("null", 1007, None),
        ("[" * 20_000, 1007, None),
        ("{}", 1007, "type"),
        ('{"type": "sing"}', 1007, "type"),
        ('{"type": 1}', 1007, "type"),
        ('{"type": "text"}', 1007, "text"),
        ('{"type": "text", "text": 1}', 1007, "text"),
        ('{"type": "text", "text": "a", "final": true}', 1007, "final"),
        ('{"type": "flush", "now": true}', 1007, "now"),
        ('{"type": "start"}', 1008, "type"),
        (b"audio", 1003, None),
    ],
)
def test_bad_messages_close_the_connection(
    tone_server: RunningServer, message: str | bytes, close: int, param: str | None
) -> None:
    with session(tone_server) as speaker:
        speaker.connection.send(message)
        check_fatal(speaker, close, "invalid_request", param)
    tone_server.wait_idle()


@pytest.mark.parametrize(
    ("start", "close", "code", "param"),
    [
        ({"streaming": True}, 1007, "invalid_request", "streaming"),
        ({"text": "Hello."}, 1007, "invalid_request", "text"),
        ({"speaker": "0"}, 1007, "invalid_request", "speaker"),
        ({"top_k": 1.5}, 1007, "invalid_request", "top_k"),
        ({"top_p": 2}, 1008, "invalid_request", "top_p"),
        ({"format": "midi"}, 1008, "invalid_request", "format"),
        ({"voice": "hum_a", "speaker": 0}, 1008, "invalid_request", "voice"),
        ({"conversation": "~1"}, 1008, "invalid_request", "conversation"),
        ({"model": "other"}, 1008, "not_found", "model"),
        ({"voice": "nobody"}, 1008, "not_found", "voice"),
        ({"speaker": 7}, 1008, "not_found", "speaker"),
    ],
)
def test_bad_starts_close_the_connection(
    start_server: StartServer, start: dict[str, object], close: int, code: str, param: str
) -> None:
    server = start_server()
    with dial(server.url) as speaker:
        speaker.send("start", **start)
        check_fatal(speaker, close, code, param)
    assert value(server, "requests_total", mode="stream", outcome="invalid") == 1


@pytest.mark.parametrize("type", ["text", "flush", "cancel", "end"])
def test_the_first_message_must_be_start(tone_server: RunningServer, type: str) -> None:
    with dial(tone_server.url) as speaker:
        speaker.send(type, **({"text": "Hello."} if type == "text" else {}))
        message = check_fatal(speaker, 1008, "invalid_request", "type")
    assert message == "the first message must be start"


@pytest.mark.parametrize("type", ["text", "flush", "end"])
def test_messages_after_end_are_refused(gate: Gate, gated_server: RunningServer, type: str) -> None:
    gate.close()
    with session(gated_server) as speaker:
        speaker.send("text", text="5")
        speaker.send("end")
        speaker.send(type, **({"text": "6"} if type == "text" else {}))
        check_fatal(speaker, 1008, "invalid_request", "type")
    gate.open()
    until(lambda: is_idle(gated_server), 1)


def test_waiting_text_is_limited(gate: Gate, gated_server: RunningServer) -> None:
    gate.close()
    line = "These are forty characters, and no more. "
    with session(gated_server) as speaker:
        speaker.send("text", text=line)
        speaker.send("text", text=line)
        until(lambda: gated_server.client.open_requests == 1)
        speaker.send("text", text=line * 240)
        speaker.send("flush")
        speaker.send("text", text=line * 10)
        message = check_fatal(speaker, 1008, "invalid_request", "text")
        assert str(MAX_WAITING_CHARACTERS) in message
    gate.open()
    until(lambda: is_idle(gated_server), 1)


def test_spoken_and_cancelled_text_does_not_count_as_waiting(tone_server: RunningServer) -> None:
    with session(tone_server) as speaker:
        for message, answer in (("cancel", "cancelled"), ("flush", "flushed")) * 2:
            speaker.send("text", text="1 frame of sound. " * (MAX_WAITING_CHARACTERS // 18 - 6))
            speaker.send(message)
            speaker.until(answer)
        assert len(speaker.segments) > 2 * 90


def test_flushes_count_as_waiting_text(gate: Gate, gated_server: RunningServer) -> None:
    gate.close()
    with session(gated_server) as speaker:
        speaker.send("text", text="5! ")
        for _ in range(MAX_WAITING_CHARACTERS + 1):
            speaker.send("flush")
        check_fatal(speaker, 1008, "invalid_request", "text")
    gate.open()


def test_the_size_of_a_message_is_limited(tone_server: RunningServer) -> None:
    with session(tone_server) as speaker:
        speaker.send("text", text="a" * MAX_MESSAGE_BYTES)
        assert speaker.close()[0] == 1009
    tone_server.wait_idle()


@pytest.mark.parametrize(
    ("word", "code"),
    [
        ("unspeakable", "unspeakable_text"),
        ("unprefillable", "generation_failed"),
        ("nan", "generation_failed"),
    ],
)
def test_a_failed_segment_is_skipped(start_server: StartServer, word: str, code: str) -> None:
    server = start_server()
    with session(server) as speaker:
        for text in ("2 good", f"{word} 9", "3 good"):
            speaker.send("text", text=text)
            speaker.send("flush")
        for _ in range(3):
            speaker.until("flushed")
    (error,) = (event for event in speaker.events if event["type"] == "error")
    assert error["fatal"] is False
    assert (error["segment"], error["text"]) == (1, f"{word} 9")
    assert error["error"]["code"] == code
    spoken = dict(speaker.segments)
    assert spoken["2 good"] == said(server, "2 good")
    assert spoken["3 good"] == said(server, "3 good")
    outcome = "invalid" if word == "unspeakable" else "error"
    assert value(server, "requests_total", mode="stream", outcome=outcome) == 1


def test_a_bug_is_reported_without_its_text(
    tone_server: RunningServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def bug(self: TextQueue) -> str:
        raise RuntimeError("secret")

    monkeypatch.setattr(TextQueue, "next_text", bug)
    with session(tone_server) as speaker:
        speaker.send("text", text="5! ")
        assert "secret" not in check_fatal(speaker, 1011, "internal_error")
    assert "secret" in caplog.text


def test_a_silent_client_is_closed(start_server: StartServer) -> None:
    server = start_server(server=ServerConfig(port=0, request_timeout=0.3))
    with dial(server.url) as speaker:
        assert "0.3 seconds" in check_fatal(speaker, 1008, "invalid_request")
    with session(server) as speaker:
        speaker.send("text", text="2! ")
        assert "0.3 seconds" in check_fatal(speaker, 1008, "invalid_request")
        assert len(speaker.audio) == 2 * FRAME_BYTES
    assert value(server, "requests_total", mode="stream", outcome="ok") == 1


def test_a_text_that_takes_too_long_closes_the_session(
    gate: Gate, start_server: StartServer
) -> None:
    server = start_server(server=ServerConfig(port=0, request_timeout=0.3))
    gate.close()
    with session(server) as speaker:
        speaker.send("text", text="2! ")
        check_fatal(speaker, 1013, "timeout")
    gate.open()
    until(lambda: is_idle(server), 1)
    assert value(server, "requests_total", mode="stream", outcome="timeout") == 1


def test_a_full_queue_refuses_new_texts_but_not_later_segments(
    gate: Gate, start_server: StartServer
) -> None:
    """Later segments of a text are accepted even if the queue is full."""
    server = start_server(
        engine=attrs.evolve(TONE, max_batch_size=1), server=ServerConfig(port=0, max_queue=1)
    )
    gate.close()
    slots = TONE.replicas
    with busy(server, slots - 1), session(server) as speaker:
        speaker.send("text", text="1 is here! And ")
        until(lambda: server.client.open_requests == slots)
        with busy(server, 1):
            with session(server) as other:
                other.send("text", text="5! ")
                check_fatal(other, 1013, "queue_full")
            with post_raw(server, text="5"):  # also refused
                pass
            speaker.send("text", text="2 more.")
            gate.open()
            speaker.send("end")
            assert speaker.close() == (1000, "done")
    assert value(server, "requests_total", mode="stream", outcome="rejected") == 1
    assert len(speaker.segments) == 2


def test_later_segments_of_a_text_are_marked_as_continuing(
    tone_server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted: list[SpeechRequest] = []
    submit = WorkerClient.submit

    def spy(self: WorkerClient, request: SpeechRequest) -> object:
        submitted.append(request)
        return submit(self, request)

    monkeypatch.setattr(WorkerClient, "submit", spy)
    with session(tone_server) as speaker:
        for after in (None, None, "flush", "cancel", None):
            speaker.send("text", text="2 frames! ")
            speaker.until("segment")
            if after is not None:
                speaker.send(after)
                speaker.until({"flush": "flushed", "cancel": "cancelled"}[after])
    assert [request.continues for request in submitted] == [False, True, True, False, False]
    name = speaker.events[0]["request_id"]
    assert [request.id for request in submitted] == [f"{name}~{n}" for n in range(5)]


def test_after_cancel_the_queue_limit_applies_again(gate: Gate, start_server: StartServer) -> None:
    server = start_server(
        engine=attrs.evolve(TONE, max_batch_size=1), server=ServerConfig(port=0, max_queue=0)
    )
    with session(server) as speaker:
        speaker.send("text", text="1! ")
        speaker.until("audio")
        server.wait_idle()
        speaker.send("cancel")
        gate.close()
        with busy(server, TONE.replicas):
            speaker.send("text", text="2! ")
            check_fatal(speaker, 1013, "queue_full")
        gate.open()


def test_a_conversation_in_use_is_a_conflict(gate: Gate, gated_server: RunningServer) -> None:
    gate.close()
    with post_raw(gated_server, text="150 frames", conversation="talk"):
        until(lambda: gated_server.client.open_requests == 1)
        with session(gated_server, conversation="talk") as speaker:
            speaker.send("text", text="5! ")
            check_fatal(speaker, 1013, "conflict", "conversation")
        gate.open()


def test_a_conversation_outlives_the_session(start_server: StartServer) -> None:
    server = start_server()
    spoken_whole(server, ["5! "], conversation="talk")
    spoken_whole(server, ["5! "])
    assert server.http.delete("/conversations/talk").status_code == 204


def test_the_end_of_the_engine_closes_the_session(gate: Gate, gated_server: RunningServer) -> None:
    client = gated_server.client
    gate.allow(1)
    with session(gated_server) as speaker:
        speaker.send("text", text="150 frames! ")
        speaker.until("audio")
        worker = client.replicas[0].worker
        worker._link._loop.call_soon_threadsafe(worker.die, "it fell over")
        assert "it fell over" in check_fatal(speaker, 1013, "unavailable")


def test_a_message_that_is_not_utf8_closes_the_session(tone_server: RunningServer) -> None:
    with session(tone_server) as speaker:
        speaker.connection.send(b"\xff{", text=True)
        assert speaker.close()[0] == 1007
    tone_server.wait_idle()


# Clients that leave or are slow, and several sessions


def test_a_client_may_leave_during_a_stream(gate: Gate, gated_server: RunningServer) -> None:
    server = gated_server
    gate.allow(2)
    with session(server) as speaker:
        speaker.send("text", text="150 frames. And 9 ")
        speaker.until("audio")
        speaker.connection.socket.close()
        until(lambda: not server.client.open_requests, 1)
        gate.open()
        until(lambda: is_idle(server), 1)
    assert value(server, "requests_total", mode="stream", outcome="cancelled") == 1
    assert value(server, "client_disconnects_total", phase="stream") == 1
    assert value(server, "frames_total") < 100


def test_a_client_may_close_the_session_during_a_stream(
    gate: Gate, gated_server: RunningServer
) -> None:
    gate.allow(2)
    with session(gated_server) as speaker:
        speaker.send("text", text="150 frames. And 9 ")
        speaker.until("audio")
    until(lambda: not gated_server.client.open_requests, 1)
    gate.open()
    until(lambda: is_idle(gated_server), 1)


def test_a_client_that_never_reads_is_dropped(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only one segment is generated for it, and other sessions are served meanwhile."""
    monkeypatch.setattr(ToneCodec, "frame_size", 64_000)
    server = start_server(server=ServerConfig(port=0, send_timeout=0.7))
    with session(server, max_seconds=8.0) as idle:
        idle.send("text", text="100 frames! " * 8)
        idle.send("text", text="100 frames! " * 300)
        until(lambda: value(server, "frames_total") >= 1, 30)
        other = spoken_whole(server, ["2 frames"], max_seconds=8.0)
        assert len(other.audio) == 2 * 2 * 64_000
        until(lambda: value(server, "requests_total", mode="stream", outcome="cancelled") == 1, 30)
        until(lambda: is_idle(server), 1)
        assert value(server, "frames_total") <= 2 + 2 * 100, "the second text was begun"
    assert value(server, "client_disconnects_total", phase="stream") == 1


def test_a_slow_reader_gets_everything(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ToneCodec, "frame_size", 64_000)
    server = start_server(server=ServerConfig(port=0, send_timeout=10))
    with session(server, max_seconds=8.0) as speaker:
        speaker.send("text", text="60 frames! And ")
        until(lambda: value(server, "frames_total") >= 60)
        time.sleep(0.5)
        assert value(server, "requests_total", mode="stream", outcome="ok") == 0, (
            "it did not wait for its reader"
        )
        speaker.send("text", text="2 more")
        speaker.send("end")
        assert speaker.close() == (1000, "done")
    assert speaker.audio == b"".join(
        said(server, text, max_seconds=8.0) for text in ("60 frames!", "And 2 more")
    )


def test_audio_is_sent_in_small_frames(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients refuse large frames, usually those over 1 MiB."""
    monkeypatch.setattr(ToneCodec, "frame_size", 64_000)
    speaker = spoken_whole(start_server(), ["3"], max_seconds=8.0)
    sizes = {len(message) for message in speaker.got if isinstance(message, bytes)}
    assert sizes == {4000}
    assert len(speaker.audio) == 3 * 2 * 64_000


def test_two_sessions_may_speak_at_once(gate: Gate, gated_server: RunningServer) -> None:
    gate.close()
    with session(gated_server, speaker=0) as one, session(gated_server, speaker=1) as two:
        for speaker in (one, two):
            speaker.send("text", text=TEXT)
            speaker.send("end")
        until(lambda: gated_server.client.open_requests == 2)
        gate.open()
        assert (one.close(), two.close()) == ((1000, "done"), (1000, "done"))
    for number, speaker in enumerate((one, two)):
        for text, audio in speaker.segments:
            assert audio == said(gated_server, text, speaker=number)
    assert one.audio != two.audio


def test_a_session_uses_the_chosen_model(start_server: StartServer, tmp_path: Path) -> None:
    directory = shutil.copytree(CHECKPOINT, tmp_path / "other")
    server = start_server(others=[attrs.evolve(TONE, model=str(directory))])
    with dial(server.url) as speaker:
        speaker.send("start")
        check_fatal(speaker, 1008, "invalid_request", "model")
    for model in ("tone", "other"):
        speaker = spoken_whole(server, ["4"], model=model)
        assert speaker.events[0]["model"] == model
        assert speaker.audio == said(server, "4", model=model)
    assert server.metric('vox_serve_requests_total{mode="stream",model="other",outcome="ok"}') == 1


# The handshake, and the end of the server


def test_plain_http_gets_426(tone_server: RunningServer) -> None:
    answer = tone_server.http.get("/v1/audio/stream")
    assert answer.status_code == 426
    assert answer.json()["error"]["code"] == "upgrade_required"


def test_a_page_of_another_origin_is_refused(start_server: StartServer) -> None:
    server = start_server()
    own = server.url
    for origin in ("http://evil.example", "null", own + "1"):
        with pytest.raises(InvalidStatus) as caught, dial(server.url, origin=origin):
            pass
        assert caught.value.response.status_code == 403
        assert json.loads(caught.value.response.body)["error"]["code"] == "forbidden"
    with dial(server.url, origin=own) as speaker:
        speaker.send("start")
        speaker.until("started")
    counted = 'vox_serve_http_responses_total{code="403",model="tone",route="/v1/audio/stream"}'
    assert server.metric(counted) == 3


def test_compression_is_not_used(tone_server: RunningServer) -> None:
    with dial(tone_server.url) as speaker:
        assert "sec-websocket-extensions" not in speaker.connection.response.headers


@pytest.mark.parametrize("draining", [False, True])
def test_a_handshake_is_refused_while_the_server_is_not_ready(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch, draining: bool
) -> None:
    if draining:
        server = start_server()
        server.client.drain()
    else:
        monkeypatch.setenv("TONE_LOAD_ERROR", "1")
        server = start_server(wait=False)
    with pytest.raises(InvalidStatus) as caught, dial(server.url):
        pass
    answer = caught.value.response
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert json.loads(answer.body)["error"]["code"] == Unavailable.code


def test_sigterm_lets_sessions_finish_their_sentences(tmp_path: Path) -> None:
    with launched(tmp_path / "log", TONE_DELAY="0.02") as server:
        server.read_banner()
        url = str(server.http.base_url)
        with ExitStack() as stack:
            speaking, ending, silent, idle, new = (stack.enter_context(dial(url)) for _ in range(5))
            for speaker in (speaking, ending, silent, idle):
                speaker.send("start")
                speaker.until("started")
            speaking.send("text", text="41 frames! And 9 more! This is not wh")
            ending.send("text", text="41 frames! And 9 ")
            ending.send("flush")
            ending.send("text", text="8 of another utterance")
            ending.send("end")
            speaking.until("audio")
            silent.send("text", text="120 frames! ")
            ending.until("audio")
            silent.until("audio")
            server.process.send_signal(signal.SIGTERM)
            check_fatal(idle, 1001, "unavailable")
            check_fatal(new, 1001, "unavailable")
            silent.send("end")
            silent.send("cancel")
            check_fatal(silent, 1001, "unavailable")
            speaking.send("text", text="ole. And nobody hears this. ")
            check_fatal(speaking, 1001, "unavailable")
            assert ending.close() == (1000, "done")
        assert server.end(15) == 0
        assert "Traceback" not in server.read_log()
    assert " ".join(text for text, _ in speaking.segments) == "41 frames! And 9 more!"
    assert ending.segments[-1] == ("8 of another utterance", ending.segments[-1][1])
    assert len(ending.segments[-1][1]) == 8 * FRAME_BYTES


def test_sigterm_does_not_wait_forever(tmp_path: Path) -> None:
    with launched(tmp_path / "log", "--shutdown-timeout=1", TONE_DELAY="0.2") as server:
        server.read_banner()
        with dial(str(server.http.base_url)) as speaker:
            speaker.send("start", max_seconds=12)
            speaker.send("text", text="150 frames! ")
            speaker.until("audio")
            server.process.send_signal(signal.SIGTERM)
            assert server.end(10) == 0  # the stream would take 30 s
            assert speaker.close()[0] != 1000


# The document


@pytest.fixture(scope="module")
def demo_server() -> Iterator[RunningServer]:
    with running_server(EngineConfig(model="demo", max_batch_size=2)) as server:
        yield server


def section() -> str:
    document = (ROOT / "docs/http-api.md").read_text()
    return document.partition("## WebSocket /v1/audio/stream")[2].partition("\n## ")[0]


def test_the_example_client_runs_as_it_stands(demo_server: RunningServer, tmp_path: Path) -> None:
    (listing,) = re.findall(r"^```python\n(.*?)^```", section(), re.DOTALL | re.MULTILINE)
    assert "localhost:8000" in listing
    listing = listing.replace("localhost:8000", demo_server.url.removeprefix("http://"))
    command = [sys.executable, "-W", "error", "-c", listing]
    done = subprocess.run(
        command, cwd=tmp_path, check=True, timeout=60, capture_output=True, text=True
    )
    assert (tmp_path / "output.pcm").stat().st_size > 24_000
    assert "Hello there!" in done.stdout


def test_every_message_is_in_the_document() -> None:
    shown = [json.loads(line) for line in re.findall(r'`(\{"type".*?\})`', section())]
    types = {message["type"] for message in shown}
    assert types == {
        "start", "text", "flush", "cancel", "end",
        "started", "segment", "flushed", "cancelled", "done", "error",
    }  # fmt: skip
