"""Tokens and sound of the engine compared with transformers and snac, in float32."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from plugins.csm.tests.test_adapter import write_adapter
from plugins.orpheus.tests.checkpoints import (
    CODES,
    END_SPEECH,
    FIRST,
    FRAME,
    HEAD,
    reference_sound,
    reference_tokens,
    text_ids,
    write_checkpoint,
)
from plugins.orpheus.tests.conftest import (
    TOKENS,
    Checkpoint,
    MakeEngine,
    load,
    record,
    request,
    spoken_alone,
)
from tests.checkpoint_files import change_json, change_tensors, read_tensors
from tests.conftest import Spoken, collect, run_engine
from vox_serve.config import EngineConfig
from vox_serve.engine.engine import Engine
from vox_serve.messages import Finished, FinishReason
from vox_serve.nn.adapter import beside

TEXTS = ("hello there", "a", "how are you today?", "it's 10 o'clock.", "Nein, größer!")


@pytest.fixture(scope="module")
def references(checkpoint: Checkpoint) -> dict[str, list[int]]:
    """transformers' tokens for each of TEXTS."""
    ids = {text: text_ids(text) for text in TEXTS[:-1]}
    spelled = TEXTS[-1].replace("ö", "Ã¶").replace("ß", "ÃŁ")  # bytes as the tokenizer spells them
    ids[TEXTS[-1]] = text_ids(spelled)
    return {text: reference_tokens(checkpoint.model, ids[text], TOKENS) for text in TEXTS}


def assert_sounds_like(pcm: bytes, reference: torch.Tensor) -> None:
    """The difference is at least 60 dB below the reference."""
    samples = torch.from_numpy(np.frombuffer(pcm, "<i2").astype(np.float32)) / 32767
    assert samples.shape == reference.shape
    noise = (samples - reference).square().mean()
    assert reference.square().mean() > 1e-3
    assert reference.square().mean() > 1e6 * noise


def test_the_oracle_depends_on_its_input(references: Mapping[str, list[int]]) -> None:
    """A model that ignores its input would hide every mistake."""
    assert len({tuple(tokens[:3]) for tokens in references.values()}) == len(TEXTS)
    for tokens in references.values():
        assert len(tokens) == TOKENS
        assert len(set(tokens)) > 50


@pytest.mark.parametrize("text", TEXTS[::2])
def test_a_request_alone_equals_the_reference(
    make_engine: MakeEngine,
    checkpoint: Checkpoint,
    references: Mapping[str, list[int]],
    text: str,
) -> None:
    tokens, spoken = spoken_alone(make_engine(), text)
    assert tokens == references[text]
    assert_sounds_like(spoken.pcm, reference_sound(checkpoint.codec, tokens))


