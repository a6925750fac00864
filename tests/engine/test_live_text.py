"""Text that arrives while it is spoken: waiting, limits, and how a request ends."""

from __future__ import annotations

import pytest

from tests.conftest import Spoken, collect, run_engine
from tests.talk import TalkModel
from tests.tone import ToneModel
from vox_serve.config import EngineConfig
from vox_serve.engine.engine import Engine
from vox_serve.errors import InvalidRequest, UnspeakableText
from vox_serve.messages import Failed, Finished, FinishReason, SpeechRequest
from vox_serve.model import CheckpointSpec
from vox_serve.voice import Segment

TEXT = "words that come one by one, as they are written"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def talker(slots: int = 4, deterministic: bool = False, **fields) -> Engine:
    config = EngineConfig(model="talk", max_batch_size=slots, deterministic=deterministic)
    return Engine(TalkModel(), config, **fields)


def live(name: str, text: str, **fields) -> SpeechRequest:
    return SpeechRequest(name, text, **{"waits": 5.0, **fields})


def whole(text: str, **fields) -> Spoken:
    engine = talker()
    engine.add(live("whole", text, **fields))
    engine.more_text("whole", "", end=True)
    return run_engine(engine)["whole"]


def drain(engine: Engine, spoken: dict[str, Spoken]) -> None:
    while engine.has_work:
        collect(engine.step(), spoken)


def error_of(spoken: Spoken) -> Failed:
    assert isinstance(spoken.end, Failed)
    return spoken.end


def test_a_whole_text_is_the_same_whether_or_not_it_could_have_grown():
    engine = talker()
    engine.add(SpeechRequest("plain", TEXT))
    assert run_engine(engine)["plain"].pcm == whole(TEXT).pcm


def test_a_sequence_without_text_pauses_and_its_sound_is_sent():
    engine, spoken = talker(), {}
    engine.add(live("a", "one two"))
    drain(engine, spoken)
    heard = len(spoken["a"].pcm)
    assert heard == 2 * 640 * len("one_")  # one frame is due before any text
    assert spoken["a"].end is None
    assert engine.stats.running == 1
    for _ in range(3):
        output = engine.step()
        assert (output.events, output.stats.batch_size) == ((), 0)
    engine.more_text("a", " three", end=True)
    drain(engine, spoken)
    assert spoken["a"].pcm == whole("one two three").pcm
    assert engine.stats.running == 0


@pytest.mark.parametrize("deterministic", [False, True])
def test_the_batch_goes_on_while_one_waits(deterministic):
    engine, spoken = talker(deterministic=deterministic), {}  # True: all batches have one size
    engine.add(live("a", "one two"))
    engine.add(SpeechRequest("b", TEXT))
    drain(engine, spoken)
    assert isinstance(spoken["b"].end, Finished)
    assert spoken["b"].pcm == whole(TEXT).pcm
    engine.more_text("a", " three", end=True)
    drain(engine, spoken)
    assert spoken["a"].pcm == whole("one two three").pcm


def test_text_that_comes_before_there_is_a_slot_counts():
    engine, spoken = talker(slots=1), {}
    engine.add(live("first", "some text"))
    engine.add(live("second", "one two"))
    drain(engine, spoken)
    engine.more_text("second", " three", end=True)
    engine.more_text("first", "", end=True)
    drain(engine, spoken)
    assert spoken["second"].pcm == whole("one two three").pcm


def test_a_prompt_that_needs_more_text_takes_no_slot_until_it_has_it():
    engine, spoken = talker(slots=1), {}
    engine.add(live("slow", "one", voice="slow"))
    engine.add(SpeechRequest("other", TEXT))
    drain(engine, spoken)
    assert isinstance(spoken["other"].end, Finished)
    assert "slow" not in spoken
    engine.more_text("slow", " two three four", end=False)
    engine.more_text("slow", " five", end=True)
    drain(engine, spoken)
    assert spoken["slow"].pcm == whole("one two three four five").pcm


def test_a_short_text_ends_a_prompt_that_needed_more():
    engine = talker()
    engine.add(live("slow", "one", voice="slow"))
    engine.more_text("slow", "", end=True)
    assert run_engine(engine)["slow"].pcm == whole("one").pcm


