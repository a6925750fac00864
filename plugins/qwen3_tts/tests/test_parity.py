"""Our frames and samples equal those of the package `qwen-tts`, which wrote the golden files."""

from __future__ import annotations

from pathlib import Path
from random import Random

import attrs
import numpy as np
import pytest
import torch

from plugins.qwen3_tts.tests.cases import CASES, CLIP_FRAMES, FRAMES, HEARD, Case
from plugins.qwen3_tts.tests.checkpoints import (
    BOOKS,
    CODES,
    FRAME,
    GOLDEN,
    KINDS,
    clip,
    golden_sound,
)
from plugins.qwen3_tts.tests.conftest import MakeEngine, Spoken, load, request, run
from tests.checkpoint_files import read_json
from vox_serve import SpeakerCodec
from vox_serve.messages import Audio, Finished
from vox_serve.testing import watch_frames
from vox_serve_qwen3_tts.prompt import TextTokenizer

CODES_OF = read_json(GOLDEN / "codes.json")
SOUND_OF = golden_sound()


def check(case: Case, spoken: Spoken) -> None:
    """The package returns only frames with sound; ours include the end frame."""
    wanted = CODES_OF[case.name]
    ended = len(wanted) < FRAMES
    assert spoken.reason == ("stop" if ended else "length")
    assert spoken.frames[: len(wanted)] == wanted
    assert len(spoken.frames) == len(wanted) + ended
    if ended:
        assert spoken.frames[-1][0] == CODES
    if case.name in HEARD:
        heard = torch.from_numpy(np.frombuffer(spoken.pcm, "<i2").astype(np.int32))
        assert (heard - SOUND_OF[case.name]).abs().max() <= 3  # of 32767


@pytest.mark.parametrize("kind", KINDS)
def test_a_request_alone_equals_the_package(kind: str, make_engine: MakeEngine) -> None:
    engine = make_engine(kind)
    for case in (case for case in CASES if case.kind == kind):
        check(case, run(engine, {0: [request(case, FRAMES)]})[case.name])


@pytest.mark.parametrize("kind", KINDS)
def test_requests_that_join_and_leave_equal_the_package(kind: str, make_engine: MakeEngine) -> None:
    cases = [case for case in CASES if case.kind == kind]
    spoken = run(make_engine(kind), {0: [request(case, FRAMES) for case in cases]})
    for case in cases:
        check(case, spoken[case.name])
    late = {3 * number: [request(case, FRAMES)] for number, case in enumerate(cases)}
    spoken = run(make_engine(kind, max_batch_size=3), late)
    for case in cases:
        check(case, spoken[case.name])


@pytest.mark.parametrize("kind", KINDS)
def test_text_in_bits(kind: str, make_engine: MakeEngine) -> None:
    """Text sent one, two, three ... letters at a time gives the package's frames."""
    cases = [case for case in CASES if case.kind == kind and case.beside]
    engine = make_engine(kind, max_batch_size=3)
    spoken: dict[str, Spoken] = {}
    watch_frames(engine, lambda s, frame: spoken[s.id].frames.append(list(frame.codes)))
    rest = {case.name: case.text for case in cases}
    paused, ended = set(), set()
    while engine.scheduler.has_work or len(ended) < len(cases):
        for size, case in enumerate(cases, 1):
            bit, rest[case.name] = rest[case.name][:size], rest[case.name][size:]
            if case.name not in spoken:
                spoken[case.name] = Spoken()
                engine.add(request(attrs.evolve(case, text=bit), FRAMES, waits=60.0))
            elif case.name not in ended:
                engine.more_text(case.name, bit, end=not rest[case.name])
                ended |= set() if rest[case.name] else {case.name}
        for event in engine.step().events:
            if isinstance(event, Audio):
                spoken[event.request_id].pcm += event.pcm
            elif isinstance(event, Finished):
                spoken[event.request_id].reason = event.reason.value
        paused |= {s.id for s in engine.scheduler.running.values() if s.waits_for_text}
    assert paused, "none had to wait for its text"
    for case in cases:
        check(case, spoken[case.name])


WORDS = (
    *("Hello", "I'm", "they'LL", "don't", "'s", "3.14", "1,234", "$5", "(a)", "--", "..."),
    *("e\u0301", "b\u0301\u0323", "a\u0308b", "\u0301"),  # combining marks
    *("\u4f60\u597d\uff0c\u4e16\u754c\u3002", "\u6771\u4eac", "\u1100\u1161\u11a8"),
    *("\U0001f600\u200d\u2642", "\u0e17\u0e35\u0e48"),
)
SPACES = (" ", "  ", "\n", " \n ", "\n\n", "\t", "\u00a0", "", "\r\n", "\u3000")


def test_tokens_in_bits_are_those_of_the_whole_text(checkpoints: dict[str, Path]) -> None:
    tokenizer = TextTokenizer(checkpoints["base"], 10**6)
    random = Random(4)
    for _ in range(400):
        parts = [random.choice(WORDS) + random.choice(SPACES) for _ in range(random.randint(1, 9))]
        text = "".join(parts).strip()
        tokens, rest, place = [], "", 0
        while place < len(text):
            size = random.choice((1, 1, 2, 5, 30))
            settled, rest = tokenizer.settled(rest + text[place : place + size])
            tokens += settled
            place += size
        assert [*tokens, *tokenizer.encode(rest)] == tokenizer.encode(text), repr(text)
    assert tokenizer.settled("hello there, you")[1] == " you"


def test_a_long_prompt_in_pieces_equals_the_package(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vox_serve.engine.scheduler.PIECE_POSITIONS", 8)
    cases = [case for case in CASES if case.kind == "custom_voice"]
    late = {2 * number: [request(case, FRAMES)] for number, case in enumerate(cases)}
    spoken = run(make_engine("custom_voice"), late)
    for case in cases:
        check(case, spoken[case.name])


def test_a_clip_gives_the_packages_codes_and_vector(checkpoints: dict[str, Path]) -> None:
    codec = load(checkpoints["base"]).codec
    assert isinstance(codec, SpeakerCodec)
    pcm = torch.from_numpy(clip(CLIP_FRAMES))
    assert codec.encode(pcm).tolist() == CODES_OF["clip"]
    torch.testing.assert_close(
        codec.embed(pcm), SOUND_OF["vector of the clip"], atol=1e-4, rtol=1e-4
    )


def test_decoding_frame_by_frame_equals_the_package_decoding_at_once(
    checkpoints: dict[str, Path],
) -> None:
    codec = load(checkpoints["voice_design"]).codec
    codec.allocate(2)
    random = np.random.RandomState(5)
    codes = torch.from_numpy(random.randint(0, CODES, (14, BOOKS)))
    pieces = []
    for number, frame in enumerate(codes):
        pcm, valid = codec.step(
            frame[None, :, None], torch.tensor([1]), torch.tensor([number == 0])
        )
        assert valid.tolist() == [FRAME]
        pieces.append(pcm[0])
    whole = torch.cat(pieces).clamp(-1, 1)
    torch.testing.assert_close(whole, SOUND_OF["decoded"], atol=1e-4, rtol=0)
    assert 0.02 < float(whole.abs().mean()) < 0.9
