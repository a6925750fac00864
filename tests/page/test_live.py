"""The live view sends text word by word, and falls silent when it is interrupted."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from playwright.sync_api import Page, expect

from tests.conftest import RunningServer
from tests.page.conftest import energetic, silent
from vox_serve.config import ServerConfig

Opened = Callable[..., Page]


def test_words_are_sent_as_they_are_typed_and_spoken_as_sentences(
    tone_server: RunningServer, open_page: Opened
) -> None:
    page = open_page(tone_server, "#live")
    page.get_by_label("Voice").select_option("hum_b")
    sent: list[dict[str, object]] = []
    page.on(
        "websocket",
        lambda socket: socket.on("framesent", lambda text: sent.append(json.loads(text))),
    )
    page.get_by_label("Type here").press_sequentially("Hum for 12 frames! Then 5")
    energetic(page)
    expect(page.locator(".segments")).to_contain_text("Hum for 12 frames!")
    expect(page.locator(".waiting")).to_have_text("Then")
    page.get_by_label("Type here").press("Enter")
    expect(page.locator(".segments")).to_contain_text("Then 5")
    expect(page.locator(".waiting")).to_have_count(0)
    assert sent[0] == {"type": "start", "format": "pcm", "voice": "hum_b"}
    assert [one["text"] for one in sent if one["type"] == "text"] == [
        "Hum ",
        "for ",
        "12 ",
        "frames! ",
        "Then ",
        "5",
    ]
    assert sent[-1] == {"type": "flush"}
    page.get_by_role("button", name="Close").click()
    expect(page.get_by_role("status")).to_have_text("not connected")
    silent(page)
    page.get_by_role("button", name="Play utterance 1").click()
    energetic(page)
    for name, header in (("wav", 44), ("pcm", 0)):
        page.get_by_label("Format of utterance 1").select_option(name)
        with page.expect_download() as event:
            page.get_by_role("button", name="Download utterance 1").click()
        assert event.value.suggested_filename == f"utterance-1.{name}"
        assert event.value.path().stat().st_size == header + 17 * 640 * 2


def test_an_interruption_silences_frees_the_slot_and_keeps_the_session(
    slow_server: RunningServer, open_page: Opened
) -> None:
    page = open_page(slow_server, "#live")
    field = page.get_by_label("Type here")
    field.press_sequentially("Hum for 150 frames, please! And 100 more")
    energetic(page)
    page.get_by_role("button", name="Interrupt").click()
    silent(page)
    slow_server.wait_idle()
    expect(page.locator(".segments")).to_contain_text("interrupted")
    expect(page.get_by_role("status")).to_have_text("connected")
    field.fill("")
    field.press_sequentially("40 frames! ")
    field.press("Enter")
    energetic(page)
    expect(page.locator(".segments").nth(1)).to_contain_text("40 frames!")


def test_typing_interrupts_the_speech(slow_server: RunningServer, open_page: Opened) -> None:
    page = open_page(slow_server, "#live")
    page.get_by_role("button", name="Play an example").click()
    energetic(page)
    field = page.get_by_label("Type here")
    field.press_sequentially("150 frames")
    expect(page.locator(".segments")).to_contain_text("interrupted")
    field.press("Enter")
    expect(page.locator(".segments").nth(1)).to_contain_text("150 frames")
    energetic(page)
    field.press_sequentially("5 ")
    silent(page)
    expect(page.locator(".segments").nth(1)).to_contain_text("interrupted")
    field.press("Escape")
    slow_server.wait_idle()


def test_a_sentence_that_cannot_be_spoken_is_reported_and_the_next_is_spoken(
    tone_server: RunningServer, open_page: Opened
) -> None:
    page = open_page(tone_server, "#live")
    field = page.get_by_label("Type here")
    field.press_sequentially("This is unspeakable! ")
    expect(page.get_by_role("alert")).to_contain_text("text holds what no tone can say")
    field.press_sequentially("40 frames! ")
    energetic(page)


def test_a_key_opens_the_connection(
    start_server: Callable[..., RunningServer], open_page: Opened
) -> None:
    page = open_page(start_server(server=ServerConfig(port=0, api_key=("se/cret+",))), "#live")
    page.get_by_label("Type here").press_sequentially("40 frames! ")
    field = page.get_by_label("Key, if the server wants one")
    expect(field).to_have_accessible_description(re.compile("a key is required"))
    field.fill("se/cret+")
    field.press("Enter")
    page.get_by_label("Type here").press_sequentially("40 frames! ")
    energetic(page)


def test_a_refused_or_broken_connection_is_reported(
    start_server: Callable[..., RunningServer], open_page: Opened
) -> None:
    server = start_server()
    page = open_page(server, "#live")
    page.get_by_label("Type here").press_sequentially("40 frames! ")
    energetic(page)
    page.route("**/*", lambda route: route.abort())
    page.route_web_socket("**/*", lambda socket: socket.close(code=1006))
    page.get_by_role("button", name="Close").click()
    expect(page.get_by_role("status")).to_have_text("not connected")
    page.get_by_label("Type here").press_sequentially("40 frames! ")
    expect(page.get_by_role("alert")).to_contain_text("The connection was lost.")