def test_a_batch_of_different_prompts_equals_the_reference(
    make_engine: MakeEngine, checkpoint: Checkpoint, references: Mapping[str, list[int]]
) -> None:
    engine = make_engine()
    tokens = record(engine)
    for text in TEXTS:
        engine.add(request(text, text))
    spoken = run_engine(engine)
    assert tokens == references
    assert {len(entry.pcm) for entry in spoken.values()} == {(TOKENS // 7 - 3) * FRAME * 2}
    for text in TEXTS[1::2]:
        assert_sounds_like(spoken[text].pcm, reference_sound(checkpoint.codec, references[text]))


def test_requests_that_join_and_leave_equal_the_reference(
    make_engine: MakeEngine, checkpoint: Checkpoint, references: Mapping[str, list[int]]
) -> None:
    """Three slots for seven requests: rows complete frames at different steps, and reuse slots."""
    engine = make_engine(max_batch_size=3)
    tokens = record(engine)
    # step at which it joins: text, maximal tokens, step at which its client leaves
    plan = {
        0: [(0, 60, None), (1, 3, None)],
        2: [(2, 200, 45), (3, 100, None)],
        3: [(4, 40, None)],
        5: [(0, 30, 6)],  # its client leaves while it waits
        47: [(1, 70, None)],
    }
    leaving: dict[int, list[str]] = defaultdict(list)
    text_of: dict[str, str] = {}
    limits: dict[str, int] = {}
    spoken: dict[str, Spoken] = {}
    for step in range(400):
        for number, (text, limit, leaves) in enumerate(plan.get(step, [])):
            name = f"{step}-{number}"
            text_of[name], limits[name] = TEXTS[text], limit
            engine.add(request(name, TEXTS[text], limit))
            if leaves is not None:
                leaving[leaves].append(name)
        for name in leaving[step]:
            engine.abort(name)
        collect(engine.step(), spoken)
        if step > max(plan) and not engine.has_work:
            break
    assert "5-0" not in tokens
    for name in text_of.keys() - {"5-0"}:
        expected = references[text_of[name]][: len(tokens[name])]
        assert tokens[name] == expected
        if name != "2-0":
            assert len(expected) == limits[name]
        if len(expected) < 28:
            assert spoken[name].pcm == b""
            continue
        sound = reference_sound(checkpoint.codec, expected)
        if name == "2-0":  # its unsent audio depends on the clock
            assert 0 < len(spoken[name].pcm) <= 2 * len(sound)
            sound = sound[: len(spoken[name].pcm) // 2]
        assert_sounds_like(spoken[name].pcm, sound)


def test_a_seed_gives_the_same_sound(make_engine: MakeEngine) -> None:
    def sampled(*seeds: int) -> dict[str, tuple[list[int], bytes]]:
        engine = make_engine()
        tokens = record(engine)
        for seed in seeds:
            sampling = {"temperature": 0.9, "top_p": 0.95, "seed": seed}
            engine.add(request(str(seed), "hello", tokens=50, sampling=sampling))
        spoken = run_engine(engine)
        return {name: (tokens[name], spoken[name].pcm) for name in tokens}

    alone = sampled(7)["7"]
    assert sampled(7)["7"] == alone
    company = sampled(1, 7, 3)
    assert company["7"][0] == alone[0]
    difference = [np.frombuffer(pcm, "<i2").astype(int) for pcm in (company["7"][1], alone[1])]
    assert np.abs(difference[0] - difference[1]).max() <= 2  # kernels differ by batch size
    assert company["3"][0] != alone[0]


def test_tokens_that_are_not_codes_are_counted_and_sound_as_code_0(
    make_engine: MakeEngine, references: Mapping[str, list[int]]
) -> None:
    engine = make_engine()
    engine.add(request("x", TEXTS[0]))
    counted = 0
    while engine.has_work:
        counted += engine.step().stats.reserved_codes
    outside = [t for t in references[TEXTS[0]] if not FIRST <= t < FIRST + 7 * CODES]
    assert counted == len(outside) > 0


@pytest.mark.parametrize("end", ["its own token", "eos_token_id"])
def test_the_end_token_ends_the_utterance(
    make_engine: MakeEngine, directory: Path, references: Mapping[str, list[int]], end: str
) -> None:
    """The token picked at step 30 is made the end token; its frame is not decoded."""
    expected = references[TEXTS[0]]
    step = next(i for i in range(30, TOKENS) if expected[i] not in expected[:i])
    if end == "eos_token_id":
        change_json(directory / "config.json", eos_token_id=[0, expected[step]])
        last = expected[step]
    else:
        head = read_tensors(directory / "model.safetensors")[HEAD]
        head[END_SPEECH] = head[expected[step]] * 1.01
        change_tensors(directory / "model.safetensors", {HEAD: head})
        last = END_SPEECH
    tokens, spoken = spoken_alone(make_engine(directory), TEXTS[0])
    assert tokens == [*expected[:step], last]
    assert isinstance(spoken.end, Finished)
    assert (spoken.end.reason, spoken.end.frames) == (FinishReason.STOP, step)
    assert len(spoken.pcm) == (step // 7 - 3) * FRAME * 2


def test_tied_heads_and_plain_rope_equal_the_reference(
    tmp_path: Path, make_engine: MakeEngine
) -> None:
    model, _ = write_checkpoint(tmp_path, tie_word_embeddings=True, rope_scaling=None)
    assert HEAD not in read_tensors(tmp_path / "model.safetensors")
    expected = reference_tokens(model, text_ids("hello", "leo"), 40)
    assert spoken_alone(make_engine(tmp_path), "hello", voice="leo", tokens=40)[0] == expected
    # Some checkpoints store the embedding twice.
    copy = read_tensors(tmp_path / "model.safetensors")["model.embed_tokens.weight"]
    change_tensors(tmp_path / "model.safetensors", {HEAD: copy})
    assert spoken_alone(make_engine(tmp_path), "hello", voice="leo", tokens=40)[0] == expected


def test_adapters_beside_one_base_speak_as_merged_references(
    checkpoint: Checkpoint, references: Mapping[str, list[int]], tmp_path: Path
) -> None:
    """The plugin has no code for adapters; CSM's tests cover them further."""
    text, tokens = TEXTS[0], 30
    expected = {"none": references[text][:tokens]}
    for seed, name in enumerate(("anna", "bert"), start=1):
        merged = copy.deepcopy(checkpoint.model)
        write_adapter(tmp_path / name, merged, rank=2 * seed)
        expected[name] = reference_tokens(merged, text_ids(text), tokens)
    directories = [tmp_path / name for name in ("anna", "bert")]
    config = EngineConfig(
        str(checkpoint.directory),
        max_batch_size=3,
        adapter=tuple(f"{directory.name}={directory}" for directory in directories),
    )
    with beside(directories):
        model = load(checkpoint.directory)
    engine = Engine(model, config)
    said = record(engine)
    for name in expected:
        adapter = None if name == "none" else name
        engine.add(request(name, text, tokens, adapter=adapter))
    run_engine(engine)
    assert said == expected
    assert len({tuple(tokens) for tokens in expected.values()}) == 3
