"""Codes and sound equal those of transformers: alone, in a batch, joining late, with a clip."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import DiaTokenizer

from plugins.dia.tests.checkpoints import (
    BEGIN,
    CODES,
    DELAYS,
    GUIDANCE,
    HOP,
    RATE,
    TOP_K,
    Reference,
    delayed,
    write_checkpoint,
    write_dac,
)
from plugins.dia.tests.conftest import MakeEngine, load
from vox_serve.config import EngineConfig
from vox_serve.engine.engine import Engine
from vox_serve.messages import SpeechRequest
from vox_serve.nn import WeightFiles, WeightLoader
from vox_serve.testing.utterances import Utterance, record, step
from vox_serve.voice import Segment
from vox_serve_dia.dac import FRAMES, Dac

TEXTS = (
    "[S1] Hello there.",
    "[S1] Hi! [S2] Ho (laughs).",
    "[S2] A third one, which is longer, of 70 bytes: Ä € 你.",
)
SECONDS = 2.0
TALKER = 0.3
"""The length of the clip in seconds."""


def request(name: str, text: str, guidance: float = GUIDANCE, **fields: Any) -> SpeechRequest:
    sampling = {"temperature": 0.0, "top_k": TOP_K, "guidance_scale": guidance}
    return SpeechRequest(name, text, sampling=sampling, max_seconds=SECONDS, **fields)


def speak(engine: Engine, *requests: SpeechRequest, steps_between: int = 0) -> list[Utterance]:
    spoken = record(engine)
    for each in requests:
        engine.add(each)
        for _ in range(steps_between):
            step(engine, spoken)
    while engine.has_work:
        step(engine, spoken)
    return [spoken[each.id] for each in requests]


def samples(utterance: Utterance) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(utterance.pcm, "<i2").astype(np.float32) / 32767)


def same(utterance: Utterance, reference: Reference, expected: tuple[torch.Tensor, int]) -> None:
    columns, heard = expected
    assert utterance.end == "stop"
    assert heard > 3
    codes = torch.tensor(utterance.codes)
    assert torch.equal(codes[: len(columns)], columns)
    sound = reference.sound(columns, heard)
    assert sound.std() > 0.05
    torch.testing.assert_close(samples(utterance), sound, atol=1e-4, rtol=0)


def clip(seconds: float = TALKER, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.3 * torch.randn(int(seconds * RATE), generator=generator)


@pytest.fixture(scope="module")
def expected(reference: Reference) -> list[tuple[torch.Tensor, int]]:
    return [reference.columns(text) for text in TEXTS]


def test_a_request_alone_equals_the_reference(
    make_engine: MakeEngine, reference: Reference, expected: Any
) -> None:
    for text, wanted in zip(TEXTS, expected, strict=True):
        (spoken,) = speak(make_engine(), request("x", text))
        same(spoken, reference, wanted)


def test_rows_of_a_batch_equal_the_reference(
    make_engine: MakeEngine, reference: Reference, expected: Any
) -> None:
    for slots, between in ((4, 0), (2, 7)):
        requests = [request(str(number), text) for number, text in enumerate(TEXTS)]
        spoken = speak(make_engine(max_batch_size=slots), *requests, steps_between=between)
        for utterance, wanted in zip(spoken, expected, strict=True):
            same(utterance, reference, wanted)


@pytest.mark.parametrize(
    ("guidance", "top_k"),
    [(4.0, 20), pytest.param(1.0, TOP_K, marks=pytest.mark.slow)],
)
def test_other_guidance_equals_the_reference(
    make_engine: MakeEngine, reference: Reference, guidance: float, top_k: int
) -> None:
    asked = request("x", TEXTS[1])
    asked.sampling.update({"guidance_scale": guidance, "top_k": top_k})
    (spoken,) = speak(make_engine(), asked)
    same(spoken, reference, reference.columns(TEXTS[1], guidance=guidance, top_k=top_k))


def test_guidance_changes_the_codes(reference: Reference, expected: Any) -> None:
    plain = reference.columns(TEXTS[1], guidance=1.0)[0]
    assert not torch.equal(plain[:20], expected[1][0][:20])


def test_a_cloned_voice_and_a_long_prompt_equal_the_reference(
    make_engine: MakeEngine, reference: Reference
) -> None:
    """The clip's transcript precedes the text, and its codes precede the generated ones."""
    sound, said = clip(), "[S1] Said before."
    wanted = reference.columns(f"{said} {TEXTS[1]}", clip=sound)
    engine = make_engine()
    engine.prompts.voices.add("talker", 0, [Segment(0, said, audio=sound.numpy())])
    (spoken,) = speak(engine, request("x", TEXTS[1], voice="talker"))
    same(spoken, reference, wanted)
    prefill = engine.runner.prefill
    engine.runner.prefill = lambda rows, most: prefill(rows, min(most, 8))  # type: ignore[method-assign]  # a test double
    beside = request("other", TEXTS[0]), request("x", TEXTS[1], voice="talker")
    same(speak(engine, *beside, steps_between=3)[1], reference, wanted)


