"""Keys: which routes need one, what each key may use, and that two keys are isolated."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from litestar.routes import HTTPRoute
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect

from tests.conftest import RunningServer, running_server, until
from tests.server.conftest import Gate, value
from tests.server.test_bad_requests import check_error
from vox_serve.config import ServerConfig
from vox_serve.errors import ConfigError
from vox_serve.launch import warn_if_open
from vox_serve.server.access.keys import Keys, new_key
from vox_serve.server.errors import TooMany
from vox_serve.server.routes.voices import clip
from vox_serve.server.websocket.route import PATH as WEBSOCKET

StartServer = Callable[..., RunningServer]
OPEN = {
    *("GET /health", "GET /ready", "GET /metrics", "GET /openapi.json"),
    *("GET /", "GET /docs", "GET /page/{file}"),
}
READ = {
    "GET /models",
    "GET /voices",
    "GET /plugins",
    "GET /v1/models",
    "GET /v1/models/{name}",
    "GET /v1/audio/models",
    "GET /v1/audio/voices",
    "GET /v1/audio/voices/{voice}",
}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The keys of alice and bob, and the path of the file with their hashes as `file`."""
    (alice, first), (bob, second) = new_key("alice"), new_key("bob")
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(f"# who may use it\n{first}\n\n{second}\n")
    return {"alice": alice, "bob": bob, "file": str(file)}


def routes(server: RunningServer) -> list[str]:
    """Every route of the application; GET stands for HEAD, too."""
    found = [WEBSOCKET]
    for route in server.app.routes:
        if isinstance(route, HTTPRoute):
            methods = route.methods - {"OPTIONS", "HEAD"}
            path = re.sub(r":\w+\}", "}", route.path_format)
            found += [f"{method} {path}" for method in sorted(methods)]
    return found


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@contextmanager
def dial(server: RunningServer, **headers: str) -> Iterator[ClientConnection]:
    url = server.url.replace("http://", "ws://") + WEBSOCKET
    with connect(url, additional_headers=headers, close_timeout=5) as socket:
        yield socket


def ask(server: RunningServer, route: str, **headers: str) -> httpx.Response:
    """Send a request without a body to a route, which may be the WebSocket's."""
    if route == WEBSOCKET:
        try:
            with dial(server, **headers):
                return httpx.Response(101)
        except InvalidStatus as refused:
            found = refused.response
            return httpx.Response(
                found.status_code, headers=found.headers, content=bytes(found.body or b"")
            )
    method, path = route.split(" ")
    return server.http.request(method, re.sub(r"\{.*\}", "x", path), headers=headers)


def test_every_route_needs_a_key_unless_it_is_listed_here(
    keys: dict[str, str], start_server: StartServer
) -> None:
    server = start_server(server=ServerConfig(port=0, api_keys_file=keys["file"]))
    for route in routes(server):
        without, wrong = ask(server, route), ask(server, route, **bearer("wrong"))
        right = ask(server, route, **{"X-Api-Key": keys["alice"]})
        assert right.status_code not in (401, 403), route
        for answer in [without] * (route not in OPEN | READ) + [wrong] * (route not in OPEN):
            check_error(answer, 401, code="invalid_api_key")
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")
        if route in OPEN | READ:
            assert without.status_code in (200, 404), route
        if route in OPEN:
            assert wrong.status_code in (200, 404), route
    assert value(server, "http_responses_total", route=WEBSOCKET, code="401") == 2
    assert value(server, "http_responses_total", route=WEBSOCKET, code="101") == 1


