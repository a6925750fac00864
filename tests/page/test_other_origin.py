"""A page of another origin in a real browser: it may use the server only if its origin is named."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from playwright.sync_api import Browser

from tests.conftest import RunningServer
from vox_serve.config import ServerConfig

SPEAK = """async (url) => {
  const tried = (work) => work().catch((error) => error.name);
  const speech = await tried(async () => {
    const body = JSON.stringify({ model: "tts-1", voice: "alloy", input: "9 frames",
                                  response_format: "wav" });
    const headers = { "Content-Type": "application/json", Authorization: "Bearer none" };
    const answer = await fetch(url + "/v1/audio/speech", { method: "POST", headers, body });
    return (await answer.arrayBuffer()).byteLength;
  });
  const voices = await tried(async () => (await fetch(url + "/v1/audio/voices")).status);
  const error = await tried(async () => (await fetch(url + "/nowhere")).status);
  const socket = await new Promise((resolve) => {
    const one = new WebSocket(url.replace("http", "ws") + "/v1/audio/stream");
    one.onopen = () => resolve("open");
    one.onerror = () => resolve("refused");
  });
  return { speech, voices, error, socket };
}"""


@pytest.fixture
def site() -> Iterator[str]:
    """The address of an empty page on another origin."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>chat</title>")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("cors_origin", {"speech": 44 + 9 * 1280, "voices": 200, "error": 404, "socket": "open"}),
        ("ws_origin", {"speech": "TypeError", "voices": "TypeError", "error": "TypeError",
                       "socket": "open"}),
        (None, {"speech": "TypeError", "voices": "TypeError", "error": "TypeError",
                "socket": "refused"}),
    ],
)  # fmt: skip
def test_only_pages_of_allowed_origins_may_use_the_server(
    browser: Browser,
    site: str,
    start_server: Callable[..., RunningServer],
    flags: str | None,
    expected: dict[str, object],
) -> None:
    named = {} if flags is None else {flags: (site,)}
    server = start_server(server=ServerConfig(port=0, **named))  # type: ignore[arg-type]
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(site)
        assert page.evaluate(SPEAK, server.url) == expected
