"""Text that a model speaks while it is written: words, audio, and where segments end."""

from __future__ import annotations

import time
from collections.abc import Iterator

import attrs
import pytest

from tests.conftest import RunningServer, running_server
from tests.server.test_life import is_idle
from tests.server.websocket.test_session import (
    Speaker,
    StartServer,
    check_fatal,
    said,
    session,
    spoken_whole,
    until,
)
from tests.talk import CHECKPOINT, MAX_CHARACTERS
from vox_serve.config import EngineConfig, ServerConfig

TALK = EngineConfig(model=str(CHECKPOINT), plugins=("tests.talk",), max_batch_size=2)
TEXT = "Words come one by one. They are spoken (as they come)."
FRAME = 2 * 640


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_server(TALK) as server:
        yield server


def texts(speaker: Speaker) -> dict[int, str]:
    """The text of each segment, by number."""
    found: dict[int, str] = {}
    for event in speaker.events:
        if event["type"] == "segment":
            number = event["segment"]
            found[number] = f"{found.get(number, '')} {event['text']}".strip()
    return found


@pytest.mark.parametrize("size", [1, 10, 1000])
def test_words_that_come_bit_by_bit_sound_as_the_whole_text_does(server: RunningServer, size: int):
    bits = [TEXT[start : start + size] for start in range(0, len(TEXT), size)]
    speaker = spoken_whole(server, bits)
    assert texts(speaker) == {0: TEXT}
    assert speaker.audio == said(server, TEXT)
    assert speaker.events[0]["live"] is True
    assert speaker.events[-1]["finish_reason"] == "stop"


def test_a_word_is_spoken_before_its_sentence_is_complete(server: RunningServer):
    with session(server) as speaker:
        speaker.send("text", text="Words come ")
        speaker.until("audio")
        assert speaker.events[-1] == {
            "type": "segment",
            "segment": 0,
            "text": "Words come",
            "start_seconds": 0.0,
        }
        speaker.send("text", text="slowly. ")
        speaker.send("flush")
        speaker.until("flushed")
        assert texts(speaker) == {0: "Words come slowly."}
        assert speaker.audio == said(server, "Words come slowly.")
        speaker.send("text", text="Then more.")
        speaker.send("end")
        assert speaker.close() == (1000, "done")
    assert texts(speaker)[1] == "Then more."
    server.wait_idle()


def test_markup_is_read_with_its_sentence_and_is_not_spoken(server: RunningServer):
    text = "This is **very bold** text. And [a link](http://x.y) too."
    speaker = spoken_whole(server, list(text))
    assert texts(speaker) == {0: "This is very bold text. And a link too."}
    assert speaker.audio == said(server, text)


def test_signs_that_need_a_front_end_are_as_over_http(server: RunningServer):
    for text in (
        "\ufb01ne \u00dcber all. \u00dcber \ufb01ne",
        "\u4f60\u597d\uff0c\u4e16\u754c\uff01",
    ):
        speaker = spoken_whole(server, list(text))
        assert speaker.audio == said(server, text), text


def test_as_written_nothing_is_changed(server: RunningServer):
    text = "This is **very bold** text,  and # more"
    speaker = spoken_whole(server, list(text), normalize="off")
    assert speaker.audio == said(server, text, normalize="off")


def test_a_pause_and_a_document_are_spoken_by_the_sentence(server: RunningServer):
    speaker = spoken_whole(
        server, list("One [pause 0.4s] two. <speak>Three <break time='0.3s'/></speak>")
    )
    assert texts(speaker) == {
        0: "One",
        1: "[pause 0.4s] two.",
        2: "<speak>Three <break time='0.3s'/></speak>",
    }
    assert bytes(int(0.4 * 16000)) in speaker.audio


def test_a_paragraph_begins_a_segment_after_a_silence(server: RunningServer):
    speaker = spoken_whole(server, list("One two.\n\nThree four."))
    assert texts(speaker) == {0: "One two.", 1: "Three four."}
    silence = bytes(int(0.3 * 16000))
    expected = said(server, "One two.") + silence + said(server, "Three four.")
    assert speaker.audio == expected


@pytest.mark.parametrize("size", [1, 7])
def test_a_long_text_is_cut_by_what_it_says_and_not_by_when_it_comes(
    server: RunningServer, size: int
):
    text = " ".join(f"This is sentence number {word}." for word in ("one", "two", "three", "four"))
    text += f" And {'a very long sentence without end ' * 8}follows."
    bits = [text[start : start + size] for start in range(0, len(text), size)]
    found = texts(spoken_whole(server, bits))
    assert " ".join(found.values()) == text
    assert all(len(part) <= MAX_CHARACTERS for part in found.values())
    assert found == texts(spoken_whole(server, [text]))
    assert found[0].endswith("three.")


