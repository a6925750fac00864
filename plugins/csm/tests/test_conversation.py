"""Conversations and cached prefixes change only the time that a turn takes."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import torch

from plugins.csm.tests.checkpoints import CODEBOOKS, Frames, clip
from plugins.csm.tests.conftest import MakeEngine, record, request
from tests.conftest import run_engine
from vox_serve.engine.engine import Engine
from vox_serve.errors import Conflict, NotFound, PromptTooLong, RequestError
from vox_serve.messages import Finished, SpeechRequest
from vox_serve.parts import Parts
from vox_serve.voice import Segment

TURNS = [
    "hello there", "hi", "how are you", "not bad", "a fine day", "it is", "so long",
    "wait", "what is it", "nothing",
]  # fmt: skip
FRAMES = 6


def say(engine: Engine, text: str, **fields: Any) -> tuple[Frames, dict[str, int]]:
    """One request's frames, including the end frame, and the sources of its prompt positions."""
    frames = record(engine)
    engine.add(request("x", text, fields.pop("frames", FRAMES), **fields))
    positions = {"prefilled": 0, "restored": 0}
    while engine.has_work:
        stats = engine.step().stats
        positions["prefilled"] += stats.prefilled
        positions["restored"] += stats.restored
    return list(frames["x"]), positions


def end_after(engine: Engine, frames: int) -> None:
    """Make the model end each utterance after this many frames."""
    emit, fed = engine.model.emit, {"count": 0}

    def ending(hidden: torch.Tensor, sampler: Any) -> Any:
        codes, _ = emit(hidden, sampler)
        fed["count"] += 1
        end = fed["count"] > frames
        if end:
            fed["count"] = 0
        return codes, torch.full((len(codes),), end)

    engine.model.emit = ending  # type: ignore[method-assign]


@pytest.mark.parametrize("ends_by_itself", [False, True], ids=["cut at the cap", "ended"])
def test_ten_turns_equal_one_request_with_all_of_them(
    make_engine: MakeEngine, ends_by_itself: bool
) -> None:
    """Token for token; and a turn computes only the positions of its own text."""
    engine = make_engine(max_batch_size=2)
    scratch = make_engine(prefix_cache_mib=0)
    cap = FRAMES
    if ends_by_itself:
        cap = 2 * FRAMES
        end_after(engine, FRAMES)
        end_after(scratch, FRAMES)
    turns: list[Segment] = []
    for number, text in enumerate(TURNS):
        speaker = number % 2
        frames, cost = say(engine, text, frames=cap, speaker=speaker, conversation="c")
        expected, whole = say(scratch, text, frames=cap, speaker=speaker, context=tuple(turns))
        assert frames == expected
        own = len(engine.model.prompt(text, engine.model.voices[speaker], context=()))
        # Of the earlier turns, only the end of the last one has not been computed: the frame
        # of end codes, and the last frame where the cap came before it was fed back.
        behind = 0 if number == 0 else 1 if ends_by_itself else 2
        assert cost["prefilled"] == own + behind
        assert cost["prefilled"] + cost["restored"] == whole["prefilled"]
        assert whole["restored"] == 0
        turns.append(Segment(speaker, text, codes=torch.tensor(frames[:FRAMES]).T))
    assert len({tuple(f) for t in turns for f in t.codes.T.tolist()}) > 10  # type: ignore[union-attr]


def test_context_of_a_request_is_remembered(make_engine: MakeEngine) -> None:
    engine, scratch = make_engine(), make_engine(prefix_cache_mib=0)
    heard = Segment(1, "hi", audio=clip(5).numpy())
    first, _ = say(engine, "hello there", conversation="c", context=(heard,))
    second, cost = say(engine, "so long", conversation="c")
    said = Segment(0, "hello there", codes=torch.tensor(first).T)
    expected, _ = say(scratch, "so long", context=(heard, said))
    assert second == expected
    assert cost["restored"] > 5


