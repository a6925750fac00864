"""A real Chromium (Debian's), in which the tests open the page."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from tests.conftest import RunningServer, running_server
from tests.server.conftest import gate, gated_server  # noqa: F401  # fixtures

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--no-sandbox",  # continuous integration runs as root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",  # its microphone beeps
    "--use-fake-ui-for-media-stream",  # without a permission prompt
]
SPY = """
// Records what is played and what the content security policy blocked.
window.heard = [];
window.violations = [];
const ears = new Set();
const { connect } = AudioNode.prototype;
AudioNode.prototype.connect = function (to, ...rest) {
  if (to instanceof AudioDestinationNode) {
    to.ear ??= new AnalyserNode(to.context, { fftSize: 256 });
    ears.add(to.ear);
    connect.call(this, to.ear);
  }
  return connect.call(this, to, ...rest);
};
const { start } = AudioBufferSourceNode.prototype;
AudioBufferSourceNode.prototype.start = function (time) {
  const samples = this.buffer.getChannelData(0).slice();
  window.heard.push({ time, samples, rate: this.buffer.sampleRate });
  return start.call(this, time);
};
window.energy = () => {
  const samples = new Float32Array(256);
  let sum = 0;
  for (const ear of ears) {
    ear.getFloatTimeDomainData(samples);
    sum += samples.reduce((total, one) => total + one * one, 0);
  }
  return sum;
};
document.addEventListener("securitypolicyviolation", (event) =>
  window.violations.push(`${event.violatedDirective} ${event.blockedURI}`));
"""


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("needs Debian's package chromium")
    # The scope is the package, not the session, because Playwright runs an event loop in this
    # thread, and the tests of other packages could not start one.
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        expect.set_options(timeout=10_000)
        yield browser
        browser.close()


@contextmanager
def opened(
    browser: Browser, server: RunningServer, view: str = "", **settings: Any
) -> Iterator[Page]:
    """The page in a fresh profile.  Fails if it violates its policy or contacts other servers."""
    logged: list[str] = []

    def listen(message: ConsoleMessage) -> None:
        # The browser logs each error response.  Other tests check those.
        refused = message.text.startswith(("Failed to load resource", "WebSocket connection to"))
        if message.type in ("error", "warning") and not refused:
            logged.append(message.text)

    with browser.new_context(**settings) as context:
        context.add_init_script(SPY)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("console", listen)
        page.on("pageerror", lambda error: logged.append(str(error)))
        foreign_requests: list[str] = []
        page.on(
            "request",
            lambda one: (
                None
                if one.url.startswith((server.url, "blob:"))
                else foreign_requests.append(one.url)
            ),
        )
        page.goto(f"{server.url}/{view}")
        yield page
        assert page.evaluate("violations") == []
        assert logged == []
        assert foreign_requests == []


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Open a server's page: `open_page(server, "#voices")`."""
    with ExitStack() as stack:
        yield lambda server, view="", **settings: stack.enter_context(
            opened(browser, server, view, **settings)
        )


@pytest.fixture
def slow_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningServer]:
    """The tone, at four times real time."""
    monkeypatch.setenv("TONE_DELAY", "0.02")
    with running_server() as server:
        yield server


def wait(page: Page, condition: str) -> None:
    """Wait until a JavaScript expression is true.

    Playwright's own `wait_for_function` evaluates a string, which the page's policy forbids.
    """
    page.evaluate(
        f"""async () => {{
            const end = performance.now() + 10000;
            while (!({condition})) {{
              if (performance.now() > end) throw new Error("not within 10 seconds");
              await new Promise((resolve) => setTimeout(resolve, 10));
            }}
        }}"""
    )


def energetic(page: Page) -> None:
    """Wait until sound is played."""
    wait(page, "energy() > 0.1")


def silent(page: Page) -> None:
    """Wait until no sound is played."""
    wait(page, "energy() === 0")