def test_a_browser_sends_the_key_as_a_subprotocol(start_server: StartServer) -> None:
    server = start_server(server=ServerConfig(port=0, api_key=("se/cret+",)))
    url = server.url.replace("http://", "ws://") + WEBSOCKET
    with connect(url, subprotocols=["vox-serve", "vox-serve-key.c2UvY3JldCs"]) as socket:
        assert socket.subprotocol == "vox-serve"
    for bad in (
        "vox-serve-key.c2Uv",
        "vox-serve-key.",
        "vox-serve-key",
        "vox-serve-key.c2UvY3J_dCs",
    ):
        with pytest.raises(InvalidStatus) as refused:
            connect(url, subprotocols=["vox-serve", bad])
        assert refused.value.response.status_code == 401


def test_metrics_may_need_a_key_which_may_be_a_flag(start_server: StartServer) -> None:
    config = ServerConfig(port=0, api_key=("secret",), metrics_need_key=True)
    server = start_server(server=config)
    check_error(server.http.get("/metrics"), 401)
    assert server.http.get("/metrics", headers=bearer("secret")).status_code == 200
    for scheme in ("bearer secret", "Bearer  secret"):
        given = {"Authorization": scheme}
        assert server.http.post("/generate", json={"text": "5"}, headers=given).status_code == 200
    for bad in ("Bearer", "Basic secret", "secret", "Bearer secret\xff", "Bearer secre"):
        given = {"Authorization": bad.encode("latin-1")}
        check_error(server.http.post("/generate", json={"text": "5"}, headers=given), 401)
    assert "secret" not in repr(config)


class Tenants:
    """Bob tries every route on Alice's resources; afterwards Alice checks hers."""

    def __init__(self, server: RunningServer, keys: dict[str, str]) -> None:
        self.server = server
        self.alice, self.bob = bearer(keys["alice"]), bearer(keys["bob"])

    def register(self, who: dict[str, str], text: str) -> httpx.Response:
        files = {"audio": ("a.wav", clip().encode())}
        form = {"name": "anna", "text": text}
        return self.server.http.post("/v1/audio/voices", data=form, files=files, headers=who)

    def speak(self, who: dict[str, str], **fields: object) -> httpx.Response:
        return self.server.http.post("/generate", json={"text": "5", **fields}, headers=who)

    def post_generate(self) -> None:
        check_error(self.speak(self.bob, voice="anna"), 404, "voice")
        check_error(self.speak(self.bob, voice="alice/anna"), 404, "voice")
        named = self.bob | {"X-Request-Id": "mine"}
        before = value(self.server, "conversations")
        assert self.speak(named, conversation="talk").status_code == 200
        until(lambda: value(self.server, "conversations") == before + 1)
        check_error(self.speak(self.bob, conversation="alice/talk"), 400, "conversation")

    def post_speech(self) -> None:
        body = {"model": "tone", "input": "5", "voice": "anna"}
        answer = self.server.http.post("/v1/audio/speech", json=body, headers=self.bob)
        check_error(answer, 404, "voice")
        body |= {"voice": "alloy", "conversation": "talk2"}
        answer = self.server.http.post("/v1/audio/speech", json=body, headers=self.bob)
        assert answer.status_code == 200

    def get_speech(self) -> None:
        query = {"input": "5", "voice": "anna"}
        answer = self.server.http.get("/v1/audio/speech", params=query, headers=self.bob)
        check_error(answer, 404, "voice")
        nobody = self.server.http.get("/v1/audio/speech", params=query | {"voice": "alloy"})
        check_error(nobody, 401)

    def websocket(self) -> None:
        with dial(self.server, **self.bob) as socket:
            socket.send(json.dumps({"type": "start", "voice": "anna"}))
            assert json.loads(socket.recv(10))["error"]["code"] == "not_found"
        before = value(self.server, "conversations")
        with dial(self.server, **self.bob) as socket:
            socket.send(json.dumps({"type": "start", "conversation": "talk3"}))
            for message in ({"type": "text", "text": "5"}, {"type": "end"}):
                socket.send(json.dumps(message))
            for _ in socket:
                pass
        until(lambda: value(self.server, "conversations") == before + 1)
        path = "/conversations/talk3"
        check_error(self.server.http.delete(path, headers=self.alice), 404, "conversation")
        assert self.server.http.delete(path, headers=self.bob).status_code == 204

    def cancel(self) -> None:
        for name in ("mine", self.session):
            path = f"/requests/{name}"
            check_error(self.server.http.delete(path, headers=self.bob), 404, "id")

    def forget(self) -> None:
        """Bob can forget only his own conversation of that name."""
        gone = self.server.http.delete("/conversations/talk", headers=self.bob)
        assert gone.status_code == 204
        gone = self.server.http.delete("/conversations/talk", headers=self.bob)
        check_error(gone, 404, "conversation")

    def add_voice(self) -> None:
        assert self.register(self.bob, "Bob's words.").status_code == 201

    def remove_voice(self) -> None:
        assert self.server.http.delete("/v1/audio/voices/anna", headers=self.bob).is_success
        again = self.server.http.delete("/v1/audio/voices/anna", headers=self.bob)
        check_error(again, 404, "voice")

    def show_voice(self) -> None:
        shown = self.server.http.get("/v1/audio/voices/anna", headers=self.bob)
        assert shown.json()["text"] == "Bob's words."
        nobody = self.server.http.get("/v1/audio/voices/anna")
        check_error(nobody, 404, "voice")

    def look(self, path: str, names: int) -> None:
        """Bob sees his own voice `names` times, and never Alice's."""
        seen, public = (self.server.http.get(path, headers=who).text for who in (self.bob, {}))
        assert "alice" not in seen.casefold() + public.casefold()
        assert seen.count('"name":"anna"') - public.count('"name":"anna"') == names, path

    def begin(self) -> None:
        """Create Alice's resources."""
        assert self.register(self.alice, "Alice's words.").status_code == 201
        assert self.speak(self.alice, conversation="talk").status_code == 200

    def still_there(self) -> None:
        shown = self.server.http.get("/v1/audio/voices/anna", headers=self.alice)
        assert shown.json()["text"] == "Alice's words."
        assert self.speak(self.alice, voice="anna").status_code == 200