def test_conversations_are_independent(make_engine: MakeEngine) -> None:
    engine = make_engine()
    alone, _ = say(make_engine(), "hello there")
    assert say(engine, "hello there", conversation="a")[0] == alone
    assert say(engine, "hello there", conversation="b")[0] == alone
    assert say(engine, "hello there", conversation="a")[0] != alone
    assert engine.prompts.conversations.forget("a")
    assert say(engine, "hello there", conversation="a")[0] == alone


def test_an_aborted_turn_is_not_remembered(make_engine: MakeEngine) -> None:
    engine = make_engine()
    alone, _ = say(make_engine(), "hello there")
    engine.add(request("gone", "never mind", conversation="c"))
    engine.step()
    with pytest.raises(Conflict, match="still being spoken"):
        engine.add(request("early", "hello there", conversation="c"))
    engine.abort("gone")
    assert say(engine, "hello there", conversation="c")[0] == alone


def test_a_turn_that_cannot_be_prepared_leaves_the_conversation_free(
    make_engine: MakeEngine,
) -> None:
    engine = make_engine()
    for fields in ({"text": "hi é"}, {"text": "hi", "voice": "nobody"}):
        with pytest.raises(RequestError):
            engine.add(request("bad", conversation="c", **fields))
    assert len(say(engine, "hello there", conversation="c")[0]) == FRAMES


def test_a_full_context_drops_the_oldest_turns(make_engine: MakeEngine) -> None:
    engine = make_engine()  # 256 positions
    scratch = make_engine(prefix_cache_mib=0)
    turns: list[Segment] = []
    lost = 0
    for number in range(25):
        frames, _ = say(engine, "how are you", conversation="c", frames=10)
        while True:
            try:
                expected, _ = say(scratch, "how are you", context=tuple(turns), frames=10)
                break
            except PromptTooLong:
                turns = turns[(len(turns) + 1) // 2 :]
                lost += 1
        assert frames == expected, number
        turns.append(Segment(0, "how are you", codes=torch.tensor(frames).T))
    assert lost > 2


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "not kept"])
def test_the_positions_of_a_voice_are_computed_once(make_engine: MakeEngine, kept: bool) -> None:
    engine = make_engine(prefix_cache_mib=8 if kept else 0)
    audio = clip(6).numpy()
    segment = Segment(0, "hello there", audio=audio)
    engine.prompts.voices.add("ann", 0, (segment,))
    for number, text in enumerate(("how are you", "not bad")):
        frames, cost = say(engine, text, voice="ann")
        assert frames == say(make_engine(), text, context=(segment,))[0]
        context = len(
            engine.model.prompt(text, engine.prompts.voices.choose("ann", 0), context=())
        ) - len(engine.model.prompt(text, engine.model.voices[0], context=()))
        # Both texts start with the same tokens: begin of text and [0].
        assert (cost["restored"] >= context) == (kept and number == 1)
    assert engine.prompts.voices.remove("ann")
    assert not engine.prompts.voices.remove("ann")
    with pytest.raises(NotFound, match="ann"):
        say(engine, "hi", voice="ann")


def test_cached_prefixes_change_nothing_in_a_batch(make_engine: MakeEngine) -> None:
    """Rows with restored prefixes of different lengths are prefilled together with others."""
    engine = make_engine()
    segments = {
        name: Segment(0, "hello there", audio=clip(length, seed=length).numpy())
        for name, length in (("ann", 3), ("bob", 9))
    }
    for name, segment in segments.items():
        engine.prompts.voices.add(name, 0, (segment,))
        say(engine, "hi", voice=name)
    frames = record(engine)
    for name in (*segments, "conversational_a"):
        engine.add(request(name, "what is it", FRAMES, voice=name))
    run_engine(engine)
    for name in (*segments, "conversational_a"):
        context = (segments[name],) if name in segments else ()
        assert frames[name] == say(make_engine(), "what is it", context=context)[0]


