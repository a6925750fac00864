"""The conversation view: bubbles that can be played, and a context that the server keeps."""

from __future__ import annotations

from collections.abc import Callable

from playwright.sync_api import Page, expect

from tests.conftest import RunningServer
from tests.page.conftest import energetic, silent
from tests.server.conftest import value
from tests.waiting import until

Opened = Callable[..., Page]
TURNS = ["5 frames are mine", "4 are mine", "3 frames are enough", "5 frames then"]


def say(page: Page, text: str) -> None:
    page.get_by_label("Next turn").fill(text)
    page.get_by_label("Next turn").press("Enter")
    expect(page.get_by_label("Next turn")).to_have_value("")


def test_four_turns_are_one_conversation_that_can_be_played_and_forgotten(
    tone_server: RunningServer, open_page: Opened
) -> None:
    page = open_page(tone_server, "#conversation")
    sent = []
    page.on("request", lambda one: sent.append(one) if "/generate" in one.url else None)
    for text in TURNS:
        say(page, text)
    bodies = [one.post_data_json for one in sent]
    assert [body["text"] for body in bodies] == TURNS
    assert [body["voice"] for body in bodies] == ["hum_a", "hum_b"] * 2
    assert len({body["conversation"] for body in bodies}) == 1
    assert value(tone_server, "conversations") == 1
    bubbles = page.locator(".bubble")
    assert bubbles.locator("p").all_inner_texts() == TURNS
    for number in range(1, 5):
        silent(page)
        page.get_by_role("button", name=f"Play turn {number}").click()
        energetic(page)
        page.get_by_role("button", name=f"Stop turn {number}").click()
    page.evaluate("heard.length = 0")
    page.get_by_role("button", name="Play all").click()
    played = "heard.reduce((sum, one) => sum + one.samples.length, 0)"
    until(lambda: page.evaluate(played) >= (5 + 4 + 3 + 5) * 640)
    expect(page.get_by_role("button", name="Play turn 4")).to_be_visible()
    assert page.evaluate(played) == (5 + 4 + 3 + 5) * 640
    for name, header in (("wav", 44), ("pcm", 0)):
        page.get_by_label("Format of turn 2").select_option(name)
        with page.expect_download() as event:
            page.get_by_role("button", name="Download turn 2").click()
        assert event.value.suggested_filename == f"turn-2.{name}"
        assert event.value.path().stat().st_size == header + 4 * 640 * 2
    with page.expect_response("**/conversations/*") as answer:
        page.get_by_role("button", name="Start over").click()
    assert answer.value.status == 204
    assert bubbles.count() == 0


def test_a_turn_that_cannot_be_spoken_is_not_added(
    tone_server: RunningServer, open_page: Opened
) -> None:
    page = open_page(tone_server, "#conversation")
    field = page.get_by_label("Next turn")
    field.fill("unspeakable")
    field.press("Enter")
    expect(field).to_have_accessible_description("text holds what no tone can say")
    assert page.locator(".bubble").count() == 0
    say(page, "5 frames")
    assert page.locator(".bubble").count() == 1


def test_a_stopped_turn_says_that_the_server_does_not_remember_it(
    slow_server: RunningServer, open_page: Opened
) -> None:
    page = open_page(slow_server, "#conversation")
    page.get_by_label("Next turn").fill("150 frames")
    page.get_by_role("button", name="Say").click()
    energetic(page)
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(page.locator(".bubble")).to_contain_text("the server does not remember this turn")
    slow_server.wait_idle()


def test_for_a_model_without_context_the_page_says_so(
    tone_server: RunningServer, open_page: Opened
) -> None:
    page = open_page(tone_server, "#conversation")
    models = tone_server.http.get("/models").json()
    models["models"][0]["takes_context"] = False
    page.route("**/models", lambda route: route.fulfill(json=models))
    page.reload()
    expect(page.get_by_role("alert")).to_contain_text("cannot follow a conversation")
