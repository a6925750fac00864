"""Our latents and samples equal those of Kyutai's package with the same noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pocket_tts import TTSModel
from pocket_tts.models.model_state import _import_model_state

from plugins.pocket_tts.tests.checkpoints import (
    AT_ONCE,
    clip,
    make_engine,
    noise_of,
    speak,
    write_checkpoint,
    write_voice,
)
from plugins.pocket_tts.tests.conftest import Checkpoint
from vox_serve.messages import SpeechRequest
from vox_serve.voice import Segment

TEXTS = ("hello there", "a second text, and a longer one: see?", "Third.")
FRAMES = 12


def request(number: int, text: str, voice: str | None = None, **sampling: Any) -> SpeechRequest:
    seconds = FRAMES / 12.5
    given = {"seed": number, **sampling}
    return SpeechRequest(str(number), text, voice=voice, sampling=given, max_seconds=seconds)


def expected(
    reference: TTSModel, state: Any, text: str, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents `[F, K]` and samples of the reference; a few frames more than are compared."""
    reference._estimate_max_gen_len = lambda token_count: FRAMES + 2
    with noise_of(seed, reference) as latents:
        pcm = reference.generate_audio(state, text, max_tokens=10**6)
    return torch.stack(latents), pcm


def voice_state(directory: Path, name: str) -> Any:
    return _import_model_state(
        directory / "embeddings" / f"{name}.safetensors", torch.device("cpu")
    )


def same(found: Any, wanted: Any, frames: int = FRAMES) -> None:
    latents, pcm = found
    assert len(latents) == frames
    torch.testing.assert_close(latents, wanted[0][:frames], atol=1e-4, rtol=1e-4)
    heard = wanted[1][: len(pcm)].clamp(-1, 1)
    torch.testing.assert_close(pcm, heard, atol=1e-4, rtol=0)  # 16 bits


def test_requests_alone_in_a_batch_and_late_equal_the_reference(checkpoint: Checkpoint):
    directory, reference = checkpoint.directory, checkpoint.reference
    voices = ("anna", "bert", "anna")
    wanted = [
        expected(reference, voice_state(directory, voice), text, number)
        for number, (text, voice) in enumerate(zip(TEXTS, voices, strict=True))
    ]
    asked = [
        request(n, text, voice) for n, (text, voice) in enumerate(zip(TEXTS, voices, strict=True))
    ]
    for number, one in enumerate(asked):
        same(speak(make_engine(directory), one)[str(number)], wanted[number])
    for stagger in (0, 3):
        together = speak(make_engine(directory, slots=2), *asked, stagger=stagger)
        for number in range(len(TEXTS)):
            same(together[str(number)], wanted[number])


def test_a_cloned_voice_equals_the_reference(checkpoint: Checkpoint):
    engine = make_engine(checkpoint.directory)
    sample = clip(2.3, seed=5)
    engine.prompts.voices.add("carl", 0, [Segment(0, "said", audio=sample.numpy())])
    state = checkpoint.reference.get_state_for_audio_prompt(sample[None])
    wanted = expected(checkpoint.reference, state, TEXTS[1], 1)
    same(speak(engine, request(1, TEXTS[1], "carl"))["1"], wanted)
    # The cached prefix of the voice does not change the result.
    again = speak(engine, request(2, TEXTS[0], "carl"))["2"]
    assert engine.runner.prefixes.num_bytes > 0
    same(again, expected(checkpoint.reference, state, TEXTS[0], 2))


SHAPES = {
    "drifting": {"flow_lm__flow__type": "drifting"},
    "pointwise": {"flow_lm__flow__type": "pointwise"},
    "grouped, low rank, narrow heads": {
        "flow_lm__transformer__num_kv_heads": 2,
        "flow_lm__transformer__attn_dim": 96,
        "flow_lm__transformer__dim_feedforward": 80,
        "flow_lm__lookup_table__rank": 16,
        "flow_lm__z_dim": 24,
    },
    "no beginning before the voice, a wide voice": {
        "flow_lm__insert_bos_before_voice": False,
        "mimi__inner_dim": 32,
        "pad_with_spaces_for_short_inputs": True,
        "remove_semicolons": True,
    },
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_kind_of_checkpoint_equals_the_reference(tmp_path: Path, shape: str):
    reference = write_checkpoint(tmp_path / "c", **SHAPES[shape])
    write_voice(reference, tmp_path / "c", "anna")
    engine = make_engine(tmp_path / "c")
    wanted = expected(reference, voice_state(tmp_path / "c", "anna"), "a text; yes", 3)
    same(speak(engine, request(3, "a text; yes"))["3"], wanted)


@pytest.mark.parametrize("steps", [2, 4])
def test_rows_may_have_different_numbers_of_flow_steps(checkpoint: Checkpoint, steps: int):
    directory, reference = checkpoint.directory, checkpoint.reference
    state = voice_state(directory, "anna")
    one = expected(reference, state, TEXTS[0], 0)
    reference.sampler_decode_steps = steps
    try:
        many = expected(reference, state, TEXTS[0], 1)
    finally:
        reference.sampler_decode_steps = 1
    both = speak(
        make_engine(directory), request(0, TEXTS[0]), request(1, TEXTS[0], flow_steps=steps)
    )
    same(both["0"], one)
    same(both["1"], many)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_temperature_is_the_variance_of_the_noise(checkpoint: Checkpoint, temperature: float):
    reference = checkpoint.reference
    reference.temp, kept = temperature, reference.temp
    try:
        wanted = expected(reference, voice_state(checkpoint.directory, "anna"), TEXTS[0], 0)
    finally:
        reference.temp = kept
    asked = request(0, TEXTS[0], noise_temperature=temperature)
    same(speak(make_engine(checkpoint.directory), asked)["0"], wanted)


@pytest.mark.parametrize(
    ("text", "frames"), [("four words and no", 6 + 5), ("five words are a few", 6 + 3)]
)
def test_it_ends_some_frames_after_the_mark(tmp_path: Path, text: str, frames: int):
    reference = write_checkpoint(tmp_path / "c", default_eos_threshold=AT_ONCE)
    write_voice(reference, tmp_path / "c", "anna")
    wanted = expected(reference, voice_state(tmp_path / "c", "anna"), text, 0)
    assert len(wanted[1]) == frames * 1920
    asked = SpeechRequest("0", text, sampling={"seed": 0}, max_seconds=5.0)
    latents, pcm = speak(make_engine(tmp_path / "c"), asked)["0"]
    assert len(latents) == frames
    torch.testing.assert_close(pcm, wanted[1].clamp(-1, 1), atol=1e-4, rtol=0)