def test_a_voice_that_does_not_fit_is_refused_before_it_is_encoded(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    monkeypatch.setattr(engine.model.codec, "encode", lambda pcm: pytest.fail("encoded"))
    with pytest.raises(PromptTooLong, match="voice is too long"):
        engine.prompts.voices.add("long", 0, (Segment(0, "hi", audio=clip(300).numpy()),))
    with pytest.raises(RequestError, match="built-in"):
        engine.prompts.voices.add("conversational_a", 0, ())
    with pytest.raises(NotFound, match="speaker"):
        engine.prompts.voices.add("odd", 7, ())


def test_a_clip_is_encoded_once(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine()
    encode, times = engine.model.codec.encode, []

    def counted(pcm: torch.Tensor) -> torch.Tensor:
        times.append(len(pcm))
        return encode(pcm)

    monkeypatch.setattr(engine.model.codec, "encode", counted)
    for text in ("hi", "so long"):
        say(engine, text, context=(Segment(0, "it is", audio=clip(4).numpy()),))
    assert len(times) == 1
    assert engine.model.codec.frame_width == CODEBOOKS


def test_the_prefix_of_a_failed_prompt_is_not_cached(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    engine.prompts.voices.add("ann", 0, (Segment(0, "hello there", audio=clip(6).numpy()),))
    expected, _ = say(
        make_engine(), "hi", context=(Segment(0, "hello there", audio=clip(6).numpy()),)
    )
    prefill = engine.model.prefill

    def poisoned(inputs: Any, lengths: Any, slots: Any, kv: Any) -> torch.Tensor:
        kv.keys[:, slots] = torch.nan
        return prefill(inputs, lengths, slots, kv) * torch.nan

    with monkeypatch.context() as patch:
        patch.setattr(engine.model, "prefill", poisoned)
        say(engine, "hi", voice="ann")
    assert len(engine.runner.prefixes) == 0
    assert say(engine, "hi", voice="ann")[0] == expected


def test_a_full_cache_does_not_fail_a_request(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, scratch = make_engine(), make_engine(prefix_cache_mib=0)

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("no memory for a copy")

    monkeypatch.setattr(engine.runner.prefixes, "keep", full)
    for text in TURNS[:3]:
        assert say(engine, text, conversation="c") == say(scratch, text, conversation="c")


def test_a_long_text_keeps_its_voice(make_engine: MakeEngine) -> None:
    """Even if the voice is deleted while the first part is spoken."""
    engine = make_engine()
    end_after(engine, FRAMES)
    heard: list[Frames] = []
    for gone in (False, True):
        engine.prompts.voices.add("ann", 0, (Segment(0, "hello there", audio=clip(6).numpy()),))
        frames = record(engine)
        first = SpeechRequest(
            "x", "hi", voice="ann", conversation="~x", following=("so long",), more=True,
            sampling={"temperature": 0.0},
        )  # fmt: skip
        engine.add(first)
        engine.step()
        if gone:
            engine.prompts.voices.remove("ann")
        parts = Parts(first, engine.model.codec.frame_rate, engine.model.codec.sample_rate)
        _, following = parts.after(ended(engine))
        assert isinstance(following, SpeechRequest)
        engine.add(following)
        _, end = parts.after(ended(engine))
        assert isinstance(end, Finished)
        assert end.frames == 2 * FRAMES
        heard.append(list(frames["x"]))
        engine.prompts.conversations.forget("~x")
    assert heard[0] == heard[1]
    with pytest.raises(NotFound, match="ann"):
        engine.add(attrs.evolve(first, following=(), more=False))


def ended(engine: Engine) -> Finished:
    end = run_engine(engine)["x"].end
    assert isinstance(end, Finished)
    return end


def test_a_later_part_that_cannot_fit_is_refused_at_once(make_engine: MakeEngine) -> None:
    with pytest.raises(PromptTooLong):
        make_engine().add(SpeechRequest("long", "hi", following=("so long " * 40,)))
