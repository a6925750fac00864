"""The voices view: upload or record a voice, play it, delete it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Page, expect

from tests.conftest import RunningServer
from tests.page.conftest import energetic, silent, wait
from tests.wav import wav_header

Opened = Callable[..., Page]


def describe(page: Page, name: str) -> None:
    page.get_by_label("What is said in it").fill("Good morning.")
    page.get_by_label("Name").fill(name)


def test_a_file_becomes_a_voice_that_can_be_played_and_deleted(
    tone_server: RunningServer, open_page: Opened, tmp_path: Path
) -> None:
    sample = tmp_path / "sample.wav"
    sample.write_bytes(wav_header(8000, 16000) + bytes(16000))
    page = open_page(tone_server, "#voices")
    page.get_by_label("Sample", exact=True).set_input_files(sample)
    expect(page.get_by_label("Sample: sample.wav")).to_be_visible()
    describe(page, "anna")
    page.get_by_role("button", name="Register").click()
    expect(page.get_by_role("status")).to_contain_text("anna is registered")
    voice = page.get_by_role("listitem").filter(has_text="anna")
    expect(voice).to_contain_text("1.0 s of sample")
    expect(voice).to_contain_text("Good morning.")
    page.get_by_role("button", name="Hear anna").click()
    energetic(page)
    page.get_by_role("button", name="Stop", exact=True).click()
    silent(page)
    page.get_by_role("link", name="Speak").click()
    expect(page.get_by_label("Voice")).to_contain_text("anna (registered)")
    page.get_by_role("link", name="Voices").click()
    page.get_by_role("button", name="Delete anna").click()
    expect(page.get_by_role("status")).to_contain_text("anna is deleted")
    expect(voice).to_have_count(0)
    assert tone_server.http.get("/v1/audio/voices/anna").status_code == 404


def test_a_recording_becomes_a_voice(tone_server: RunningServer, open_page: Opened) -> None:
    page = open_page(tone_server, "#voices")
    page.get_by_role("button", name="Record").click()
    wait(page, "document.querySelector('meter')?.value > 10")  # the fake microphone beeps
    page.wait_for_timeout(700)
    page.get_by_role("button", name="Stop recording").click()
    expect(page.get_by_label("Sample: recording.wav")).to_be_visible()
    describe(page, "me")
    page.get_by_role("button", name="Register").click()
    expect(page.get_by_role("status")).to_contain_text("me is registered")
    found = tone_server.http.get("/v1/audio/voices/me").json()
    assert 0.5 < found["seconds"] < 5
    page.get_by_role("button", name="Delete me").click()
    expect(page.get_by_role("status")).to_contain_text("me is deleted")


def test_an_error_in_a_voice_is_shown_at_its_field(
    tone_server: RunningServer, open_page: Opened, tmp_path: Path
) -> None:
    page = open_page(tone_server, "#voices")
    register = page.get_by_role("button", name="Register")
    sample = page.get_by_label("Sample", exact=True)
    register.click()
    expect(sample).to_have_accessible_description(re.compile("audio is required"))
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"not sound")
    sample.set_input_files(broken)
    describe(page, "no spaces")
    register.click()
    expect(page.get_by_label("Name")).to_have_accessible_description(re.compile("name must be"))
    describe(page, "spaceless")
    register.click()
    expect(sample).to_have_accessible_description(re.compile("audio"))


def test_without_a_microphone_the_page_suggests_an_upload(
    tone_server: RunningServer, open_page: Opened
) -> None:
    page = open_page(tone_server, "#voices")
    page.evaluate(
        "Object.defineProperty(navigator, 'mediaDevices', { value: undefined, configurable: true })"
    )
    page.get_by_role("button", name="Record").click()
    expect(page.get_by_role("alert")).to_contain_text("Upload a file instead")
