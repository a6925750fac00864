"""Postprocessing of requests' audio: off by default, turned on by name."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import httpx
import numpy as np
import pytest
from websockets.sync.client import connect

from tests.audio.test_formats import decode
from tests.conftest import TONE, RunningServer, running_server
from tests.marks import marked
from vox_serve.config import ServerConfig
from vox_serve.errors import ConfigError
from vox_serve.plugins import load_plugins
from vox_serve.workers.engines import Engines

MARKED = attrs.evolve(TONE, plugins=("tests.tone", "tests.marks"))
KEY = "tone 8000"
TEXT = {"text": "30 frames", "seed": 1}


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_server(MARKED, ServerConfig(port=0, postprocess="mark")) as running:
        yield running


def generate(server: RunningServer, **fields: Any) -> httpx.Response:
    response = server.http.post("/generate", json=TEXT | fields)
    assert response.status_code == 200, response.text
    return response


def heard(response: httpx.Response) -> np.ndarray:
    return (decode(response.content)[0] / 32767).astype(np.float32)


@pytest.mark.parametrize("format", ["wav", "flac"])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_mark_is_found_in_what_a_client_gets(
    server: RunningServer, tone_server: RunningServer, format: str, streaming: bool
) -> None:
    plain = heard(generate(tone_server))
    sound = heard(generate(server, format=format, streaming=streaming))
    assert marked(sound, KEY)
    assert not marked(plain, KEY)
    assert len(sound) == len(plain)
    assert 0.003 < np.abs(sound - plain).max() < 0.0041  # inaudible


def test_streamed_sound_is_that_of_the_whole(server: RunningServer) -> None:
    whole = generate(server, format="pcm").content
    assert generate(server, format="pcm", streaming=True).content == whole
    spoken = {"model": "tone", "input": "30 frames", "voice": "alloy", "response_format": "wav"}
    answer = server.http.post("/v1/audio/speech", json=spoken | {"seed": 1})
    assert answer.content[44:] == whole
    many = "9 frames. " * 60  # spoken in parts
    sounds = [heard(generate(server, text=many, streaming=live)) for live in (False, True)]
    assert marked(sounds[0], KEY)
    assert np.array_equal(sounds[0], sounds[1])


def test_each_segment_of_a_websocket_is_marked_from_its_beginning(server: RunningServer) -> None:
    with connect(server.url.replace("http", "ws") + "/v1/audio/stream") as socket:
        for message in ({"type": "start"}, {"type": "text", "text": "30 frames."}, {"type": "end"}):
            socket.send(json.dumps(message))
        audio = b"".join(message for message in socket if isinstance(message, bytes))
    assert marked(np.frombuffer(audio, "<i2") / 32767, KEY)


def test_what_fails_ends_its_request_with_an_error() -> None:
    """The postprocessor fails after two pieces; a short request ends before that and succeeds."""
    says = "postprocess returned samples that are not finite"
    with running_server(MARKED, ServerConfig(port=0, postprocess="silent")) as server:
        long, short = (server.http.post("/generate", json={"text": t}) for t in ("90", "2"))
        assert long.status_code == 500
        error = long.json()["error"]
        assert (error["message"], error["code"]) == (says, "generation_failed")
        assert short.status_code == 200
        with pytest.raises(httpx.RemoteProtocolError):  # after its first sound
            server.http.post("/generate", json={"text": "90", "streaming": True})
        server.wait_idle()  # the slots are free
        assert server.metric('vox_serve_finished_total{model="tone",reason="error"}') == 2


def test_an_unknown_name_is_refused_at_the_start() -> None:
    plugins = load_plugins(MARKED.plugins)
    with pytest.raises(ConfigError, match="'loud' is unknown; the plugins offer: mark, raises"):
        Engines([MARKED], ServerConfig(postprocess="loud"), plugins, in_thread=True)
    with pytest.raises(ConfigError, match="the plugins offer: none"):
        Engines([TONE], ServerConfig(postprocess="loud"), load_plugins(TONE.plugins))


def test_the_plugin_of_the_guide_marks_sound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tone_server: RunningServer
) -> None:
    """Only the page's first listing runs; the second needs a network from Sony's hub."""
    text = (Path(__file__).parents[2] / "docs/how-to/watermark.md").read_text()
    listing, other = re.findall(r"^```python.*?\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    compile(other, "silentcipher", "exec")
    (tmp_path / "vox_serve_mark").mkdir()
    (tmp_path / "vox_serve_mark/plugin.py").write_text(listing)
    monkeypatch.syspath_prepend(tmp_path)
    engine = attrs.evolve(TONE, plugins=("tests.tone", "vox_serve_mark.plugin"))
    with running_server(engine, ServerConfig(port=0, postprocess="mark")) as server:
        sound = heard(generate(server, streaming=True))
        (plugin,) = [p for p in server.http.get("/plugins").json()["plugins"] if p["postprocess"]]
        assert plugin["postprocess"] == ["mark"]
    is_marked = sys.modules["vox_serve_mark.plugin"].is_marked
    assert is_marked(sound)
    assert not is_marked(heard(generate(tone_server)))
