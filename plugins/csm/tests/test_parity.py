"""Frames of the engine compared with frames of transformers, token for token, in float32."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from plugins.csm.tests.checkpoints import (
    CODES,
    LLAMA3_ROPE,
    RESERVED,
    Frames,
    clip,
    context_ids,
    reference_frames,
    text_ids,
    write_checkpoint,
)
from plugins.csm.tests.conftest import (
    FRAMES,
    Checkpoint,
    MakeEngine,
    load,
    record,
    request,
    spoken_alone,
)
from tests.checkpoint_files import read_json, write_json
from tests.conftest import Spoken, collect, run_engine
from vox_serve import Segment
from vox_serve.engine.kv_cache import SlotKVCache
from vox_serve.messages import FinishReason
from vox_serve_csm.model import CsmModel

TEXTS = ("hello there", "a", "how are you today?", "it's 10 o'clock. 'tis late!", "no")


@pytest.fixture(scope="module")
def references(checkpoint: Checkpoint) -> dict[str, Frames]:
    """transformers' frames for each of TEXTS."""
    return {text: reference_frames(checkpoint.reference, text_ids(text), FRAMES) for text in TEXTS}


def test_the_oracle_depends_on_its_input(references: Mapping[str, Frames]) -> None:
    """A model that ignores its input would hide every mistake."""
    starts = {tuple(frames[:2]) for frames in references.values()}
    assert len(starts) == len(TEXTS)
    for frames in references.values():
        assert len(set(frames)) == FRAMES
        assert all(len(set(book)) > 3 for book in zip(*frames, strict=True))


def test_a_request_alone_equals_the_reference(
    make_engine: MakeEngine, references: Mapping[str, Frames]
) -> None:
    assert spoken_alone(make_engine(), TEXTS[0]) == references[TEXTS[0]]


def test_the_speaker_changes_the_frames(make_engine: MakeEngine, checkpoint: Checkpoint) -> None:
    frames = spoken_alone(make_engine(), TEXTS[0], speaker=1, frames=10)
    assert frames == reference_frames(checkpoint.reference, text_ids(TEXTS[0], 1), 10)
    assert frames != spoken_alone(make_engine(), TEXTS[0], speaker=0, frames=10)


def test_a_batch_of_different_prompts_equals_the_reference(
    make_engine: MakeEngine, references: Mapping[str, Frames]
) -> None:
    engine = make_engine()
    frames = record(engine)
    for text in TEXTS:
        engine.add(request(text, text))
    run_engine(engine)
    assert frames == references


@pytest.mark.parametrize("deterministic", [False, True])
def test_requests_that_join_and_leave_equal_the_reference(
    make_engine: MakeEngine, references: Mapping[str, Frames], deterministic: bool
) -> None:
    """Three slots, eight requests: queueing, reused slots, early ends and aborts."""
    engine = make_engine(max_batch_size=3, deterministic=deterministic)
    frames = record(engine)
    # step at which it joins: text, maximal frames, step at which its client leaves
    plan = {
        0: [(0, 12, None), (1, 3, None)],
        2: [(2, 40, 9), (3, 40, None)],
        3: [(4, 5, None)],
        5: [(0, 30, None), (2, 25, 6)],  # the second one leaves while it waits
        17: [(1, 40, None)],
    }
    leaving: dict[int, list[str]] = defaultdict(list)
    text_of: dict[str, str] = {}
    limit_of: dict[str, int] = {}
    slots: dict[str, int] = {}
    spoken: dict[str, Spoken] = {}
    for step in range(200):
        for number, (text, limit, leaves) in enumerate(plan.get(step, [])):
            name = f"{step}-{number}"
            text_of[name], limit_of[name] = TEXTS[text], limit
            engine.add(request(name, TEXTS[text], limit))
            if leaves is not None:
                leaving[leaves].append(name)
        for name in leaving[step]:
            engine.abort(name)
        collect(engine.step(), spoken)
        slots |= {name: sequence.slot for name, sequence in engine.scheduler.running.items()}
        if step > max(plan) and not engine.has_work:
            break
    reasons = {name: entry.end.reason for name, entry in spoken.items()}
    cancelled = {name for name, reason in reasons.items() if reason is FinishReason.CANCELLED}
    assert cancelled == {"2-0", "5-1"}
    assert len(set(slots.values())) < len(slots)  # slots were reused
    assert "5-1" not in frames
    for name in text_of.keys() - {"5-1"}:
        count = len(frames[name])
        assert count == limit_of[name] or name == "2-0"
        assert frames[name] == references[text_of[name]][:count]
    assert 0 < len(frames["2-0"]) < 10


