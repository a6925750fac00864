"""The engine with a model that hums: joining, leaving, caps, failures, isolation."""

import pickle

import attrs
import numpy as np
import pytest
import torch

from tests.conftest import TONE, Spoken, collect, run_engine, speak
from tests.tone import ToneCodec, ToneModel
from vox_serve.config import EngineConfig
from vox_serve.engine.engine import Engine
from vox_serve.engine.prompts import runaway_seconds
from vox_serve.errors import InvalidRequest, NotFound, PromptTooLong, UnspeakableText
from vox_serve.messages import Failed, Finished, FinishReason, SpeechRequest, Started
from vox_serve.model import CheckpointSpec, Prompt
from vox_serve.testing import watch_frames
from vox_serve.text import likely_seconds
from vox_serve.voice import Segment, Voice

FRAME = 2 * 640  # bytes


def fresh_engine(**settings) -> Engine:
    return Engine(ToneModel(), EngineConfig(model="tone", **{"max_batch_size": 4, **settings}))


def alone(text: str, **fields) -> Spoken:
    return speak(fresh_engine(), text, **fields)[0]


@pytest.mark.parametrize("frames", [1, 2, 9, 10, 11, 20, 41])
def test_every_frame_has_sound_and_the_end_has_none(frames):
    spoken = alone(f"{frames} hums")
    assert len(spoken.pcm) == frames * FRAME
    assert isinstance(spoken.end, Finished)
    assert (spoken.end.reason, spoken.end.frames) == (FinishReason.STOP, frames)


def test_an_end_at_frame_0_is_an_empty_answer():
    spoken = alone("0 hums")
    assert spoken.pcm == b""
    assert isinstance(spoken.end, Finished)
    assert (spoken.end.reason, spoken.end.frames) == (FinishReason.STOP, 0)


def test_each_row_of_a_batch_sounds_as_it_does_alone():
    texts = ["3 a", "11 bbbb", "7 cc", "20 d", "1 eeeee", "13 f"]  # more texts than slots
    together = speak(fresh_engine(), *texts)
    assert [s.pcm for s in together] == [alone(text).pcm for text in texts]


def test_requests_join_and_leave_between_frames():
    engine = fresh_engine(max_batch_size=2)
    texts = {"a": "12 a", "b": "3 bb", "c": "9 ccc", "d": "5 dddd"}
    spoken: dict[str, Spoken] = {}
    for name, text in texts.items():
        engine.add(SpeechRequest(name, text))
        for _ in range(2):
            collect(engine.step(), spoken)
    for name, rest in run_engine(engine).items():
        spoken.setdefault(name, Spoken()).pcm += rest.pcm
    assert {name: s.pcm for name, s in spoken.items()} == {
        name: alone(text).pcm for name, text in texts.items()
    }


def test_sampling_is_the_same_alone_and_in_a_batch():
    fields = {"sampling": {"temperature": 1.0, "seed": 7}}
    engine = fresh_engine()
    engine.add(SpeechRequest("mine", "9 tones", **fields))
    for number in range(3):
        engine.add(
            SpeechRequest(str(number), f"{number + 5} others", sampling={"temperature": 2.0})
        )
    assert run_engine(engine)["mine"].pcm == alone("9 tones", **fields).pcm
    other_seed = {"sampling": {"temperature": 1.0, "seed": 8}}
    assert alone("9 tones", **fields).pcm != alone("9 tones", **other_seed).pcm


def test_a_seed_is_drawn_and_reported_if_none_is_given():
    first, second = (alone("9 tones", sampling={"temperature": 1.0}) for _ in range(2))
    assert isinstance(first.end, Finished)
    assert first.pcm != second.pcm
    again = alone("9 tones", sampling={"temperature": 1.0, "seed": first.end.seed})
    assert again.pcm == first.pcm


def test_request_overrides_flags_override_model():
    engine = fresh_engine(temperature=0.5, top_k=3)
    assert (engine.prompts.defaults.temperature, engine.prompts.defaults.top_k) == (0.5, 3)
    engine.add(SpeechRequest("a", "5", sampling={"top_k": 9, "seed": 1}))
    sequence = engine.scheduler.find("a")
    assert sequence is not None
    assert (sequence.sampling.temperature, sequence.sampling.top_k) == (0.5, 9)


