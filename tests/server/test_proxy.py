"""Debian's nginx, configured as in deploy/: streams are not buffered, and clients may leave."""

from __future__ import annotations

import json
import os
import re
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import attrs
import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.conftest import RunningServer, running_server, until
from tests.deploy.tools import DEPLOY, needs_nginx, passes
from tests.server.conftest import Gate, value
from vox_serve.config import ServerConfig
from vox_serve.server.websocket.route import PATH

pytestmark = needs_nginx
NAME = "speech.example.com"
EXAMPLE = (DEPLOY / "proxy" / "nginx.conf").read_text()
AROUND = """
{user}
pid {folder}/pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
{example}
}}
"""
StartServer = Callable[..., RunningServer]


@attrs.frozen
class Proxy:
    """A running nginx."""

    port: int
    trust: ssl.SSLContext

    @property
    def origin(self) -> str:
        """The origin that a browser sends."""
        return f"https://{NAME}:{self.port}"

    def client(self, path: str = "") -> httpx.Client:
        headers = {"Host": f"{NAME}:{self.port}"}
        return httpx.Client(
            base_url=f"https://127.0.0.1:{self.port}{path}", verify=self.trust, headers=headers
        )

    def speak(self, origin: str | None, path: str = PATH) -> list[str]:
        """Speak over the WebSocket; returns each type of event once, in order."""
        line = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        url = f"wss://{NAME}:{self.port}{path}"
        headers = {} if origin is None else {"Origin": origin}
        with closing(line), connect(
            url, sock=line, ssl=self.trust, additional_headers=headers, close_timeout=5
        ) as session:  # fmt: skip
            for message in ({"type": "start"}, {"type": "text", "text": "5"}, {"type": "end"}):
                session.send(json.dumps(message))
            found = list(session)
        types = [json.loads(one)["type"] if isinstance(one, str) else "audio" for one in found]
        return list(dict.fromkeys(types))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    passes(
        "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1",
        "-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME},IP:127.0.0.1",
        "-keyout", folder / "privkey.pem", "-out", folder / "fullchain.pem",
    )  # fmt: skip
    return folder


