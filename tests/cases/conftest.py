"""A server whose tone model reads texts as the demo voice does, and three ways to use it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import httpx
import pytest
from websockets.sync.client import connect

from tests.conftest import RunningServer, running_server
from tests.server.conftest import gate  # noqa: F401 - a fixture
from vox_serve import cli, say
from vox_serve.config import EngineConfig, ServerConfig
from vox_serve.messages import SpeechRequest

READER = EngineConfig("reader", plugins=("tests.tone", "tests.cases.reader"), max_batch_size=4)
DATA = Path(__file__).with_name("data")
CASES: dict[str, dict[str, Any]] = {
    file.stem: json.loads(file.read_text()) for file in sorted(DATA.glob("*.json"))
}


@attrs.define
class Reader:
    """Records the texts that the voice is given to read, sent over HTTP, WebSocket or `say`."""

    server: RunningServer
    read: list[str] = attrs.field(factory=list)
    """The texts sent to the engine since the last call of `heard`."""

    def heard(self) -> str:
        texts, self.read = self.read, []
        return " ".join(texts)

    def by_http(self, text: str, **fields: Any) -> httpx.Response:
        content = json.dumps({"text": text, **fields})  # httpx cannot send half a surrogate pair
        headers = {"Content-Type": "application/json"}
        return self.server.http.post("/generate", content=content, headers=headers)

    def by_websocket(self, text: str, **fields: Any) -> list[dict[str, Any] | bytes]:
        """The server's messages for a text that is sent whole."""
        with connect(self.server.url.replace("http", "ws") + "/v1/audio/stream") as socket:
            for message in (
                {"type": "start", **fields},
                {"type": "text", "text": text},
                {"type": "end"},
            ):
                socket.send(json.dumps(message))
            return [m if isinstance(m, bytes) else json.loads(m) for m in socket]

    def by_say(self, text: str, output: Path, *flags: str) -> int:
        command = ["say", "-o", str(output), "--model", "reader"]
        for plugin in READER.plugins:
            command += ["--plugins", plugin]
        return cli.main([*command, *flags, "--", text])


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    with running_server(READER, ServerConfig(port=0)) as server, pytest.MonkeyPatch.context() as m:
        reader = Reader(server)
        submit, in_parts = server.client.submit, say.in_parts

        def submitted(request: SpeechRequest) -> Any:
            reader.read.append(request.text)
            return submit(request)

        def cut(*arguments: Any) -> SpeechRequest:
            request = in_parts(*arguments)
            reader.read += [request.text, *request.following]
            return request

        m.setattr(server.client, "submit", submitted)
        m.setattr(say, "in_parts", cut)
        yield reader