@pytest.mark.parametrize("lengths", [(5,), (4, 6)], ids=["one turn", "two turns"])
def test_context_equals_the_reference(
    make_engine: MakeEngine, checkpoint: Checkpoint, lengths: tuple[int, ...]
) -> None:
    clips = [clip(frames, seed) for seed, frames in enumerate(lengths)]
    context = [
        Segment(turn % 2, TEXTS[turn + 1], audio=sound.numpy()) for turn, sound in enumerate(clips)
    ]
    ids = [
        token
        for turn, frames in enumerate(lengths)
        for token in context_ids(TEXTS[turn + 1], turn % 2, frames)
    ]
    ids += text_ids(TEXTS[0])
    expected = reference_frames(checkpoint.reference, ids, FRAMES, clips)
    engine = make_engine()
    codes = [engine.model.codec.encode(sound) for sound in clips]
    assert all(len(codes[turn].unique(dim=1).T) > 2 for turn in range(len(clips)))
    assert spoken_alone(engine, TEXTS[0], context=tuple(context)) == expected
    # The same turns, already encoded, as in a voice.
    encoded = tuple(
        Segment(segment.speaker, segment.text, codes=frames)
        for segment, frames in zip(context, codes, strict=True)
    )
    assert spoken_alone(make_engine(), TEXTS[0], context=encoded, frames=5) == expected[:5]


def test_context_in_a_batch_equals_the_reference(
    make_engine: MakeEngine, checkpoint: Checkpoint, references: Mapping[str, Frames]
) -> None:
    """A prompt with context is prefilled together with shorter, padded ones."""
    sound = clip(7)
    ids = [*context_ids(TEXTS[1], 1, 7), *text_ids(TEXTS[0])]
    engine = make_engine()
    frames = record(engine)
    segment = Segment(1, TEXTS[1], audio=sound.numpy())
    engine.add(request("with", TEXTS[0], context=(segment,)))
    engine.add(request("without", TEXTS[0]))
    run_engine(engine)
    assert frames["with"] == reference_frames(checkpoint.reference, ids, FRAMES, [sound])
    assert frames["without"] == references[TEXTS[0]]