ATTEMPTS: dict[str, Callable[[Tenants], None]] = {
    "DELETE /requests/{request_name}": Tenants.cancel,
    "POST /generate": Tenants.post_generate,
    "POST /v1/audio/speech": Tenants.post_speech,
    "GET /v1/audio/speech": Tenants.get_speech,
    WEBSOCKET: Tenants.websocket,
    "DELETE /conversations/{conversation}": Tenants.forget,
    "POST /v1/audio/voices": Tenants.add_voice,
    "GET /v1/audio/voices": lambda tenants: tenants.look("/v1/audio/voices", 1),
    "GET /v1/audio/voices/{voice}": Tenants.show_voice,
    "GET /voices": lambda tenants: tenants.look("/voices", 1),
    "GET /models": lambda tenants: tenants.look("/models", 1),
    "GET /v1/models": lambda tenants: tenants.look("/v1/models", 0),
    "GET /v1/models/{name}": lambda tenants: tenants.look("/v1/models/tone", 0),
    "GET /v1/audio/models": lambda tenants: tenants.look("/v1/audio/models", 0),
    "GET /plugins": lambda tenants: tenants.look("/plugins", 0),
    "GET /health": lambda tenants: tenants.look("/health", 0),
    "GET /ready": lambda tenants: tenants.look("/ready", 0),
    "GET /metrics": lambda tenants: tenants.look("/metrics", 0),
    "GET /openapi.json": lambda tenants: tenants.look("/openapi.json", 0),
    "GET /docs": lambda tenants: tenants.look("/docs", 0),
    "GET /": lambda tenants: tenants.look("/", 0),
    "GET /page/{file}": lambda tenants: tenants.look("/page/page.js", 0),
    "DELETE /v1/audio/voices/{voice}": Tenants.remove_voice,
}
"""Bob's attempt on each route of the application, in order."""