def test_the_frame_cap_of_max_seconds_ends_with_length():
    spoken = alone("100 hums", max_seconds=0.8)
    assert len(spoken.pcm) == 10 * FRAME
    assert isinstance(spoken.end, Finished)
    assert spoken.end.reason is FinishReason.LENGTH


@pytest.mark.parametrize("frames", [1, 7, 14, 28, 55, 109])
def test_whole_frames_of_max_seconds_are_counted_exactly(frames):
    """In floating point, 0.56 x 12.5 is more than 7."""
    spoken = alone("150 hums", max_seconds=frames * 0.08)
    assert len(spoken.pcm) == frames * FRAME


def test_a_cap_between_frames_is_rounded_down_to_one_frame_or_more():
    assert len(alone("150 hums", max_seconds=0.81).pcm) == 10 * FRAME
    assert len(alone("150 hums", max_seconds=0.01).pcm) == FRAME


def test_a_runaway_is_capped_by_the_length_of_its_text():
    spoken = alone("190 x")
    assert isinstance(spoken.end, Finished)
    assert spoken.end.reason is FinishReason.LENGTH
    assert spoken.end.frames == int(np.ceil(runaway_seconds("190 x") * 12.5)) < 190
    # and max_seconds replaces that cap
    assert len(alone("150 x", max_seconds=15.0).pcm) == 150 * FRAME


def test_the_cap_grows_with_text_digits_and_script():
    assert likely_seconds("a" * 100) == pytest.approx(8.5)
    assert likely_seconds("1" * 4) > likely_seconds("a" * 4) + 1
    assert likely_seconds("你好" * 10) > 2 * likely_seconds("ab" * 10)


def test_the_frame_cap_never_passes_the_context():
    config = {"max_seconds": 90.0}
    with pytest.raises(
        PromptTooLong, match=r"max_seconds asks for about 250 frames.* 200 has room for 1"
    ):
        alone("5 hums", max_seconds=20.0)
    with pytest.raises(InvalidRequest, match="at most 90"):
        speak(fresh_engine(**config), "5 hums", max_seconds=91.0)
    with pytest.raises(InvalidRequest, match="more than 0"):
        speak(fresh_engine(**config), "5 hums", max_seconds=float("nan"))
    with pytest.raises(PromptTooLong, match="text asks for"):
        speak(fresh_engine(), "5 " + "m" * 250)


def test_a_prompt_that_leaves_no_room_for_a_frame_is_refused(monkeypatch):
    """The core refuses it, so models need not, and names the field that is too long."""

    def prompt(self, text, voice, *, context, parameters):
        before = 150 * len([*voice.segments, *context])
        return Prompt({"row": torch.zeros(before + len(text), 4)}, shared=before)

    monkeypatch.setattr(ToneModel, "prompt", prompt)
    prompts, segment = fresh_engine().prompts, Segment(0, "said")
    plain, cloned = Voice("plain", 0), Voice("cloned", 0, (segment,))
    assert len(prompts.build("m" * 199, plain, ())) == 199
    for length, voice, context, field in [
        (200, plain, (), "text"),
        (200, cloned, (), "text"),
        (50, plain, (segment,), "context"),
        (50, cloned, (), "voice"),
    ]:
        with pytest.raises(PromptTooLong, match=f"^{field} is too long.* of the 200") as caught:
            prompts.build("m" * length, voice, context)
        assert caught.value.param == field


@pytest.mark.parametrize(
    ("request_fields", "error", "message"),
    [
        ({"text": "   "}, InvalidRequest, "text is empty"),
        ({"text": "5", "speaker": 2}, NotFound, "unknown speaker 2; this model has 0, 1"),
        ({"text": "5", "voice": "x"}, NotFound, "unknown voice 'x'; this model has hum_a, hum_b"),
        ({"text": "unspeakable"}, UnspeakableText, "no tone can say"),
        ({"text": "5", "sampling": {"top_p": 2.0}}, InvalidRequest, "top_p must be from 0.01 to 1"),
    ],
)
def test_a_request_that_cannot_be_spoken_names_its_field(
    tone_engine, request_fields, error, message
):
    with pytest.raises(error, match=message):
        tone_engine.add(SpeechRequest("x", **request_fields))
    assert not tone_engine.has_work