def test_reserved_ids_reach_the_model_but_not_the_codec(
    make_engine: MakeEngine, references: Mapping[str, Frames], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    heard: list[torch.Tensor] = []
    step = engine.model.codec.step

    def listening(codes: torch.Tensor, *rest: torch.Tensor) -> Any:
        heard.append(codes)
        return step(codes, *rest)

    monkeypatch.setattr(engine.model.codec, "step", listening)
    text = max(TEXTS, key=lambda text: count_reserved(references[text]))
    frames = record(engine)
    engine.add(request("r", text))
    counted = 0
    while engine.has_work:
        counted += engine.step().stats.reserved_codes
    assert frames["r"] == references[text]
    assert counted == count_reserved(references[text]) > 10
    expected = [[0 if code >= CODES else code for code in frame] for frame in frames["r"]]
    assert torch.cat(heard)[:, :, 0].tolist() == expected


def count_reserved(frames: Frames) -> int:
    return sum(CODES <= code < CODES + RESERVED for frame in frames for code in frame)


class Teacher:
    """A sampler that returns given codes and keeps the logits."""

    def __init__(self, frames: Frames) -> None:
        self._codes = iter([code for frame in frames for code in frame])
        self.logits: list[torch.Tensor] = []

    def __call__(self, logits: torch.Tensor, codebook: int) -> torch.Tensor:
        self.logits.append(logits[0].float())
        return torch.tensor([next(self._codes)])


@torch.inference_mode()
def taught(model: CsmModel, text: str, frames: Frames) -> torch.Tensor:
    """Our logits `[F, K, V]` for given frames."""
    kv = SlotKVCache(model.kv_layout, 1, model.max_positions, model.device, model.dtype)
    teacher, slots = Teacher(frames), torch.tensor([0])
    tokens = model.prompt(text, model.voices[0], context=()).inputs["tokens"][None]
    hidden = model.prefill({"tokens": tokens}, torch.tensor([tokens.shape[1]]), slots, kv)
    kv.lengths += tokens.shape[1]
    for _ in frames:
        codes, _ = model.emit(hidden, teacher)
        hidden = model.advance(codes, slots, kv)
        kv.lengths += 1
    return torch.stack(teacher.logits).unflatten(0, (len(frames), -1))


@torch.inference_mode()
def taught_reference(model: Any, text: str, frames: Frames) -> torch.Tensor:
    """transformers' logits `[F, K, V]` for given frames, in one pass."""
    ids, codes = torch.tensor([text_ids(text)]), torch.tensor(frames)
    embedded = torch.cat(
        [model.embed_text_tokens(ids), model.backbone_model.embed_tokens(codes[None, :-1])], dim=1
    )
    hidden = model.backbone_model(inputs_embeds=embedded).last_hidden_state
    hidden = hidden[0, ids.shape[1] - 1 :]
    depth = model.depth_decoder(
        input_ids=torch.nn.functional.pad(codes[:, :-1], (1, 0)), backbone_last_hidden_state=hidden
    )
    return torch.cat([model.lm_head(hidden)[:, None], depth.logits], dim=1).float()


def test_bfloat16_is_as_exact_as_the_reference(
    checkpoint: Checkpoint, references: Mapping[str, Frames]
) -> None:
    frames = references[TEXTS[0]]
    exact = taught_reference(checkpoint.reference, TEXTS[0], frames)
    ours = taught(load(checkpoint.directory), TEXTS[0], frames)
    assert (ours - exact).abs().max() < 1e-4 * exact.std()
    rounded = copy.deepcopy(checkpoint.reference).to(torch.bfloat16)
    theirs = taught_reference(rounded, TEXTS[0], frames)
    ours = taught(load(checkpoint.directory, "bfloat16"), TEXTS[0], frames)
    assert (ours - exact).std() < 1.2 * (theirs - exact).std() < 0.1 * exact.std()
    assert (ours.argmax(-1) == exact.argmax(-1)).float().mean() > 0.9


@pytest.mark.parametrize("scaled", ["backbone", "depth", "both"])
def test_both_spellings_of_rope_scaling_are_read(
    tmp_path: Path, make_engine: MakeEngine, references: Mapping[str, Frames], scaled: str
) -> None:
    scaling = {"rope_scaling": dict(LLAMA3_ROPE)}
    depth = scaling if scaled != "backbone" else {}
    reference = write_checkpoint(tmp_path, depth, **(scaling if scaled != "depth" else {}))
    expected = reference_frames(reference, text_ids(TEXTS[2]), FRAMES)
    assert expected != references[TEXTS[2]]  # the scaling has an effect
    stored = read_json(tmp_path / "config.json")
    for spell in (as_rope_scaling, as_rope_parameters):
        respelled = spell(stored)
        for part in ("depth_decoder_config", "codec_config"):
            respelled[part] = spell(stored[part])
        write_json(tmp_path / "config.json", respelled)
        assert spoken_alone(make_engine(tmp_path), TEXTS[2]) == expected


def as_rope_scaling(config: Mapping[str, Any]) -> dict[str, Any]:
    """The spelling of the file on the hub and of transformers 4."""
    theta, scaling = _rope(config)
    return _without_rope(config) | {"rope_theta": theta, "rope_scaling": scaling or None}


def as_rope_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """The spelling of transformers 5."""
    theta, scaling = _rope(config)
    kind = {"rope_type": "default"}
    return _without_rope(config) | {"rope_parameters": {"rope_theta": theta} | kind | scaling}


def _rope(config: Mapping[str, Any]) -> tuple[float, dict[str, Any]]:
    stored = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    theta = stored.pop("rope_theta", None) or config["rope_theta"]
    return theta, {} if stored.get("rope_type", "default") == "default" else stored


def _without_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if not key.startswith("rope_")}
