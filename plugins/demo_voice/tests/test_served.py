"""Texts as people send them, spoken over HTTP and the WebSocket, and by `say`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from websockets.sync.client import connect

from tests.conftest import RunningServer, running_server
from vox_serve import cli
from vox_serve.config import EngineConfig, ServerConfig
from vox_serve.plugins import load_plugins

SAME = {
    "It costs $2.5 million.": "it costs two point five million dollars.",
    "Plan B: 5 kg.": "plan bee: five kilograms.",
    "Mail me@example.org, OK?": "mail me at example dot org, ok?",
    "Well 😀 done.": "well done.",
}
"""Each text sounds like its spelled-out form."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    lexicon = tmp_path_factory.mktemp("lexicon") / "words.json"
    lexicon.write_text(json.dumps({"nginx": "engine x"}))
    found = load_plugins().checkpoints
    plugins = () if "demo" in found else ("vox_serve_csm.plugin", "vox_serve_demo_voice.plugin")
    engine = EngineConfig("demo", device="cpu", max_batch_size=2, plugins=plugins)
    with running_server(engine, ServerConfig(port=0, lexicon=str(lexicon))) as running:
        yield running


def spoken(server: RunningServer, **body: object) -> httpx.Response:
    fields = {"format": "pcm", **body}
    return httpx.post(f"{server.url}/generate", json=fields, timeout=60)


@pytest.mark.parametrize(("written", "spelled"), SAME.items())
def test_generate_speaks_a_text_as_meant(server: RunningServer, written: str, spelled: str) -> None:
    answer = spoken(server, text=written)
    assert answer.status_code == 200, answer.text
    assert answer.content == spoken(server, text=spelled, normalize="off").content
    assert answer.headers.get("X-Text-Dropped") == ("1" if "😀" in written else None)


def test_openais_route_accepts_the_same_fields(server: RunningServer) -> None:
    body = {
        "model": "demo",
        "voice": "alloy",
        "input": "A GIF 😀 costs $5.",
        "response_format": "pcm",
        "pronunciations": {"GIF": "jif"},
    }
    answer = httpx.post(f"{server.url}/v1/audio/speech", json=body, timeout=60)
    assert answer.headers["X-Text-Dropped"] == "1"
    body |= {"input": "a jif costs five dollars.", "normalize": "off"}
    assert (
        answer.content == httpx.post(f"{server.url}/v1/audio/speech", json=body, timeout=60).content
    )
    refused = httpx.post(
        f"{server.url}/v1/audio/speech", json=body | {"normalize": "strict", "input": "Hi 😀"}
    )
    assert refused.status_code == 422
    assert "cannot speak" in refused.text


def test_the_requests_dictionary_takes_precedence_over_the_servers(server: RunningServer) -> None:
    own = spoken(server, text="nginx runs").content
    assert own == spoken(server, text="engine ex runs.", normalize="off").content
    own_spelling = spoken(server, text="nginx runs", pronunciations={"nginx": "en jinx"}).content
    assert own_spelling == spoken(server, text="en jinx runs.", normalize="off").content != own


@pytest.mark.parametrize("text", ["😀", "...", "—", "***"])
def test_a_text_without_words_has_its_own_error_code(server: RunningServer, text: str) -> None:
    answer = spoken(server, text=text)
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "nothing_to_speak"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"normalize": "perhaps"}, "normalize must be auto, strict or off"),
        (
            {"pronunciations": {"": "x"}},
            "pronunciations: a word or its spelling must have 1 to 200",
        ),
        ({"text": "<speak>open"}, "SSML is not well formed"),
        ({"text": "a [pause 99s]"}, "a pause of 99 s; a pause may last 10 s"),
    ],
)
def test_bad_fields_are_named(server: RunningServer, fields: dict[str, object], says: str) -> None:
    answer = spoken(server, **{"text": "a", **fields})
    assert answer.status_code == 400
    assert says in answer.text


def test_the_websocket_speaks_a_text_as_meant(server: RunningServer) -> None:
    def said(text: str, **fields: object) -> tuple[bytes, list[dict[str, object]]]:
        audio, events = b"", []
        url = server.url.replace("http", "ws") + "/v1/audio/stream"
        with connect(url) as socket:
            socket.send(json.dumps({"type": "start", "voice": None, **fields}))
            socket.send(json.dumps({"type": "text", "text": text}))
            socket.send(json.dumps({"type": "end"}))
            for message in socket:
                if isinstance(message, bytes):
                    audio += message
                else:
                    events.append(json.loads(message))
        return audio, events

    audio, events = said("It costs $5 😀.")
    assert audio == said("it costs five dollars.", normalize="off")[0] != b""
    assert [event.get("dropped") for event in events if event["type"] == "segment"] == [1]


def test_say_speaks_a_text_as_meant(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lexicon = tmp_path / "words.json"
    lexicon.write_text('{"GIF": "jif"}')

    def said(text: str, *flags: str) -> bytes:
        output = tmp_path / "out.pcm"
        plugins = (
            []
            if "demo" in load_plugins().checkpoints
            else ["--plugins", "vox_serve_csm.plugin", "--plugins", "vox_serve_demo_voice.plugin"]
        )
        flags = ("--model", "demo", "--device", "cpu", *plugins, *flags)
        assert cli.main(["say", text, "-o", str(output), *flags]) == 0
        return output.read_bytes()

    audio = said("A GIF 😀 costs $5.", "--lexicon", str(lexicon))
    assert "1 characters left out" in capsys.readouterr().out
    assert audio == said("a jif costs five dollars.", "--normalize", "off")