def test_a_checkpoint_may_limit_characters_and_words():
    checkpoint = CheckpointSpec("t", ".", "", max_characters=10, max_words=3)
    engine = Engine(ToneModel(), TONE, checkpoint)
    with pytest.raises(UnspeakableText, match="11 characters; this voice speaks at most 10"):
        engine.add(SpeechRequest("x", "5 aaaaaaaaa"))
    with pytest.raises(UnspeakableText, match="4 words; this voice speaks at most 3"):
        engine.add(SpeechRequest("x", "5 a b c"))
    engine.add(SpeechRequest("x", "5 a bbbbbb"))


def test_a_voice_may_be_chosen_by_name_or_by_speaker():
    by_name, by_speaker = alone("5 x", voice="hum_b"), alone("5 x", speaker=1)
    assert by_name.pcm == by_speaker.pcm != alone("5 x", speaker=0).pcm


def test_context_is_part_of_the_prompt(tone_engine):
    audio = np.zeros(1280, dtype=np.float32)
    tone_engine.add(SpeechRequest("x", "5 x", context=(Segment(0, "a", audio),)))
    sequence = tone_engine.scheduler.find("x")
    assert sequence is not None
    assert len(sequence.prompt) == 2 + 2 + 1 + 2


def test_abort_frees_the_slot_at_once():
    engine = fresh_engine(max_batch_size=1)
    for name in ("running", "next", "waiting"):
        engine.add(SpeechRequest(name, "50 hums"))
    engine.step()
    engine.abort("running")
    engine.abort("waiting")
    engine.abort("nobody")
    assert engine.stats.running == 0
    spoken: dict[str, Spoken] = {}
    collect(engine.step(), spoken)
    assert engine.stats.running == 1
    for name in ("running", "waiting"):
        end = spoken[name].end
        assert isinstance(end, Finished)
        assert end.reason is FinishReason.CANCELLED
    assert run_engine(engine)["next"].end is not None
    assert not engine.has_work


