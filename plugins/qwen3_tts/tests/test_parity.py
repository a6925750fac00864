"""Our frames and samples equal those of the package `qwen-tts`, which wrote the golden files."""

from __future__ import annotations

from pathlib import Path

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
