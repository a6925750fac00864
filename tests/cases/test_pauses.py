"""Pauses are silence in the sound; inaudible text is reported; the language decides dates."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

from tests.cases.conftest import Reader
from tests.conftest import RunningServer
from tests.waiting import until
from vox_serve.config import ServerConfig

FRAMES = 5 * 1280
"""The size in bytes of the tone model's audio for a text without a number."""
SECOND = 16_000


def silences(pcm: bytes) -> list[tuple[float, float]]:
    """Start and length, in seconds, of silent stretches of 50 ms and more."""
    found, start = [], None
    samples = memoryview(pcm).cast("h")
    for at, sample in enumerate([*samples, 1]):
        if sample == 0 and start is None:
            start = at
        elif sample != 0 and start is not None:
            if at - start >= 400:
                found.append((round(start / 8000, 2), round((at - start) / 8000, 2)))
            start = None
    return found


PAUSED = {
    "One [pause 0.5s] there.": [(0.4, 0.5)],
    "<speak>One <break time='250ms'/> there.</speak>": [(0.4, 0.25)],
    "[pause 0.2s] One.": [(0.0, 0.2)],
    "One. [pause 1s]": [(0.4, 1.0)],
    "One.\n\nThere.": [(0.4, 0.3)],
    "# One\nThere.": [(0.4, 0.3)],
    "One <break strength='none'/> there.": [],
    "One.\nThere.": [],
}


@pytest.mark.parametrize(("text", "expected"), PAUSED.items())
def test_a_pause_is_silence_over_every_interface(
    reader: Reader, tmp_path: Path, text: str, expected: list[tuple[float, float]]
) -> None:
    whole = reader.by_http(text, format="pcm")
    assert whole.status_code == 200, whole.text
    assert silences(whole.content) == expected
    assert reader.by_http(text, format="pcm", streaming=True).content == whole.content
    assert reader.by_say(text, tmp_path / "out.pcm") == 0
    assert (tmp_path / "out.pcm").read_bytes() == whole.content
    heard = b"".join(m for m in reader.by_websocket(text) if isinstance(m, bytes))
    lengths = [length for _, length in silences(heard)]
    assert lengths == [length for _, length in expected]


def test_a_pause_between_paragraphs_replaces_the_usual_one(reader: Reader) -> None:
    answer = reader.by_http("One.\n\n[pause 0.1s]\n\nThere.", format="pcm")
    assert silences(answer.content) == [(0.4, 0.1)]


def test_a_long_pause_is_sent_in_pieces(reader: Reader) -> None:
    answer = reader.by_http("One [pause 10s] there.", format="pcm", streaming=True)
    assert len(answer.content) == 2 * FRAMES + 10 * SECOND
    assert silences(answer.content) == [(0.4, 10.0)]


@pytest.mark.parametrize(
    "text",
    ["One [pause 2s] there.", "[pause 0.9s] One.", "[pause 2s] One.", "[pause 9s] One. [pause 9s]"],
)
def test_max_seconds_includes_pauses(reader: Reader, text: str) -> None:
    answer = reader.by_http(text, format="pcm", max_seconds=1.0)
    assert SECOND - 1280 <= len(answer.content) <= SECOND
    assert answer.headers["x-finish-reason"] == "length"
    stream = reader.by_http(text, format="pcm", max_seconds=1.0, streaming=True)
    assert stream.content == answer.content


def test_the_seconds_of_a_session_include_pauses(reader: Reader) -> None:
    *_, done = reader.by_websocket("One. [pause 1s]")
    assert done["seconds"] == pytest.approx(1.4)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("language", "heard"),
    [
        ("en-GB", "on the third of april twenty twenty five."),
        ("en_AU", "on the third of april twenty twenty five."),
        ("English", "on the fourth of march twenty twenty five."),
        (None, "on the fourth of march twenty twenty five."),
        ("de", "on the fourth of march twenty twenty five."),
    ],
)
def test_a_date_is_read_in_the_order_of_its_language(
    reader: Reader, tmp_path: Path, language: str | None, heard: str
) -> None:
    fields = {} if language is None else {"language": language}
    reader.heard()
    answer = reader.by_http("On 3/4/2025.", **fields)
    assert reader.heard() == heard
    assert answer.headers.get("x-ignored-fields") == ("language" if language == "de" else None)
    started, *_ = reader.by_websocket("On 3/4/2025.", **fields)
    assert reader.heard() == heard
    assert started.get("ignored") == (["language"] if language == "de" else None)  # type: ignore[union-attr]
    flags = ("--language", language) if language else ()
    assert reader.by_say("On 3/4/2025.", tmp_path / "out.wav", *flags) == 0
    assert reader.heard() == heard