@contextmanager
def proxied(server: RunningServer, certificate: Path, example: str = EXAMPLE) -> Iterator[Proxy]:
    """Run nginx with the example, but with free ports and the test's certificate."""
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    for name, here in {
        "127.0.0.1:8000": server.url.removeprefix("http://"),
        "listen 443": f"listen 127.0.0.1:{port}",
        f"/etc/ssl/{NAME}": str(certificate),
    }.items():
        assert name in example
        example = example.replace(name, here)
    user = "user root;" if os.geteuid() == 0 else ""
    settings = certificate / "nginx.conf"
    settings.write_text(AROUND.format(user=user, folder=certificate, example=example))
    command = ["nginx", "-p", str(certificate), "-c", str(settings), "-g", "daemon off;"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        trust = ssl.create_default_context(cafile=certificate / "fullchain.pem")
        proxy = Proxy(port, trust)
        until(lambda: process.poll() is not None or _answers(port), 10)
        assert process.poll() is None, process.stderr.read()
        yield proxy
    finally:
        process.terminate()
        process.communicate(timeout=10)


def _answers(port: int) -> bool:
    with closing(socket.socket()) as attempt:
        return attempt.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def proxy(
    gate: Gate, start_server: StartServer, certificate: Path
) -> Iterator[tuple[Proxy, RunningServer]]:
    server = start_server(server=ServerConfig(port=0, allowed_hosts=(NAME, "127.0.0.1")))
    with proxied(server, certificate) as running:
        yield running, server


def test_the_first_piece_is_not_held_back(proxy: tuple[Proxy, RunningServer], gate: Gate) -> None:
    nginx, server = proxy
    gate.allow(1)  # the second frame is generated only after the first one has arrived
    body = {"text": "5", "streaming": True, "format": "pcm"}
    with nginx.client() as client, client.stream("POST", "/generate", json=body) as stream:
        pieces = stream.iter_raw()
        first = next(pieces)
        assert len(first) == 1280
        assert server.client.open_requests == 1
        gate.open()
        assert len(first) + len(b"".join(pieces)) == 5 * 1280


def test_a_client_that_leaves_frees_its_slot(
    proxy: tuple[Proxy, RunningServer], gate: Gate
) -> None:
    nginx, server = proxy
    gate.allow(1)
    body = {"text": "98", "streaming": True, "format": "pcm"}
    with nginx.client() as client, client.stream("POST", "/generate", json=body) as stream:
        next(stream.iter_raw())
    until(lambda: server.client.open_requests == 0, 2)
    gate.open()
    server.wait_idle()
    assert value(server, "client_disconnects_total", phase="stream") == 1


def test_the_websocket_and_a_page_of_the_proxy_pass(
    proxy: tuple[Proxy, RunningServer],
) -> None:
    nginx, _ = proxy
    for origin in (None, nginx.origin):
        assert nginx.speak(origin) == ["started", "segment", "audio", "done"]
    with pytest.raises(InvalidStatus, match="403"):
        nginx.speak("https://evil.example")
    own = {"Origin": nginx.origin}
    with nginx.client() as client:
        assert client.post("/generate", json={"text": "5"}, headers=own).status_code == 200
        assert client.get("/health").json()["status"] == "ready"


@pytest.mark.parametrize("allowed", [f"https://{NAME}", "https://other.example"])
def test_behind_a_proxy_that_rewrites_host_the_origin_must_be_allowed(
    allowed: str, start_server: StartServer, certificate: Path
) -> None:
    """The server then does not know the origin that browsers see."""
    rewriting = re.sub(r"proxy_set_header Host .*", "", EXAMPLE)
    assert rewriting != EXAMPLE
    server = start_server(server=ServerConfig(port=0, ws_origin=(allowed,)))
    with proxied(server, certificate, rewriting) as nginx:
        if NAME in allowed:
            assert nginx.speak(f"https://{NAME}") == ["started", "segment", "audio", "done"]
        else:
            with pytest.raises(InvalidStatus, match="403"):
                nginx.speak(f"https://{NAME}")


PASS = """
    location {path} {{
        proxy_pass http://vox_serve{slash};
        {settings}
    }}
}}
"""
UPGRADE = """
        proxy_http_version 1.1;
        proxy_set_header Upgrade $http_upgrade;
        proxy_set_header Connection $vox_serve_connection;
        proxy_buffering off;
"""
FORMS = {
    "defaults": ("/", ""),  # HTTP/1.0, buffered, and Host is the name of the upstream
    "kept alive": ("/", 'proxy_http_version 1.1;\n        proxy_set_header Connection "";'),
    "under a path": ("/voice/", UPGRADE),
}
SITE = "https://chat.example.com"
SPEECH = {"model": "tts-1", "voice": "alloy", "input": "9 frames", "response_format": "wav"}
WAV = 44 + 9 * 1280


@pytest.fixture(scope="module", params=FORMS)
def form(
    request: pytest.FixtureRequest, certificate: Path
) -> Iterator[tuple[Proxy, str, RunningServer]]:
    """An nginx with each configuration, and the path under which it serves."""
    path, settings = FORMS[request.param]
    slash = "/" if path != "/" else ""
    around, _, _ = EXAMPLE.partition("    location / {")
    example = around + PASS.format(path=path, slash=slash, settings=settings)
    config = ServerConfig(port=0, cors_origin=(SITE,), ws_origin=(f"https://{NAME}",))
    with running_server(server=config) as server, proxied(server, certificate, example) as nginx:
        yield nginx, path.rstrip("/"), server


Form = tuple[Proxy, str, RunningServer]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/audio/speech", "/generate"])
def test_every_nginx_configuration_passes_the_file(form: Form, path: str, stream: bool) -> None:
    nginx, prefix, _ = form
    body = SPEECH | {"stream": stream}
    if path == "/generate":
        body = {"text": "9 frames", "streaming": stream}
    offer = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAEA"}
    with nginx.client(prefix) as client:
        for headers in ({}, {}, offer):  # over one connection
            answer = client.post(path, json=body, headers=headers)
            assert answer.status_code == 200, answer.text
            assert answer.content[:4] == b"RIFF"
            assert len(answer.content) == WAV


def test_every_nginx_configuration_passes_other_routes(form: Form) -> None:
    nginx, prefix, _ = form
    url = "/v1/audio/speech?model=tts-1&voice=alloy&input=9+frames&response_format=wav"
    with nginx.client(prefix) as client:
        assert len(client.get(url).content) == WAV
        for path in ("/health", "/ready", "/metrics", "/v1/models", url):
            head = client.head(path)
            assert (head.status_code, head.content) == (200, b"")
        headers = client.post("/v1/audio/speech", json=SPEECH | {"user": "me"}).headers
        assert headers["x-ignored-fields"] == "user"
        refused = client.post("/v1/audio/speech", json=SPEECH | {"speed": 9})
        assert refused.json()["error"]["param"] == "speed"
        asks = {"Origin": SITE, "Access-Control-Request-Method": "POST"}
        assert client.options("/v1/audio/speech", headers=asks).status_code == 204
        answer = client.post("/v1/audio/speech", json=SPEECH, headers={"Origin": SITE})
        assert answer.headers["access-control-allow-origin"] == SITE
        evil = client.post(
            "/v1/audio/speech", json=SPEECH, headers={"Origin": "https://evil.example"}
        )
        assert evil.status_code == 403
        page = client.get("/")
        assert page.status_code == 200
        assert not re.findall(r"(?:src|href)=[\"']?/", page.text), "the page has absolute links"


def test_a_websocket_works_if_nginx_passes_upgrades(form: Form) -> None:
    nginx, prefix, _ = form
    if prefix:
        said = nginx.speak(f"https://{NAME}", prefix + PATH)
        assert said == ["started", "segment", "audio", "done"]
        with pytest.raises(InvalidStatus, match="403"):
            nginx.speak("https://evil.example", prefix + PATH)
    else:
        with pytest.raises(InvalidStatus, match="426") as refused:
            nginx.speak(None)
        assert b"WebSocket" in refused.value.response.body
