"""Accessibility, size and origin of the page, for all views."""

from __future__ import annotations

import filecmp
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.conftest import RunningServer, running_server
from tests.page.conftest import wait
from vox_serve.config import EngineConfig
from vox_serve.server.page.routes import DOCS_POLICY, FILES, POLICY, STATIC

Opened = Callable[..., Page]
ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "page"
MODULES = SOURCE / "node_modules"
VIEWS = ["", "#conversation", "#live", "#voices"]
MAX_BYTES = 150_000


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(
    tone_server: RunningServer, open_page: Opened, scheme: str
) -> None:
    axe = MODULES / "axe-core/axe.min.js"
    if not axe.exists():
        pytest.skip("needs axe-core: `npm ci` in page/")
    page = open_page(tone_server, color_scheme=scheme)
    page.get_by_label("Text", exact=True).fill("5 frames")
    page.get_by_role("button", name="Speak").click()
    expect(page.get_by_role("button", name="Download")).to_be_visible()
    page.evaluate(axe.read_text())
    for view in VIEWS:
        page.goto(f"{tone_server.url}/{view or '#speak'}")
        page.evaluate("document.querySelectorAll('main details').forEach((one) => one.open = true)")
        found = page.evaluate("axe.run()")
        serious = [
            f"{one['id']}: {node['target']} {node['failureSummary']}"
            for one in found["violations"]
            if one["impact"] in ("serious", "critical")
            for node in one["nodes"]
        ]
        assert serious == [], view
        assert len(found["passes"]) > 10


def test_a_keyboard_reaches_everything_and_speaks(
    tone_server: RunningServer, open_page: Opened
) -> None:
    page = open_page(tone_server)
    expect(page.get_by_label("Model")).to_have_value("tone")
    reached = []
    for _ in range(20):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                "(document.activeElement.labels?.[0] ?? document.activeElement).innerText"
            )
        )
    ordered = ["Speak", "Text", "Model", "Voice", "Speaker", "Sampling, seed and format", "Speak"]
    at = -1
    for name in ordered:
        at = reached.index(name, at + 1)


@pytest.mark.parametrize("view", VIEWS)
def test_a_phone_needs_no_sideways_scrolling(
    tone_server: RunningServer, open_page: Opened, view: str
) -> None:
    page = open_page(tone_server, view, viewport={"width": 360, "height": 740})
    expect(page.get_by_label("Model").first).to_have_value("tone")
    for details in page.locator("details > summary").all():
        details.click()
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 360


def raw(server: RunningServer, path: str, **headers: str) -> tuple[httpx.Headers, bytes]:
    """A response as it is sent, without decompression."""
    with server.http.stream("GET", path, headers=headers) as response:
        return response.headers, b"".join(response.iter_raw())


def test_the_page_is_small(tone_server: RunningServer, open_page: Opened) -> None:
    page = open_page(tone_server)
    loaded = page.evaluate("performance.getEntriesByType('resource').map((one) => one.name)")
    files = [one for one in loaded if "/page/" in one]
    assert {Path(one).name for one in files} >= {"page.js", "page.css"}
    sizes = [
        len(raw(tone_server, path, **{"Accept-Encoding": "gzip"})[1])
        for path in ["/", *(one.removeprefix(tone_server.url) for one in files)]
    ]
    assert sum(sizes) < MAX_BYTES


@pytest.mark.parametrize("path", ["/", "/docs", "/page/page.js", "/page/page.css"])
def test_files_are_compressed_cached_and_revalidated(tone_server: RunningServer, path: str) -> None:
    headers, packed = raw(tone_server, path, **{"Accept-Encoding": "gzip"})
    plain_headers, plain = raw(tone_server, path, **{"Accept-Encoding": "identity"})
    assert headers["content-encoding"] == "gzip"
    assert "content-encoding" not in plain_headers
    assert len(packed) < len(plain)
    assert headers["cache-control"] == "no-cache"
    assert headers["content-security-policy"] == (DOCS_POLICY if path == "/docs" else POLICY)
    again = tone_server.http.get(path, headers={"If-None-Match": headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_only_files_of_the_page_are_served(tone_server: RunningServer) -> None:
    for name in ("routes.py", "..%2froutes.py", "%2e%2e", "index.html%00"):
        assert tone_server.http.get(f"/page/{name}").status_code == 404
    assert tone_server.http.get("/page/LICENSES.txt").text.count("MIT License") >= 3


def test_the_policy_allows_nothing_from_other_origins() -> None:
    for policy in (POLICY, DOCS_POLICY):
        assert policy.startswith("default-src 'none'")
        assert "http" not in policy
        assert "unsafe-eval" not in policy
    assert "unsafe" not in POLICY


@pytest.mark.skipif(not (MODULES / "esbuild").exists(), reason="needs `npm ci` in page/")
def test_the_bundle_is_what_its_source_builds(tmp_path: Path) -> None:
    subprocess.run(["node", "node_modules/.bin/tsc"], cwd=SOURCE, check=True, timeout=60)
    subprocess.run(["node", "build.mjs", tmp_path], cwd=SOURCE, check=True, timeout=60)
    built = sorted(file.name for file in tmp_path.iterdir())
    assert built == sorted(FILES)
    _, different, missing = filecmp.cmpfiles(tmp_path, STATIC, built, shallow=False)
    assert (different, missing) == ([], []), "run `make page`"


def test_docs_show_the_document_and_play_an_answer(
    tone_server: RunningServer, open_page: Opened
) -> None:
    page = open_page(tone_server, "docs")
    document = tone_server.http.get("/openapi.json").json()
    expect(page.locator(".opblock").first).to_be_visible()
    shown = [
        path.replace("\u200b", "")
        for path in page.locator(".opblock-summary-path").all_inner_texts()
    ]
    assert set(shown) == set(document["paths"])
    page.locator(".opblock-summary", has_text="Speak a text; responds").click()
    block = page.locator(".opblock.is-open")
    expect(block).to_contain_text("499")
    block.get_by_role("button", name="Execute").click()
    expect(block.locator("audio")).to_be_visible()
    wait(page, "document.querySelector('audio').duration > 0.1")


@pytest.fixture(scope="module")
def demo_server() -> Iterator[RunningServer]:
    with running_server(EngineConfig(model="demo", max_batch_size=2)) as server:
        yield server


def test_the_page_has_its_picture_taken(
    demo_server: RunningServer, open_page: Opened, tmp_path: Path
) -> None:
    """VOX_WRITE_PICTURES=1 takes the pictures docs/page*.png."""
    page = open_page(demo_server, viewport={"width": 1000, "height": 900})
    text = "The sun was warm, and a light wind came from the sea. Nobody was in a hurry."
    page.get_by_label("Text", exact=True).fill(text)
    page.get_by_role("button", name="Speak").click()
    expect(page.get_by_role("button", name="Download")).to_be_visible(timeout=30_000)
    wait(page, "document.querySelector('.latest [type=range]').value > 1.5")
    page.screenshot(path=tmp_path / "page.png")
    page.emulate_media(color_scheme="dark")
    page.screenshot(path=tmp_path / "page-dark.png")
    page.set_viewport_size({"width": 390, "height": 844})
    page.locator(".latest").evaluate("one => one.scrollIntoView({ block: 'end' })")
    page.screenshot(path=tmp_path / "page-phone.png")
    for picture in tmp_path.iterdir():
        assert picture.stat().st_size > 20_000
        if os.environ.get("VOX_WRITE_PICTURES"):
            shutil.copy(picture, ROOT / "docs")
