"""Which web pages may use the server, and under which host names."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest

from tests.conftest import RunningServer
from tests.server.access.test_keys import OPEN, READ, WEBSOCKET, ask, routes
from tests.server.test_bad_requests import check_error
from vox_serve.config import ServerConfig
from vox_serve.errors import RequestError
from vox_serve.server.access.sites import Sites, is_loopback

StartServer = Callable[..., RunningServer]
FOREIGN = "https://evil.example"


def test_a_page_of_another_origin_cannot_change_anything_or_use_the_model(
    tone_server: RunningServer,
) -> None:
    """The routes come from the application, so new ones are tested, too."""
    own = {"Origin": tone_server.url}
    for route in routes(tone_server):
        for headers in (
            {"Origin": FOREIGN},
            {"Origin": "null"},
            {"Origin": "https://[bad"},
            {"Origin": tone_server.url + ".evil.example"},
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site"},
        ):
            answer = ask(tone_server, route, **headers)
            if route in OPEN | READ:
                assert answer.status_code in (200, 404), (route, headers)
            else:
                message = check_error(answer, 403, code="forbidden")
                assert "--cors-origin" in message
            assert not any("access-control" in name.lower() for name in answer.headers), "CORS"
        for headers in ({}, own, {"Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}):
            assert ask(tone_server, route, **headers).status_code != 403, (route, headers)


def test_a_form_of_another_site_speaks_nothing(tone_server: RunningServer) -> None:
    """Browsers send forms and text, which may be JSON, without a preflight request."""
    headers = {"Origin": FOREIGN, "Content-Type": "text/plain"}
    simple = tone_server.http.post("/generate", content=b'{"text": "5"}', headers=headers)
    check_error(simple, 403, code="forbidden")
    form = {"text": (None, "5")}
    posted = tone_server.http.post("/generate", files=form, headers={"Origin": FOREIGN})
    check_error(posted, 403, code="forbidden")
    own = tone_server.http.post("/generate", files=form, headers={"Origin": tone_server.url})
    assert own.status_code == 200


def test_pages_of_allowed_origins_may_use_the_server(start_server: StartServer) -> None:
    config = ServerConfig(
        port=0, cors_origin=("https://a.example",), ws_origin=("https://b.example",)
    )
    server = start_server(server=config)
    page = {"Origin": "https://a.example"}
    spoken = server.http.post("/generate", json={"text": "5"}, headers=page)
    assert spoken.status_code == 200
    assert spoken.headers["Access-Control-Allow-Origin"] == "https://a.example"
    assert "X-Seed" in spoken.headers["Access-Control-Expose-Headers"]
    asks = {"Access-Control-Request-Method": "POST"}
    asks["Access-Control-Request-Headers"] = "authorization, content-type, x-stainless-os"
    first = server.http.options("/generate", headers=page | asks)
    assert first.status_code == 204
    assert "x-stainless-os" in first.headers["Access-Control-Allow-Headers"]
    for other in ("https://b.example", "https://a.example.evil.example", "http://a.example"):
        refused = server.http.post("/generate", json={"text": "5"}, headers={"Origin": other})
        check_error(refused, 403, code="forbidden")
        assert "Access-Control-Allow-Origin" not in refused.headers
        asked = server.http.options("/generate", headers={"Origin": other} | asks)
        message = check_error(asked, 403, code="forbidden")
        assert "Disallowed CORS Origin" in message
        assert "Access-Control-Allow-Origin" not in asked.headers
    missing = server.http.get("/nowhere", headers=page)
    assert missing.headers["Access-Control-Allow-Origin"] == "https://a.example"
    statuses = {
        origin: ask(server, WEBSOCKET, Origin=f"https://{origin}.example").status_code
        for origin in "abc"
    }
    assert statuses == {"a": 101, "b": 101, "c": 403}


def test_an_asterisk_allows_any_origin(start_server: StartServer) -> None:
    server = start_server(server=ServerConfig(port=0, cors_origin=("*",)))
    spoken = server.http.post("/generate", json={"text": "5"}, headers={"Origin": FOREIGN})
    assert spoken.headers["Access-Control-Allow-Origin"] == "*"
    assert ask(server, WEBSOCKET, Origin="null").status_code == 101


def test_a_foreign_host_name_is_refused(tone_server: RunningServer) -> None:
    """With DNS rebinding, the browser takes the page for one of this server's origin."""
    evil = {"Host": "evil.example:8000", "Origin": "http://evil.example:8000"}
    for route in routes(tone_server):
        if route != WEBSOCKET:
            message = check_error(ask(tone_server, route, **evil), 403, code="forbidden")
            assert "--allowed-hosts" in message
    for host in ("localhost:8000", "127.0.0.1", "[::1]:8000", "tts", "a.localhost", "LOCALHOST."):
        assert tone_server.http.get("/voices", headers={"Host": host}).status_code == 200, host


def passes(host: str, config: ServerConfig) -> bool:
    try:
        Sites(config).check_host(httpx.Headers({"host": host}))
    except RequestError:
        return False
    return True


@pytest.mark.parametrize(
    ("config", "right", "wrong"),
    [
        (
            ServerConfig(allowed_hosts=("speech.example.com", "*.example.org", "[::1]")),
            ["speech.example.com", "SPEECH.example.com.:443", "a.b.example.org", "[::1]:80", ""],
            ["example.org", "localhost", "127.0.0.1", "speech.example.com.evil.example"],
        ),
        (ServerConfig(allowed_hosts=("*",)), ["evil.example", "1.2.3.4"], []),
        (ServerConfig(host="0.0.0.0"), ["speech.example.com"], []),
        (ServerConfig(host="::1"), ["[::1]:8000", "::1"], ["evil.example"]),
        (ServerConfig(host="localhost"), ["localhost:1"], ["1.2.3.4.evil.example", "a.local:1"]),
    ],
    ids=lambda case: "",
)
def test_only_allowed_host_names_pass(
    config: ServerConfig, right: list[str], wrong: list[str]
) -> None:
    assert {host: passes(host, config) for host in right + wrong} == {
        **dict.fromkeys(right, True),
        **dict.fromkeys(wrong, False),
    }


def test_loopback_addresses_are_recognised() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.8.8.8", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.com")))
