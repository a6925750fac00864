"""The first view plays a text while it is generated, draws it, keeps it and shows it as code."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import attrs
import numpy as np
import pytest
from playwright.sync_api import Page, expect

from tests.conftest import TONE, RunningServer
from tests.page.conftest import energetic, silent, wait
from tests.server.conftest import Gate
from tests.tone import CHECKPOINT
from vox_serve.audio import read_audio
from vox_serve.audio.formats import FORMATS

Opened = Callable[..., Page]


def speak(page: Page, text: str) -> None:
    page.get_by_label("Text", exact=True).fill(text)
    page.get_by_role("button", name="Speak").click()


def figure(page: Page, name: str) -> str:
    """One of the figures below the latest audio."""
    return page.locator(".latest dl div", has_text=name).locator("dd").inner_text()


def finished(page: Page) -> None:
    """Wait until all of it has been played."""
    expect(page.get_by_role("status")).to_have_text("", timeout=20_000)


def drawn(page: Page) -> int:
    """The number of pixels that are drawn in the latest picture."""
    return int(
        page.locator(".latest canvas").evaluate(
            """canvas => canvas.getContext("2d")
                .getImageData(0, 0, canvas.width, canvas.height).data
                .filter((value, n) => n % 4 === 3 && value).length"""
        )
    )


def test_a_text_is_played_and_drawn_while_it_is_generated(
    gate: Gate, gated_server: RunningServer, open_page: Opened
) -> None:
    page = open_page(gated_server)
    gate.allow(20)
    speak(page, "40 frames")
    energetic(page)
    assert gated_server.client.stats.running == 1
    expect(page.locator(".latest")).to_contain_text("First audio")
    before = drawn(page)
    assert before > 1000
    gate.open()
    finished(page)
    assert figure(page, "Length") == "3.2 s"
    assert float(figure(page, "Real-time factor")) > 0
    assert int(figure(page, "First audio").removesuffix(" ms")) > 0
    expect(page.get_by_role("button", name="Stop", exact=True)).to_be_disabled()


def test_late_audio_causes_a_gap_but_none_is_lost(
    gate: Gate, gated_server: RunningServer, open_page: Opened
) -> None:
    page = open_page(gated_server)
    gate.allow(5)
    speak(page, "15 frames")
    energetic(page)
    silent(page)
    gate.open()
    finished(page)
    assert figure(page, "Gaps") == "1"
    assert page.evaluate("heard.reduce((sum, one) => sum + one.samples.length, 0)") == 15 * 640


def test_pieces_are_played_without_a_gap_between_their_samples(
    slow_server: RunningServer, open_page: Opened
) -> None:
    page = open_page(slow_server)
    speak(page, "30 frames")
    finished(page)
    heard = page.evaluate("heard.map(({ time, rate, samples }) => [time, rate, samples.length])")
    assert len(heard) > 3, "it did not come in pieces"
    at = round(heard[0][0] * 8000)
    for time, rate, count in heard:
        assert rate == 8000
        assert time * 8000 == pytest.approx(at, abs=1e-6)
        at += count
    # The browser renders them at these times without a missing or repeated sample.
    rendered, joined = page.evaluate(
        """async () => {
            const joined = heard.flatMap(({ samples }) => Array.from(samples));
            const origin = Math.round(heard[0].time * 8000);
            const context = new OfflineAudioContext(1, origin + joined.length, 8000);
            for (const { time, samples } of [...heard]) { // a copy: this is heard, too
              const buffer = context.createBuffer(1, samples.length, 8000);
              buffer.copyToChannel(samples, 0);
              const source = new AudioBufferSourceNode(context, { buffer });
              source.connect(context.destination);
              source.start(time);
            }
            const rendered = (await context.startRendering()).getChannelData(0).slice(origin);
            // Rounded: Chromium interpolates where a time in seconds is not exactly a sample's,
            // which alters that sample by less than a millionth of a step of 16 bits.
            const whole = (one) => JSON.stringify(Array.from(one, (value) => {
              const nearest = Math.round(value * 32768);
              return Math.abs(value * 32768 - nearest) < 1e-4 ? nearest : value * 32768;
            }));
            return [whole(rendered), whole(joined)]; // as texts, which Playwright copies fast
        }"""
    )
    assert rendered == joined
    body = {"text": "30 frames", "speaker": 0, "format": "pcm"}
    pcm = slow_server.http.post("/generate", json=body).content
    assert np.array(json.loads(joined)).astype("<i2").tobytes() == pcm


def test_stop_silences_at_once_and_frees_the_slot(
    slow_server: RunningServer, open_page: Opened
) -> None:
    """Within 200 ms.  The fastest of three counts, because other tests share the processors."""
    page = open_page(slow_server)

    def stop() -> float:
        """Returns the milliseconds from the click to silence."""
        speak(page, "190 frames")
        energetic(page)
        assert slow_server.client.stats.running == 1
        page.evaluate(
            """window.silenceAfter = undefined;
            addEventListener("click", () => {
                const begun = performance.now();
                const timer = setInterval(() => {
                  if (energy()) return;
                  clearInterval(timer);
                  window.silenceAfter = performance.now() - begun;
                }, 5);
            }, { once: true })"""
        )
        page.get_by_role("button", name="Stop", exact=True).click()
        slow_server.wait_idle(1)
        wait(page, "window.silenceAfter !== undefined")
        expect(page.locator(".latest")).to_contain_text("incomplete")
        after: float = page.evaluate("silenceAfter")
        return after

    assert min(stop() for _ in range(3)) < 200


def test_leaving_the_page_during_a_stream_frees_the_slot(
    slow_server: RunningServer, open_page: Opened
) -> None:
    page = open_page(slow_server)
    speak(page, "190 frames")
    energetic(page)
    assert slow_server.client.stats.running == 1
    page.reload()
    slow_server.wait_idle(2)


def test_keys_speak_and_stop(slow_server: RunningServer, open_page: Opened) -> None:
    page = open_page(slow_server)
    page.get_by_label("Text", exact=True).fill("190 frames")
    page.keyboard.press("Control+Enter")
    energetic(page)
    page.keyboard.press("Escape")
    silent(page)
    slow_server.wait_idle()


def test_the_settings_are_those_of_the_request(
    tone_server: RunningServer, open_page: Opened
) -> None:
    page = open_page(tone_server)
    page.get_by_label("Voice").select_option("hum_b")
    expect(page.get_by_label("Speaker")).to_be_disabled()
    page.get_by_text("Sampling, seed and format").click()
    page.get_by_label("temperature").fill("0.7")
    page.get_by_label("seed").fill("11")
    page.get_by_label("normalize").select_option("off")
    with page.expect_request("**/generate") as sent:
        speak(page, "5 frames")
    assert sent.value.post_data_json == {
        "text": "5 frames",
        "voice": "hum_b",
        "temperature": 0.7,
        "seed": 11,
        "normalize": "off",
        "streaming": True,
        "format": "pcm",
    }
    expect(page.locator(".latest")).to_contain_text("hum_b, seed 11")


def test_parameters_of_only_one_model_are_settings(
    tone_server: RunningServer, open_page: Opened
) -> None:
    page = open_page(tone_server)
    models = tone_server.http.get("/models").json()
    steps = {"type": "integer", "minimum": 1, "maximum": 8, "description": "of the solver"}
    language = {"type": "string", "enum": ["auto", "de"], "description": "of the text"}
    words = {"type": "string", "maxLength": 9, "description": "how to speak"}
    own = {"steps": steps, "language": language, "instructions": words}
    sampling = {"steps": 2, "language": "auto", "instructions": ""}
    models["models"][0] |= {"parameters": own, "sampling": sampling}
    page.route("**/models", lambda route: route.fulfill(json=models))
    page.reload()
    page.get_by_text("Sampling, seed and format").click()
    expect(page.get_by_label("temperature")).to_have_count(0)
    page.get_by_label("steps").fill("4")
    page.get_by_label("language").select_option("de")
    page.get_by_label("instructions").fill("7")
    with page.expect_request("**/generate") as sent:
        speak(page, "5 frames")
    posted = sent.value.post_data_json
    assert posted["parameters"] == {"steps": 4, "instructions": "7"}
    assert posted["language"] == "de", "the language is a field of every request"
    expect(page.get_by_label("instructions")).to_have_attribute("aria-invalid", "true")


def test_earlier_audio_can_be_played_again_and_downloaded_in_each_format(
    tone_server: RunningServer, open_page: Opened, tmp_path: Path
) -> None:
    page = open_page(tone_server)
    speak(page, "12 frames")
    finished(page)
    speak(page, "5 frames")
    finished(page)
    assert page.locator("article").count() == 2
    older = page.locator("article").nth(1)
    for name in FORMATS:
        older.get_by_role("combobox").select_option(name)
        with page.expect_download() as event:
            older.get_by_role("button", name="Download").click()
        content = event.value.path().read_bytes()
        assert event.value.suggested_filename.endswith(f".{name}")
        if name == "pcm":
            assert len(content) == 12 * 640 * 2
        elif name in ("mulaw", "alaw"):  # one byte per sample at 8 kHz
            assert len(content) == 12 * 640
        elif name == "aac":  # libsndfile cannot read it; this starts an ADTS frame
            assert content[:2] == b"\xff\xf1"
        else:
            audio = read_audio(io.BytesIO(content), 8000, 10)
            assert len(audio) == pytest.approx(12 * 640, abs=800)
    older.get_by_role("button", name="Play").click()
    energetic(page)
    position = older.get_by_role("slider")
    position.focus()
    page.keyboard.press("End")
    finished(page)


@pytest.mark.parametrize("language", ["curl", "Python", "JavaScript"])
def test_the_code_makes_the_same_request(
    tone_server: RunningServer, open_page: Opened, tmp_path: Path, language: str
) -> None:
    page = open_page(tone_server, permissions=["clipboard-read", "clipboard-write"])
    text = 'It\'s "6" frames,\nand $HOME is `here` \\ ü'
    page.get_by_label("Text", exact=True).fill(text)
    page.get_by_text("Sampling, seed and format").click()
    page.get_by_label("seed").fill("3")
    page.get_by_label("format of the code").select_option("flac")
    page.get_by_text("The same request as code").click()
    page.get_by_role("button", name=language, exact=True).click()
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    code = page.evaluate("navigator.clipboard.readText()")
    command = {"curl": ["bash", "-ec", code], "Python": [sys.executable, "-c", code]}
    if language == "JavaScript":
        if shutil.which("node") is None:
            pytest.skip("needs node")
        (tmp_path / "program.mjs").write_text(code)
        command["JavaScript"] = ["node", "program.mjs"]
    subprocess.run(command[language], cwd=tmp_path, check=True, timeout=60)
    body = {"text": text, "speaker": 0, "seed": 3, "format": "flac", "streaming": True}
    expected = tone_server.http.post("/generate", json=body).content
    assert (tmp_path / "output.flac").read_bytes() == expected


def test_an_error_is_shown_at_its_field(tone_server: RunningServer, open_page: Opened) -> None:
    page = open_page(tone_server)
    text = page.get_by_label("Text", exact=True)
    speak(page, "unspeakable")
    expect(text).to_have_attribute("aria-invalid", "true")
    expect(text).to_have_accessible_description("text holds what no tone can say")
    speak(page, "5 frames")
    expect(text).not_to_have_attribute("aria-invalid", "true")
    page.get_by_text("Sampling, seed and format").click()
    for value, message in (
        ("9", "temperature must be from 0 to 5"),
        ("warm", "temperature: Expected `float | null`, got `str`"),
    ):
        page.get_by_label("temperature").fill(value)
        speak(page, "5 frames")
        expect(page.get_by_label("temperature")).to_have_accessible_description(message)
    page.get_by_label("temperature").fill("")
    page.get_by_label("seed").fill("9223372036854775807")  # more than JavaScript can hold
    speak(page, "5 frames")
    expect(page.get_by_label("seed")).to_have_attribute("aria-invalid", "true")


def test_audio_that_breaks_off_is_reported_and_kept(
    gate: Gate, gated_server: RunningServer, open_page: Opened
) -> None:
    page = open_page(gated_server)
    gate.allow(2)
    speak(page, "20 frames boom")
    expect(page.locator(".latest dl div", has_text="Length").locator("dd")).to_have_text("0.2 s")
    gate.open()
    expect(page.get_by_role("alert")).to_contain_text("The audio stopped early")
    assert figure(page, "Length") == "0.2 s"
    expect(page.locator(".latest")).to_contain_text("incomplete")


def test_a_full_queue_and_an_unreachable_server_are_reported(
    tone_server: RunningServer, open_page: Opened
) -> None:
    page = open_page(tone_server)
    full = {"error": {"message": "the queue is full", "param": None, "code": "queue_full"}}
    page.route("**/generate", lambda route: route.fulfill(status=429, json=full))
    speak(page, "5 frames")
    expect(page.get_by_role("alert")).to_have_text("the queue is full")
    page.unroute("**/generate")
    page.route("**/*", lambda route: route.abort())
    speak(page, "5 frames")
    expect(page.get_by_role("alert")).to_have_text("The server cannot be reached.")
    expect(page.locator(".state summary")).to_have_text("The server cannot be reached.")


def test_a_key_is_asked_for_and_sent(tone_server: RunningServer, open_page: Opened) -> None:
    page = open_page(tone_server)
    wanted = {"error": {"message": "a key is required", "param": None, "code": "unauthorized"}}
    page.route(
        "**/generate",
        lambda route: (
            route.continue_()
            if route.request.headers.get("authorization") == "Bearer vox-123"
            else route.fulfill(status=401, json=wanted)
        ),
    )
    speak(page, "5 frames")
    field = page.get_by_label("Key, if the server wants one")
    expect(field).to_have_accessible_description("a key is required")
    field.fill("vox-123")
    field.press("Enter")
    expect(field).to_be_hidden()
    speak(page, "40 frames")
    energetic(page)
    page.get_by_text("The same request as code").click()
    expect(page.locator("pre")).to_contain_text('-H "Authorization: Bearer $VOX_SERVE_KEY"')
    assert "vox-123" not in page.locator("pre").inner_text()


def test_the_state_of_models_and_queue_is_shown(
    gate: Gate, gated_server: RunningServer, open_page: Opened
) -> None:
    gate.allow(2)
    page = open_page(gated_server)
    summary = page.locator(".state summary")
    expect(summary).to_have_text("ready, 0 of 4 speaking, 0 waiting")
    speak(page, "190 frames")
    expect(summary).to_have_text("ready, 1 of 4 speaking, 0 waiting")
    summary.click()
    expect(page.get_by_role("row", name="tone")).to_contain_text("1 of 4")
    gate.open()


def test_one_of_several_models_can_be_chosen(
    start_server: Callable[..., RunningServer], open_page: Opened, tmp_path: Path
) -> None:
    other = shutil.copytree(CHECKPOINT, tmp_path / "second")
    page = open_page(start_server(others=[attrs.evolve(TONE, model=str(other))]))
    page.get_by_label("Model").select_option("second")
    with page.expect_request("**/generate") as sent:
        speak(page, "40 frames")
    assert sent.value.post_data_json["model"] == "second"
    energetic(page)


def test_a_model_that_becomes_ready_is_shown_without_a_reload(
    tone_server: RunningServer, open_page: Opened
) -> None:
    page = open_page(tone_server)
    page.route("**/models", lambda route: route.fulfill(json={"models": []}))
    page.reload()
    expect(page.locator(".state summary")).to_contain_text("ready")
    expect(page.get_by_label("Model")).to_have_value("")
    page.unroute("**/models")
    expect(page.get_by_label("Model")).to_have_value("tone")