def test_a_word_that_is_too_long_is_spoken_in_parts(server: RunningServer):
    speaker = spoken_whole(server, ["a " + "b" * 2 * MAX_CHARACTERS + " c."])
    assert sum(text.count("b") for text in texts(speaker).values()) == 2 * MAX_CHARACTERS


def test_a_pronunciation_needs_whole_sentences(server: RunningServer):
    speaker = spoken_whole(server, ["Say SQL. ", "Now."], pronunciations={"SQL": "sequel"})
    assert "live" not in speaker.events[0]
    assert speaker.audio[: -len(said(server, "Now."))] == said(server, "Say sequel.")


def test_nothing_to_speak_is_left_out(server: RunningServer):
    speaker = spoken_whole(server, ["... ", "\u2014 "])
    assert speaker.audio == b""
    assert speaker.events[-1]["segments"] == 0


def test_one_that_does_not_go_on_in_time_ends_and_frees_its_slot(start_server: StartServer):
    server = start_server(engine=TALK, server=ServerConfig(port=0, text_timeout=0.2))
    with session(server) as speaker:
        speaker.send("text", text="Words come ")
        speaker.until("audio")
        server.wait_idle()
        assert server.client.stats.running == 0
        speaker.send("text", text="again. ")
        speaker.send("end")
        assert speaker.close() == (1000, "done")
    assert texts(speaker) == {0: "Words come", 1: "again."}
    expected = said(server, "Words come", normalize="off") + said(server, "again.")
    assert speaker.audio == expected  # a full stop is added only at the end of a sentence


def test_cancelling_one_that_waits_frees_its_slot(server: RunningServer):
    with session(server) as speaker:
        speaker.send("text", text="Words come ")
        speaker.until("audio")
        speaker.send("cancel")
        assert speaker.until("cancelled")["segment"] == 0
        server.wait_idle()
        heard = len(speaker.audio)
        speaker.send("text", text="Others come. ")
        speaker.send("end")
        assert speaker.close() == (1000, "done")
    assert speaker.audio[heard:] == said(server, "Others come.")


def test_a_client_that_leaves_one_that_waits_frees_its_slot(server: RunningServer):
    with session(server) as speaker:
        speaker.send("text", text="Words come ")
        speaker.until("audio")
    until(lambda: is_idle(server))


def test_others_speak_while_one_waits(server: RunningServer):
    with session(server) as speaker:
        speaker.send("text", text="Words come ")
        speaker.until("audio")
        assert said(server, TEXT) == spoken_whole(server, list(TEXT)).audio
        speaker.send("text", text="late.")
        speaker.send("end")
        speaker.close()
    assert speaker.audio == said(server, "Words come late.")


def test_a_bug_while_the_text_grows_ends_only_its_segment(server: RunningServer):
    with session(server) as speaker:
        speaker.send("text", text="Words come ")
        speaker.until("audio")
        speaker.send("text", text="broken now. ")
        error = speaker.until("error")
        assert (error["fatal"], error["error"]["code"]) == (False, "generation_failed")
        assert error["text"].startswith("Words come")
        speaker.send("flush")
        speaker.until("flushed")
        heard = len(speaker.audio)
        speaker.send("text", text="Good.")
        speaker.send("end")
        assert speaker.close() == (1000, "done")
    assert speaker.audio[heard:] == said(server, "Good.")


def test_a_worker_that_dies_while_one_waits_ends_the_session(start_server: StartServer):
    server = start_server(
        engine=TALK, server=ServerConfig(port=0, on_worker_death="restart", text_timeout=5.0)
    )
    with session(server) as speaker:
        speaker.send("text", text="Words come ")
        speaker.until("audio")
        server.client.replicas[0].worker._link.kill()
        check_fatal(speaker, 1013, "unavailable")
    until(lambda: server.client.accepts, 10)
    assert spoken_whole(server, list(TEXT)).audio == said(server, TEXT)


def test_text_that_comes_while_all_replicas_are_busy_is_not_lost(start_server: StartServer):
    engine = attrs.evolve(TALK, replicas=2, max_batch_size=1)
    server = start_server(engine=engine)
    with session(server) as first, session(server) as second, session(server) as third:
        for speaker in (first, second):
            speaker.send("text", text="Words come ")
            speaker.until("audio")
        for bit in TEXT:
            third.send("text", text=bit)
        third.send("end")
        time.sleep(0.05)
        assert third.audio == b""
        first.send("end")
        assert third.close() == (1000, "done")
    assert third.audio == said(server, TEXT)
