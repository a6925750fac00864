"""Parameters of a single model over HTTP and WebSocket: numbers, choices and free text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

from tests.conftest import RunningServer, running_server
from vox_serve.config import EngineConfig

TEXT = "one two three"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder: Path = tmp_path_factory.mktemp("glide")
    (folder / "config.json").write_text('{"model_type": "glide"}')
    engine = EngineConfig(
        model=str(folder), plugins=("tests.glide",), max_batch_size=2, seed=1, device="cpu"
    )
    with running_server(engine) as running:
        yield running


def spoken(server: RunningServer, **fields: Any) -> bytes:
    return posted(server, "/generate", text=TEXT, format="pcm", **fields).content


def posted(server: RunningServer, path: str, **fields: Any) -> httpx.Response:
    answer = server.http.post(path, json=fields)
    assert answer.status_code == 200, answer.text
    return answer


def test_a_model_lists_its_languages_and_parameters(server: RunningServer) -> None:
    model = server.http.get("/models").json()["models"][0]
    assert model["languages"] == ["de", "en"]
    assert model["parameters"]["language"]["enum"] == ["auto", "de", "en"]
    assert model["sampling"]["instructions"] == ""


@pytest.mark.parametrize("tag", ["de", "de-AT", "de_DE", "German"])
def test_the_language_of_a_request_is_passed_to_the_model(server: RunningServer, tag: str) -> None:
    german = spoken(server, parameters={"language": "de"})
    assert german != spoken(server)
    assert spoken(server, language=tag) == german
    answer = posted(server, "/generate", text=TEXT, language=tag)
    assert "X-Ignored-Fields" not in answer.headers


def test_a_language_that_the_model_does_not_speak_is_refused(server: RunningServer) -> None:
    answer = server.http.post("/generate", json={"text": TEXT, "language": "fr-CA"})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == "language"
    assert error["message"] == "language must be one of auto, de, en, not 'fr'"


def test_openais_instructions_reach_the_model(server: RunningServer) -> None:
    body = {"model": "tts-1", "voice": "alloy", "input": TEXT, "response_format": "pcm"}
    plain = posted(server, "/v1/audio/speech", **body)
    whispered = posted(server, "/v1/audio/speech", **body, instructions="Whisper.")
    same = posted(server, "/v1/audio/speech", **body, parameters={"instructions": "Whisper."})
    assert plain.content != whispered.content == same.content
    assert "X-Ignored-Fields" not in whispered.headers


def test_instructions_that_the_model_cannot_follow_are_reported(
    tone_server: RunningServer,
) -> None:
    body = {"model": "tts-1", "voice": "alloy", "input": "5 frames", "instructions": "Whisper."}
    answer = posted(tone_server, "/v1/audio/speech", **body)
    assert answer.headers["X-Ignored-Fields"] == "instructions"


def test_a_websocket_session_accepts_them_too(server: RunningServer) -> None:
    def said(**fields: Any) -> bytes:
        url = server.url.replace("http", "ws") + "/v1/audio/stream"
        with connect(url) as connection:
            connection.send(json.dumps({"type": "start", **fields}))
            connection.send(json.dumps({"type": "text", "text": TEXT}))
            connection.send(json.dumps({"type": "end"}))
            return b"".join(message for message in connection if isinstance(message, bytes))

    own = {"language": "en", "instructions": "Slowly."}
    assert said(language="en", parameters={"instructions": "Slowly."}) == said(parameters=own)
    assert said(parameters=own) != said()
