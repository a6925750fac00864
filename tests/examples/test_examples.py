"""Each program of examples/ does what its first line says; ffprobe and ffmpeg check the files."""

from __future__ import annotations

import ast
import base64
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from ebooklib import epub
from websockets.sync.client import connect

from tests.conftest import RunningServer
from tests.examples.conftest import EXAMPLES
from vox_serve.config import ServerConfig

Probe = Callable[[Path], dict[str, Any]]
PROGRAMS = sorted(EXAMPLES.glob("*.py"))


def ws(server: RunningServer) -> str:
    return server.url.replace("http", "ws", 1)


@contextmanager
def stub(handle: Callable[[str, bytes], tuple[str, bytes]]) -> Iterator[str]:
    """A server that answers each POST with what `handle(path, body)` returns."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            kind, answer = handle(self.path, body)
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_each_is_short_and_says_how_it_is_run(program: Path) -> None:
    text = program.read_text()
    assert text.count("\n") < 60
    first, _, usage = (ast.get_docstring(ast.parse(text)) or "").partition("\n")
    assert first.endswith(".")
    assert f"python examples/{program.name} " in usage


def test_each_sends_the_key_of_a_server_that_has_keys(
    start_server: Callable[..., RunningServer],
    example: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = start_server(server=ServerConfig(port=0, api_key=("a-secret-key-of-a-test",)))
    monkeypatch.setenv("VOX_SERVE_API_KEY", "a-secret-key-of-a-test")
    (tmp_path / "talk.txt").write_text("First 10.")
    example("captions.py", "talk.txt", "-o", "talk.srt", "--server", ws(server))
    example("audiobook.py", "talk.txt", "-o", "talk.m4b", "--server", server.url)
    example("voice_message.py", "20 frames", "--server", server.url)
    monkeypatch.setenv("VOX_SERVE_API_KEY", "another")
    with pytest.raises(AssertionError, match="401"):
        example("captions.py", "talk.txt", "-o", "talk.srt", "--server", ws(server))
    for program in PROGRAMS:
        assert "VOX_SERVE_API_KEY" in program.read_text()


# talk_to_llm.py


def chat_answer(words: list[str]) -> bytes:
    """A streamed completion in the format of OpenAI's API, one event per word."""
    events = [
        {
            "id": "1",
            "object": "chat.completion.chunk",
            "created": 0,
            "model": "stub",
            "choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}],
        }
        for word in words
    ]
    events.append(events[0] | {"choices": []})  # like the final event with the usage
    return b"".join(b"data: %s\n\n" % json.dumps(e).encode() for e in events) + b"data: [DONE]\n\n"


def test_an_answer_is_heard_sentence_by_sentence(
    example: Callable[..., str], tone_server: RunningServer, tmp_path: Path, probe: Probe
) -> None:
    asked: list[list[dict[str, str]]] = []

    def answer(path: str, body: bytes) -> tuple[str, bytes]:
        assert path == "/v1/chat/completions"
        asked.append(json.loads(body)["messages"])
        words = ["Ten ", "frames 10. Twen", "ty frames", " 20."]
        return "text/event-stream", chat_answer(words)

    (tmp_path / "player").write_text("cat > answer$(ls answer*.wav 2>/dev/null | wc -l).wav\n")
    with stub(answer) as llm:
        printed = example(
            "talk_to_llm.py",
            *("--server", ws(tone_server), "--llm", f"{llm}/v1"),
            *("--model", "stub", "--player", "sh player"),
            input="How many?\nAnd again?\n\n",
            env={"OPENAI_API_KEY": "none", "PATH": "/usr/bin:/bin"},
        )
    roles = [[message["role"] for message in chat] for chat in asked]
    assert roles == [["user"], ["user", "assistant", "user"]], "the first turn is missing"
    assert asked[1][1]["content"] == "Ten frames 10. Twenty frames 20."
    assert printed.count("Ten frames 10.\nTwenty frames 20.\n") == 2
    for name in ("answer0.wav", "answer1.wav"):
        (stream,) = probe(tmp_path / name)["streams"]
        assert stream["codec_name"] == "pcm_s16le"
    assert len(soundfile.read(tmp_path / "answer0.wav")[0]) == (10 + 20) * 640