def test_two_keys_are_isolated_on_every_route(
    keys: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    start_server: StartServer,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("TONE_DELAY", "0.01")  # so that her request is open for a while
    config = ServerConfig(port=0, api_keys_file=keys["file"], voices_dir=str(tmp_path))
    server = start_server(server=config)
    assert set(routes(server)) == set(ATTEMPTS), "a route without an attempt"
    tenants = Tenants(server, keys)
    tenants.begin()
    named = tenants.alice | {"X-Request-Id": "mine"}
    body = {"text": "150", "max_seconds": 12, "streaming": True, "format": "pcm"}
    with (
        dial(server, **tenants.alice) as session,
        server.http.stream("POST", "/generate", json=body, headers=named) as stream,
    ):
        session.send('{"type": "start"}')
        tenants.session = json.loads(session.recv(10))["request_id"]
        assert server.client.open_requests == 1
        for attempt in ATTEMPTS.values():
            attempt(tenants)
            tenants.still_there()
        assert len(stream.read()) == 150 * 1280, "her request was not spoken to its end"
        session.send('{"type": "end"}')
        assert json.loads(session.recv(10))["type"] == "done"
    assert server.http.delete("/conversations/talk", headers=tenants.alice).status_code == 204
    assert [file.name for file in sorted((tmp_path / "alice").iterdir())] == [
        "anna.json",
        "anna.wav",
    ]


def test_a_key_may_end_its_own_request(
    keys: dict[str, str], gate: Gate, start_server: StartServer
) -> None:
    server = start_server(server=ServerConfig(port=0, api_keys_file=keys["file"]))
    alice = bearer(keys["alice"])
    gate.allow(1)
    body = {"text": "100", "streaming": True, "format": "pcm"}
    named = alice | {"X-Request-Id": "mine"}
    with server.http.stream("POST", "/generate", json=body, headers=named) as stream:
        with httpx.Client(base_url=server.url) as other:
            assert other.delete("/requests/mine", headers=alice).status_code == 204
        gate.open()
        with pytest.raises(httpx.RemoteProtocolError):
            stream.read()


def test_private_and_shared_voices_survive_a_restart(
    keys: dict[str, str], start_server: StartServer, tmp_path: Path
) -> None:
    config = ServerConfig(port=0, api_keys_file=keys["file"], voices_dir=str(tmp_path))
    with running_server(server=config) as first:
        tenants = Tenants(first, keys)
        tenants.register(tenants.alice, "Alice's words.")
        tenants.register(tenants.bob, "Bob's words.")
    (tmp_path / "shared.wav").write_bytes((tmp_path / "bob" / "anna.wav").read_bytes())
    (tmp_path / "shared.txt").write_text("Everybody's words.")
    (tmp_path / "bob" / "broken.txt").write_text("no audio")
    server = start_server(server=config)
    for who, words in (("alice", "Alice's words."), ("bob", "Bob's words.")):
        headers = bearer(keys[who])
        listed = server.http.get("/v1/audio/voices", headers=headers).json()["voices"]
        assert {voice["name"]: voice.get("text") for voice in listed if "text" in voice} == {
            "anna": words,
            "shared": "Everybody's words.",
        }
        body = {"text": "5", "voice": "shared"}
        assert server.http.post("/generate", json=body, headers=headers).status_code == 200
        gone = server.http.delete("/v1/audio/voices/shared", headers=headers)
        check_error(gone, 403, code="forbidden")
    assert server.http.get("/health").json()["broken_voices"] == {}, (
        "the owner of a voice is private"
    )
    gone = server.http.delete("/v1/audio/voices/broken", headers=bearer(keys["bob"]))
    assert gone.status_code == 200
    assert not (tmp_path / "bob" / "broken.txt").exists()


def test_the_limits_of_a_key_do_not_affect_another_key(
    keys: dict[str, str], gate: Gate, start_server: StartServer
) -> None:
    config = ServerConfig(
        port=0, api_keys_file=keys["file"], max_open_per_key=1, max_per_minute_per_key=3
    )
    server = start_server(server=config)
    tenants = Tenants(server, keys)
    with dial(server, **tenants.alice) as socket:
        socket.send('{"type": "start"}')
        socket.recv(10)
        refused = tenants.speak(tenants.alice)
        check_error(refused, 429, code="rate_limit_exceeded")
        assert refused.headers["Retry-After"] == "1"
        assert tenants.speak(tenants.bob).status_code == 200
        check_error(server.http.delete("/requests/x", headers=tenants.alice), 404, "id")
    until(lambda: tenants.speak(tenants.alice).status_code == 200)
    assert tenants.speak(tenants.alice).status_code == 200
    refused = tenants.speak(tenants.alice)
    check_error(refused, 429, code="rate_limit_exceeded")
    assert 50 <= int(refused.headers["Retry-After"]) <= 60
    with pytest.raises(InvalidStatus, match="429"), dial(server, **tenants.alice):
        pass
    assert tenants.speak(tenants.bob).status_code == 200


def test_requests_are_allowed_again_after_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("vox_serve.server.access.keys.time.monotonic", lambda: now)
    keys = Keys(ServerConfig(max_per_minute_per_key=2))
    for moment in (1000.0, 1030.0):
        now = moment
        with keys.counted("alice"):
            pass
    now = 1045.0
    with pytest.raises(TooMany) as caught, keys.counted("alice"):
        pass
    assert caught.value.retry_after == 15
    now = 1060.0
    with keys.counted("alice"):
        pass


def test_the_key_file_is_reloaded_unless_it_is_bad(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (old, first), (new, second) = new_key("alice"), new_key("alice")
    file = tmp_path / "keys"
    file.write_text(first)
    keys = Keys(ServerConfig(api_keys_file=str(file)))
    assert [keys.name_of(old), keys.name_of(new)] == ["alice", None]
    file.write_text(second)
    keys.reload()
    assert [keys.name_of(old), keys.name_of(new)] == [None, "alice"]
    file.write_text(new)  # the key itself instead of its line
    keys.reload()
    assert keys.name_of(new) == "alice"
    assert "line 1" in caplog.text
    assert new not in caplog.text


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("alice", "line 1 .* must be NAME sha256:HASH"),
        ("../x sha256:" + "0" * 64, "line 1"),
        (f"a sha256:{'0' * 64}\n\nA sha256:{'1' * 64}", "line 3 .* in case only"),
        (f"a sha256:{'0' * 64}\nb sha256:{'0' * 64}", "line 2 .* another name"),
        ("\udcff", "is not UTF-8"),
        (None, "No such file"),
        ("#" * 2**20 + "#", "larger"),
    ],
    ids=lambda case: str(case)[:20].encode("ascii", "replace").decode(),
)
def test_a_bad_file_is_refused_with_its_line(
    content: str | None, problem: str, tmp_path: Path
) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match=problem):
        Keys(ServerConfig(api_keys_file=str(file)))
    with pytest.raises(ConfigError, match="name"):
        new_key("two words")


@pytest.mark.parametrize(
    ("host", "key", "warned"),
    [
        ("127.0.0.1", (), 0),
        ("::1", (), 0),
        ("localhost", (), 0),
        ("0.0.0.0", ("k",), 0),
        ("0.0.0.0", (), 1),
        ("::", (), 1),
        ("192.168.1.5", (), 1),
    ],
)
def test_an_open_server_logs_a_warning(
    host: str, key: tuple[str, ...], warned: int, caplog: pytest.LogCaptureFixture
) -> None:
    server = ServerConfig(host=host, api_key=key)
    with caplog.at_level(logging.WARNING):
        warn_if_open(server, Keys(server))
    assert len(caplog.records) == warned