def test_a_websocket_keeps_lines_that_arrive_in_bits(reader: Reader) -> None:
    reader.heard()
    with connect(reader.server.url.replace("http", "ws") + "/v1/audio/stream") as websocket:
        websocket.send('{"type": "start"}')
        for bit in (
            "Chap",
            "ter One\n",
            "\nMilk\nBre",
            "ad\nSix eggs\n\n| A | B |\n|--",
            "-|---|\n| 1 | 2 |",
        ):
            websocket.send(json.dumps({"type": "text", "text": bit}))
        websocket.send('{"type": "end"}')
        events = [json.loads(m) for m in websocket if isinstance(m, str)]
    assert reader.heard() == "chapter one. milk, bread, six eggs. ay, bee. one, two."
    texts = [event["text"] for event in events if event["type"] == "segment"]
    assert " ".join(texts) == "Chapter One Milk Bread Six eggs | A | B | |---|---| | 1 | 2 |"


def test_a_websocket_keeps_a_document_whole(reader: Reader) -> None:
    """An SSML document is not cut between its sentences."""
    document = "<speak>One. <break time='250ms'/> Two. Three.</speak>"
    messages = reader.by_websocket(f"{document} And four.")
    segments = [m["text"] for m in messages if isinstance(m, dict) and m["type"] == "segment"]
    assert segments == [document, "And four."]
    heard = b"".join(m for m in messages if isinstance(m, bytes))
    assert [length for _, length in silences(heard)] == [0.25]


def test_silence_is_reported_counted_and_logged(
    tone_server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    before = tone_server.metric('vox_serve_inaudible_total{model="tone"}')
    with caplog.at_level(logging.WARNING, "vox_serve.requests"):
        answer = tone_server.http.post(
            "/generate", json={"text": "0 frames"}, headers={"X-Request-Id": "silent-1"}
        )
        # The server logs after it has answered.
        until(lambda: any(r.levelno == logging.WARNING for r in caplog.records))
    assert answer.headers["x-finish-reason"] == "inaudible"
    (record,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert getattr(record, "request_id", None) == "silent-1"
    assert tone_server.metric('vox_serve_inaudible_total{model="tone"}') == before + 1
    body = {"model": "tts-1", "voice": "alloy", "input": "0 frames", "stream_format": "sse"}
    events = tone_server.http.post("/v1/audio/speech", json=body).text
    assert '"finish_reason":"inaudible"' in events
    with connect(tone_server.url.replace("http", "ws") + "/v1/audio/stream") as websocket:
        for message in ({"type": "start"}, {"type": "text", "text": "0 frames"}, {"type": "end"}):
            websocket.send(json.dumps(message))
        done = [json.loads(m) for m in websocket if isinstance(m, str)][-1]
    assert done["finish_reason"] == "inaudible"


def test_a_text_without_words_may_be_silent(tone_server: RunningServer) -> None:
    """The tone model reads texts unchanged, and makes a sound for any text."""
    answer = tone_server.http.post("/generate", json={"text": "..."})
    assert answer.headers["x-finish-reason"] == "stop"


def test_a_model_without_a_front_end_gets_the_servers_dictionary(
    start_server: Callable[..., RunningServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "words.json").write_text('{"short": "9 frames"}')
    server = start_server(server=ServerConfig(port=0, lexicon=str(tmp_path / "words.json")))
    read: list[str] = []
    submit = server.client.submit

    def submitted(request: Any) -> Any:
        read.append(request.text)
        return submit(request)

    monkeypatch.setattr(server.client, "submit", submitted)
    assert len(server.http.post("/generate", json={"text": "a short one"}).content) == 44 + 9 * 1280
    assert read == ["a 9 frames one"]


def test_the_libraries_are_loaded_before_the_first_text() -> None:
    """This takes most of a second, so it happens while the server starts."""
    from tests.cases.reader import FRONT_END
    from vox_serve.workers.reading import TextReader

    seen: list[str] = []

    class Watched:
        def warm_up(self, work: Any, front_end: bytes, text: str) -> None:
            seen.append(work(front_end, text))

    TextReader(FRONT_END, Watched()).warm_up()  # type: ignore[arg-type]
    assert "two dollars fifty cents" in seen[0]