@pytest.mark.slow
def test_equal_numbers_of_heads_and_key_value_heads_equal_the_reference(tmp_path: Any) -> None:
    sizes = {"num_key_value_heads": 4, "cross_num_key_value_heads": 4}
    reference = write_checkpoint(tmp_path, seed=2, **sizes)
    engine = Engine(load(tmp_path), EngineConfig(str(tmp_path), max_batch_size=1))
    (spoken,) = speak(engine, request("x", TEXTS[0]))
    same(spoken, reference, reference.columns(TEXTS[0]))


def test_the_prompt_equals_that_of_the_processor(
    make_engine: MakeEngine, reference: Reference
) -> None:
    sound = clip(0.5)
    given = reference.inputs(TEXTS[2], sound)
    engine = make_engine()
    engine.prompts.voices.add("talker", 1, [Segment(1, "[S2]", audio=sound.numpy())])
    voice = engine.prompts.voices.choose("talker", 0)
    prompt = engine.prompts.build(TEXTS[2], voice, ())
    frames = -(-len(sound) // HOP)
    assert len(prompt) == frames + 1
    columns = torch.cat([prompt.inputs["columns"], prompt.inputs["given"][0].view(-1, len(DELAYS))])
    wanted = given["decoder_input_ids"][0].long()
    assert torch.equal(torch.where(columns == -1, CODES + 1, columns), wanted)
    assert columns[0].tolist() == [BEGIN] * len(DELAYS)
    ids = torch.tensor(DiaTokenizer().encode(f"[S2] {TEXTS[2]}"))
    text = prompt.inputs["text"][-1]
    assert torch.equal(text[: len(ids)].long(), ids)
    assert not text[len(ids) :].any()


@pytest.mark.parametrize("ratios", [[2, 4, 4], pytest.param([2, 4, 8, 8], marks=pytest.mark.slow)])
def test_streamed_dac_equals_dac_at_once(tmp_path: Any, ratios: list[int]) -> None:
    """In any slot, after another utterance in that slot, and for encoded clips, too."""
    dac = write_dac(tmp_path, downsampling_ratios=ratios)
    codec = Dac(dac.config.to_dict(), DELAYS, CODES + 4, torch.device("cpu"))
    codec.load(WeightLoader(WeightFiles(tmp_path / "model.safetensors")))
    codes = torch.randint(CODES, (2, len(DELAYS), 23), generator=torch.Generator().manual_seed(1))
    columns = delayed(codes, rest=codec.behind + -(23 + codec.behind) % FRAMES)
    codec.allocate(3)
    codec._columns.random_(CODES)
    codec._rows[:-1].normal_()
    pieces = []
    with torch.no_grad():
        whole = dac.decode(audio_codes=codes).audio_values
        for start in range(0, columns.shape[2], FRAMES):
            part = columns[:, :, start : start + FRAMES]
            begins = torch.full((2,), start == 0)
            pcm, valid = codec.step(part, torch.tensor([2, 0]), begins)
            assert valid[0] == valid[1]
            pieces.append(pcm[:, : int(valid[0])])
        torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=1e-4, rtol=0)
        sound = torch.randn(codec.hop * 400 + 17, generator=torch.Generator().manual_seed(1))
        padded = torch.nn.functional.pad(sound, (0, -17 % codec.hop))
        wanted = dac.encode(padded[None, None]).audio_codes[0]
    assert torch.equal(codec.encode(sound), wanted)