# audiobook.py


def test_a_text_becomes_an_audiobook_with_chapters(
    example: Callable[..., str], tone_server: RunningServer, tmp_path: Path, probe: Probe
) -> None:
    text = "Front 5.\n\nChapter 10\n\nOne.\n\nunspeakable\n\nTwo.\n\n# The storm 20\n\nThree.\n"
    (tmp_path / "book.txt").write_text(text)
    example("audiobook.py", "book.txt", "-o", "book.m4b", "--server", tone_server.url)
    found = probe(tmp_path / "book.m4b")
    sound = next(s for s in found["streams"] if s["codec_type"] == "audio")
    assert (sound["codec_name"], sound["sample_rate"]) == ("aac", "8000")
    marks = [
        (mark["tags"]["title"], float(mark["start_time"]), float(mark["end_time"]))
        for mark in found["chapters"]
    ]
    # Frames of 0.08 s, five if there is no number; each paragraph ends with half a second.
    lengths = [(5 + 5) * 0.08 + 1.0, (10 + 5 + 5) * 0.08 + 1.5, (20 + 5) * 0.08 + 1.0]
    starts = np.cumsum([0, *lengths])
    assert [title for title, _, _ in marks] == ["book", "Chapter 10", "The storm 20"]
    assert [start for _, start, _ in marks] == pytest.approx(starts[:-1], abs=0.002)
    assert [end for _, _, end in marks] == pytest.approx(starts[1:], abs=0.002)
    assert float(sound["duration"]) == pytest.approx(starts[-1], abs=0.3)


def test_an_epub_becomes_an_audiobook_with_chapters(
    example: Callable[..., str], tone_server: RunningServer, tmp_path: Path, probe: Probe
) -> None:
    book = epub.EpubBook()
    book.set_identifier("frames")
    book.set_title("Frames")
    book.set_language("en")
    pages = []
    for title, text in (("One 10", "A &amp; <em>b</em>\nc 10."), ("Two", "<p>20 frames.")):
        page = epub.EpubHtml(title=title, file_name=f"{title[:3]}.xhtml")
        page.content = f"<html><body><h1>{title}</h1><p>{text}</p></body></html>"
        book.add_item(page)
        pages.append(page)
    book.toc = pages
    book.add_item(epub.EpubNav())
    book.add_item(epub.EpubNcx())
    book.spine = ["nav", *pages]
    epub.write_epub(tmp_path / "book.epub", book)
    printed = example("audiobook.py", "book.epub", "-o", "a.m4b", "--server", tone_server.url)
    found = probe(tmp_path / "a.m4b")
    ends = [float(mark["end_time"]) for mark in found["chapters"]]
    titles = [mark["tags"]["title"] for mark in found["chapters"]]
    assert titles == ["One 10", "Two"]
    first = 0.8 + 0.5 + 0.8 + 0.5
    assert ends == pytest.approx([first, first + 0.4 + 0.5 + 1.6 + 0.5], abs=0.002)
    assert "One 10: 3 s" in printed


# phone_line.py