def test_the_cap_is_that_of_the_whole_text():
    cap = {"max_seconds": 0.8}
    engine, spoken = talker(), {}
    engine.add(live("a", "one ", **cap))
    for bit in TEXT.split(" "):
        engine.more_text("a", f" {bit}", end=False)
        drain(engine, spoken)
    assert spoken["a"].end is None
    engine.more_text("a", "", end=True)
    collect(engine.step(), spoken)
    assert isinstance(spoken["a"].end, Finished)
    assert spoken["a"].end.reason is FinishReason.LENGTH
    assert spoken["a"].end.frames == 10
    assert spoken["a"].pcm == whole(f"one  {TEXT}", **cap).pcm


def test_one_that_waits_too_long_ends_and_frees_its_slot():
    clock = Clock()
    engine, spoken = talker(slots=1, clock=clock), {}
    engine.add(live("a", "one two"))
    engine.add(live("never begins", "x"))
    drain(engine, spoken)
    clock.now = 4.0
    engine.more_text("a", " t", end=False)
    drain(engine, spoken)
    clock.now = 6.0
    collect(engine.step(), spoken)
    assert error_of(spoken["never begins"]).error.message == "no text came for 5 seconds"
    assert spoken["a"].end is None
    clock.now = 9.5
    collect(engine.step(), spoken)
    assert error_of(spoken["a"]).error.code == "timeout"
    assert (engine.stats.running, engine.stats.waiting) == (0, 0)
    engine.add(SpeechRequest("next", TEXT))
    assert run_engine(engine)["next"].pcm == whole(TEXT).pcm


def test_one_that_waits_can_be_cancelled():
    engine, spoken = talker(slots=1), {}
    engine.add(live("a", "one two"))
    drain(engine, spoken)
    engine.abort("a")
    engine.more_text("a", "never heard of", end=True)
    drain(engine, spoken)
    assert engine.stats.running == 0
    engine.add(SpeechRequest("next", TEXT))
    assert run_engine(engine)["next"].pcm == whole(TEXT).pcm


def test_a_text_that_grows_too_long_ends_with_an_error_that_names_the_limit():
    checkpoint = CheckpointSpec("t", ".", "", max_characters=20)
    engine, spoken = talker(checkpoint=checkpoint), {}
    engine.add(live("a", "one two"))
    engine.more_text("a", " three four five", end=False)
    drain(engine, spoken)
    error = error_of(spoken["a"]).error
    assert isinstance(error, UnspeakableText)
    assert "23 characters" in error.message
    assert engine.stats.running == 0


def test_a_text_that_outgrows_the_context_ends_with_an_error():
    engine, spoken = talker(), {}
    engine.add(live("a", "one two", max_seconds=1.0))
    engine.more_text("a", " word" * 100, end=False)
    drain(engine, spoken)
    assert error_of(spoken["a"]).error.code == "prompt_too_long"


def test_a_bug_in_tokens_ends_only_its_own_request():
    engine, spoken = talker(), {}
    engine.add(live("a", "one two"))
    engine.add(live("b", "one two"))
    engine.more_text("a", " broken", end=False)
    engine.more_text("b", " three", end=True)
    drain(engine, spoken)
    assert error_of(spoken["a"]).error.code == "generation_failed"
    assert spoken["b"].pcm == whole("one two three").pcm


def test_a_text_of_one_letter_is_spoken():
    engine = talker()
    engine.add(live("a", "x"))
    engine.more_text("a", "", end=True)
    assert run_engine(engine)["a"].pcm


def test_a_model_that_needs_whole_texts_refuses_one_that_grows():
    engine = Engine(ToneModel(), EngineConfig(model="tone"))
    with pytest.raises(UnspeakableText, match="complete"):
        engine.add(live("a", "5 hums"))


def test_a_text_that_grows_has_no_context():
    engine = talker()
    with pytest.raises(InvalidRequest, match="context"):
        engine.add(live("a", "one two", context=(Segment(0, "hm", None),)))