@pytest.mark.parametrize(
    ("fault", "kind"),
    [("nan", "non_finite"), ("boom", "exception"), ("unprefillable", "exception")],
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_bad_row_fails_alone_and_its_slot_is_clean(fault, kind, temperature):
    def company(second: str) -> tuple[list[Spoken], Engine, list[str]]:
        engine = fresh_engine(max_batch_size=3, temperature=temperature, seed=3)
        for name, text in (("a", "9 a"), ("b", second), ("c", "14 ccc"), ("d", "8 after")):
            engine.add(SpeechRequest(name, text))
        spoken: dict[str, Spoken] = {}
        kinds: list[str] = []
        while engine.has_work:
            output = engine.step()
            kinds += output.stats.errors
            collect(output, spoken)
        return [spoken[name] for name in "abcd"], engine, kinds

    healthy, _, none = company("4 bb")
    poisoned, engine, kinds = company(f"{fault} 12")
    assert none == []
    assert kinds == [kind]
    failure = poisoned[1].end
    assert isinstance(failure, Failed)
    assert failure.error.code == "generation_failed"
    for good, beside in zip(healthy, poisoned, strict=True):
        if beside is not poisoned[1]:
            assert beside.pcm == good.pcm
    for held in (engine.runner.kv.keys, engine.runner.kv.values, engine.runner.hidden):
        assert held.isfinite().all()


def test_a_codec_that_raises_fails_the_rows_of_its_step(tone_engine, monkeypatch):
    def broken(*_):
        raise RuntimeError("codec")

    with monkeypatch.context() as patch:
        patch.setattr(tone_engine.model.codec, "step", broken)
        spoken = speak(tone_engine, "5 a", "6 b")
    assert all(isinstance(s.end, Failed) for s in spoken)
    assert speak(tone_engine, "5 a")[0].pcm == alone("5 a").pcm


def test_reserved_codes_are_counted_and_do_not_reach_the_codec(tone_engine):
    tone_engine.add(SpeechRequest("x", "reserved 6"))
    outputs = [tone_engine.step() for _ in range(7)]
    assert sum(output.stats.reserved_codes for output in outputs) == 4
    assert sum(output.stats.frames for output in outputs) == 6


@pytest.mark.parametrize("frames", [0, 1, 2, 3, 7, 9])
def test_a_codec_may_need_several_frames_per_step(frames, monkeypatch):
    """Rows are out of step: the codec runs a row when that row has enough frames."""
    monkeypatch.setattr(ToneCodec, "frames_per_step", 3)
    heard: list[tuple[int, ...]] = []
    step = ToneCodec.step

    def spy(self, codes, slots, reset):
        heard.extend(zip(slots.tolist(), *codes[:, 0].T.tolist(), strict=True))
        return step(self, codes, slots, reset)

    monkeypatch.setattr(ToneCodec, "step", spy)
    engine = fresh_engine()
    engine.add(SpeechRequest("other", "11 others"))
    engine.step()
    engine.add(SpeechRequest("mine", f"{frames} tones"))
    emitted: list[int] = []

    def record(sequence, frame):
        if sequence.id == "mine" and not frame.end:
            emitted.append(frame.codes[0])

    watch_frames(engine, record)
    spoken = run_engine(engine)
    assert len(emitted) == frames
    assert len(spoken["mine"].pcm) == frames // 3 * FRAME
    whole = [tuple(emitted[i : i + 3]) for i in range(0, frames // 3 * 3, 3)]
    mine = [tuple(codes) for slot, *codes in heard if slot == 1]
    assert mine[: len(whole)] == whole  # the step that the end frame completes is discarded
    assert len(spoken["other"].pcm) == 3 * FRAME


def test_a_step_reports_what_it_did(tone_engine):
    tone_engine.add(SpeechRequest("x", "3 a"))
    tone_engine.add(SpeechRequest("y", "3 b"))
    first, second = tone_engine.step(), tone_engine.step()
    assert [type(e) for e in first.events[:2]] == [Started, Started]
    assert {name for name, _ in first.stats.phase_seconds} == {"prefill", "emit", "codec"}
    assert {name for name, _ in second.stats.phase_seconds} == {"advance", "emit", "codec"}
    assert (first.stats.running, first.stats.batch_size, first.stats.frames) == (2, 2, 2)
    assert tone_engine.step().stats.errors == ()


def test_the_same_id_twice_is_refused(tone_engine):
    tone_engine.add(SpeechRequest("x", "3 a"))
    with pytest.raises(InvalidRequest, match="already open"):
        tone_engine.add(SpeechRequest("x", "3 a"))


def test_the_warm_up_leaves_nothing_behind(tone_engine):
    tone_engine.warm_up()
    assert not tone_engine.has_work
    assert speak(tone_engine, "5 a")[0].pcm == alone("5 a").pcm


def test_attention_reads_no_more_positions_than_needed(tone_engine):
    extents = []
    advance = tone_engine.model.advance

    def spy(codes, slots, kv):
        extents.append(kv.extent)
        return advance(codes, slots, kv)

    tone_engine.model.advance = spy
    speak(tone_engine, "100 hums and some more words to make room", max_seconds=8.0)
    assert set(extents) == {64, 128}
    assert torch.equal(tone_engine.runner.kv.lengths, torch.tensor([11 + 99, 0, 0, 0, 0]))


_STEP = ToneCodec.step


def test_a_row_on_which_the_codec_raises_fails_alone(monkeypatch):
    """The other rows are retried one by one, because the step that raised changed nothing."""

    def fragile(self, codes, slots, reset):
        if bool(((slots == 1) & ~reset).any()):
            raise RuntimeError("the codec cannot go on in slot 1")
        return _STEP(self, codes, slots, reset)

    texts = ["9 a", "6 bb", "12 c"]
    fields = {"sampling": {"temperature": 1.0, "seed": 5}}
    healthy = speak(fresh_engine(), *texts, **fields)
    monkeypatch.setattr(ToneCodec, "step", fragile)
    beside = speak(fresh_engine(), *texts, **fields)
    assert isinstance(beside[1].end, Failed)
    assert beside[1].pcm == healthy[1].pcm[:FRAME]
    assert [beside[i].pcm for i in (0, 2)] == [healthy[i].pcm for i in (0, 2)]


def test_sound_that_is_not_finite_fails_its_row(monkeypatch):
    def spoilt(self, codes, slots, reset):
        pcm, valid = _STEP(self, codes, slots, reset)
        pcm[slots == 1, 5] = torch.nan
        return pcm, valid

    healthy = speak(fresh_engine(), "5 a", "6 b")
    monkeypatch.setattr(ToneCodec, "step", spoilt)
    first, second = speak(fresh_engine(), "5 a", "6 b")
    assert first.pcm == healthy[0].pcm
    assert isinstance(second.end, Failed)
    assert second.pcm == b""


def test_samples_of_the_end_frame_need_not_be_finite(monkeypatch):
    def spoilt(self, codes, slots, reset):
        pcm, valid = _STEP(self, codes, slots, reset)
        return torch.where(reset[:, None], pcm, torch.nan), valid

    monkeypatch.setattr(ToneCodec, "step", spoilt)
    (spoken,) = speak(fresh_engine(), "1 a")
    assert isinstance(spoken.end, Finished)
    assert len(spoken.pcm) == FRAME


def test_context_is_refused_if_the_checkpoint_does_not_take_it():
    engine = Engine(ToneModel(), TONE, CheckpointSpec("t", ".", "", takes_context=False))
    turn = Segment(0, "a", np.zeros(640, dtype=np.float32))
    with pytest.raises(UnspeakableText, match="not trained to follow earlier turns") as caught:
        engine.add(SpeechRequest("x", "5 x", context=(turn,)))
    assert caught.value.param == "context"


def test_messages_to_the_server_do_not_import_torch(tone_engine):
    assert b"torch." not in pickle.dumps(tone_engine.info("tone", "tone", 1.0)).replace(
        b"torch_version", b""
    )


def test_a_failed_row_is_also_cleared_in_the_codec(monkeypatch):
    cleared: list[int] = []
    monkeypatch.setattr(ToneCodec, "clear", lambda self, slot: cleared.append(slot))
    _, broken = speak(fresh_engine(), "2 hums", "5 nan")
    assert isinstance(broken.end, Failed)
    assert cleared == [1]


class SharingTone(ToneModel):
    """Lets the cache keep all positions of its prompts but the last."""

    def prompt(self, text, voice, *, context, parameters):
        made = super().prompt(text, voice, context=context, parameters=parameters)
        return attrs.evolve(made, shared=len(made) - 1)


def test_the_stats_count_cached_prefixes_and_their_hits():
    engine = Engine(SharingTone(), EngineConfig(model="tone", max_batch_size=1))
    found = []
    for number, text in enumerate(("5 frames", "5 frames", "7 other frames")):
        engine.add(SpeechRequest(str(number), text))
        while engine.has_work:
            found.append(engine.step().stats)
    assert (sum(s.hits for s in found), sum(s.misses for s in found)) == (1, 2)
    assert found[-1].prefixes == 2
    positions = 3 + 4  # both prompts, each without its last; keys and values of 4 floats
    assert found[-1].prefix_bytes == positions * 2 * 4 * 4


def test_the_stats_count_conversations():
    engine = fresh_engine()
    assert engine.step().stats.conversations == 0
    speak(engine, "5 frames", conversation="one")
    assert engine.step().stats.conversations == 1


def test_a_cpu_reports_no_device_memory():
    assert fresh_engine().step().stats.device_memory is None


def test_the_next_frame_may_be_generated_before_the_codec_runs():
    """On a GPU both run at once, so the codec must not read what the next frame overwrites."""

    def second_frame(ahead: bool):
        engine = fresh_engine()
        engine.add(SpeechRequest("a", "9 hums", sampling={"repetition_penalty": 1.5}))
        engine.add(SpeechRequest("b", "7 hums and more"))
        engine.step()
        rows, runner = engine.scheduler.speaking(), engine.runner
        runner.advance(rows)
        runner.emit(rows)
        if ahead:
            slots = [row.slot for row in rows]
            with torch.inference_mode():
                runner._advance_step(slots)
                runner._emit_step(slots)
        runner.decode(rows)
        return runner.collect(rows).frames()

    assert second_frame(ahead=True) == second_frame(ahead=False)