def test_a_call_is_answered_in_mu_law(
    tone_server: RunningServer, tmp_path: Path, decode: Callable[..., bytes]
) -> None:
    """The test plays Twilio's part: it calls, presses a key, and hangs up."""
    command = [sys.executable, str(EXAMPLES / "phone_line.py"), "20 frames", "--port", "0"]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONUNBUFFERED": "1"}
    program = subprocess.Popen(
        [*command, "--server", ws(tone_server)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert program.stdout
    try:
        address = program.stdout.readline().strip()
        with connect(address) as call:
            call.send(json.dumps({"event": "connected", "protocol": "Call", "version": "1.0.0"}))
            call.send(json.dumps({"event": "start", "streamSid": "MZ1", "start": {}}))
            first = heard(call)
            call.send(json.dumps({"event": "dtmf", "streamSid": "MZ1", "dtmf": {"digit": "1"}}))
            again = heard(call)
        tone_server.wait_idle()
    finally:
        program.terminate()
        program.wait(10)
        program.stdout.close()
    assert first == again
    (tmp_path / "call.ulaw").write_bytes(first)
    pcm = decode(tmp_path / "call.ulaw", "-f", "mulaw", "-ar", "8000")
    samples = np.frombuffer(pcm, "<i2")
    assert len(samples) == 20 * 640
    assert np.abs(samples).max() == pytest.approx(0.5 * 32767, rel=0.05)


def heard(call: Any) -> bytes:
    """The audio between a `clear` event and the next mark."""
    assert json.loads(call.recv(10)) == {"event": "clear", "streamSid": "MZ1"}
    sound = b""
    while (event := json.loads(call.recv(10)))["event"] == "media":
        assert event["streamSid"] == "MZ1"
        sound += base64.b64decode(event["media"]["payload"])
    assert event == {"event": "mark", "streamSid": "MZ1", "mark": {"name": "spoken"}}
    return sound


# voice_message.py


def test_a_voice_message_is_opus_with_the_metadata_of_discord(
    example: Callable[..., str], tone_server: RunningServer, tmp_path: Path, probe: Probe
) -> None:
    message = tmp_path / "message.ogg"
    printed = example("voice_message.py", "20 frames", "--server", tone_server.url)
    (stream,) = (found := probe(message))["streams"]
    assert (found["format"]["format_name"], stream["codec_name"]) == ("ogg", "opus")
    assert (stream["sample_rate"], stream["channels"]) == ("48000", 1)
    attachment = json.loads(printed)
    assert attachment["filename"] == "message.ogg"
    assert attachment["duration_secs"] == pytest.approx(1.6, abs=0.03)
    wave = base64.b64decode(attachment["waveform"])
    assert len(wave) == 256
    assert max(wave) == 255


def test_a_voice_message_goes_to_telegram(
    example: Callable[..., str], tone_server: RunningServer, tmp_path: Path
) -> None:
    got: list[tuple[str, bytes]] = []

    def telegram(path: str, body: bytes) -> tuple[str, bytes]:
        got.append((path, body))
        return "application/json", b'{"ok": true}'

    with stub(telegram) as address:
        example(
            "voice_message.py",
            *("20 frames", "--telegram", "42", "--server", tone_server.url),
            env={"TELEGRAM_API": address, "TELEGRAM_TOKEN": "1:a", "PATH": "/usr/bin:/bin"},
        )
    ((path, body),) = got
    assert path == "/bot1:a/sendVoice"
    assert (tmp_path / "message.ogg").read_bytes() in body
    assert b'name="voice"; filename="message.ogg"' in body
    assert b'name="chat_id"\r\n\r\n42\r\n' in body


# captions.py


@pytest.mark.parametrize(("ending", "codec"), [("srt", "subrip"), ("vtt", "webvtt")])
def test_captions_have_the_times_of_their_sentences(
    example: Callable[..., str],
    tone_server: RunningServer,
    tmp_path: Path,
    probe: Probe,
    ending: str,
    codec: str,
) -> None:
    (tmp_path / "talk.txt").write_text("First 10.\nThen 20?\n\nunspeakable.  At last 5!\n")
    printed = example(
        "captions.py", "talk.txt", "-o", f"talk.{ending}", "--server", ws(tone_server)
    )
    assert "left out 'unspeakable.'" in printed
    found = probe(tmp_path / f"talk.{ending}")
    assert found["streams"][0]["codec_name"] == codec
    assert [float(p["pts_time"]) for p in found["packets"]] == [0.0, 0.8, 2.4]
    assert [float(p["duration_time"]) for p in found["packets"]] == [0.8, 1.6, 0.4]
    assert float(probe(tmp_path / "talk.wav")["format"]["duration"]) == pytest.approx(2.8)
    assert "Then 20?" in (tmp_path / f"talk.{ending}").read_text()
