"""A fine-tune as a PEFT adapter is merged at load, and speaks like the merged reference."""

from __future__ import annotations

import copy
import json
from itertools import product
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from safetensors.torch import save_file

from plugins.csm.tests.checkpoints import Frames, reference_frames, text_ids
from plugins.csm.tests.conftest import PLUGINS, Checkpoint, record, request
from tests.conftest import run_engine, running_server
from vox_serve import CheckpointError, Segment
from vox_serve.config import EngineConfig
from vox_serve.engine.engine import Engine
from vox_serve.engine.load import load_engine
from vox_serve.engine.room import _need
from vox_serve.messages import SpeechRequest
from vox_serve.nn.adapter import Adapted
from vox_serve.plugins import load_plugins
from vox_serve_csm.model import CsmModel

FRAMES, RANK, ALPHA = 20, 4, 10
TARGETS = ("q_proj", "o_proj", "down_proj")


def write_adapter(
    directory: Path, model: Any, rank: int = RANK, targets: tuple[str, ...] = TARGETS
) -> None:
    """Write a random adapter in PEFT's format, and apply it to `model`."""
    generator = torch.Generator().manual_seed(rank)
    tensors = {}
    for name, layer in model.named_modules():
        if name.endswith(targets) and "codec" not in name:
            rows, columns = layer.weight.shape
            a = 0.3 * torch.randn(rank, columns, generator=generator)
            b = 0.3 * torch.randn(rows, rank, generator=generator)
            tensors[f"base_model.model.{name}.lora_A.weight"] = a
            tensors[f"base_model.model.{name}.lora_B.weight"] = b
            layer.weight.data += b @ a * ALPHA / rank
    assert len(tensors) > 8
    directory.mkdir()
    save_file(tensors, directory / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": ALPHA}
    (directory / "adapter_config.json").write_text(json.dumps(config))


def engine_with(checkpoint: Checkpoint, *adapters: str, **settings: Any) -> Engine:
    settings = {"max_batch_size": 3, "dtype": "float32", **settings}
    config = EngineConfig(
        str(checkpoint.directory), "cpu", adapter=adapters, plugins=PLUGINS, **settings
    )
    return load_engine(config, load_plugins(PLUGINS))[0]


def spoken(checkpoint: Checkpoint, adapter: Path | None) -> list[tuple[int, ...]]:
    adapters = () if adapter is None else (str(adapter),)
    engine = engine_with(checkpoint, *adapters, max_batch_size=1)
    frames = record(engine)
    engine.add(request("x", "hello", frames=FRAMES))
    run_engine(engine)
    return frames["x"]


def test_it_speaks_like_the_merged_reference(checkpoint: Checkpoint, tmp_path: Path) -> None:
    changed = copy.deepcopy(checkpoint.reference)
    write_adapter(tmp_path / "adapter", changed)
    expected = reference_frames(changed, text_ids("hello"), FRAMES)
    assert spoken(checkpoint, tmp_path / "adapter") == expected
    assert spoken(checkpoint, None) != expected


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of peft about transformers
def test_it_reads_the_files_of_peft(checkpoint: Checkpoint, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(5)
    config = peft.LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        target_modules=r"(?!codec).*\.(q_proj|v_proj|gate_proj)",
        init_lora_weights=False,
    )
    model = peft.get_peft_model(copy.deepcopy(checkpoint.reference), config)
    model.save_pretrained(tmp_path / "adapter")
    expected = reference_frames(model.merge_and_unload(), text_ids("hello"), FRAMES)
    assert spoken(checkpoint, tmp_path / "adapter") == expected


def test_an_adapter_of_another_model_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    write_adapter(tmp_path / "adapter", copy.deepcopy(checkpoint.reference))
    tensors = {"base_model.model.talker.x.lora_A.weight": torch.ones(1, 1)}
    save_file(tensors, tmp_path / "adapter/adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="1 tensors do not belong to this model"):
        spoken(checkpoint, tmp_path / "adapter")


OTHER_TARGETS = ("v_proj", "gate_proj", "up_proj", "lm_head")
TEXTS = ("hello", "how are you today?", "no")


@attrs.frozen
class Beside:
    """Adapters on one base: their flags, and each merged reference's output for each of TEXTS."""

    flags: tuple[str, ...]
    references: dict[str | None, dict[str, Frames]]


@pytest.fixture(scope="module")
def adapters(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Beside:
    folder = tmp_path_factory.mktemp("adapters")
    models: dict[str | None, Any] = {None: checkpoint.reference}
    for name, rank, targets in (("anna", RANK, TARGETS), ("bert", 6, OTHER_TARGETS)):
        models[name] = copy.deepcopy(checkpoint.reference)
        write_adapter(folder / name, models[name], rank, targets)
    references = {
        name: {text: reference_frames(model, text_ids(text), FRAMES) for text in TEXTS}
        for name, model in models.items()
    }
    return Beside((f"anna={folder / 'anna'}", f"bert={folder / 'bert'}"), references)


def ask(adapter: str | None, text: str, frames: int = FRAMES, **fields: Any) -> SpeechRequest:
    return request(f"{adapter}: {text}", text, frames, adapter=adapter, **fields)


@pytest.mark.parametrize("deterministic", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_adapters_in_one_batch_speak_as_their_merged_references(
    checkpoint: Checkpoint, adapters: Beside, deterministic: bool
) -> None:
    """Nine requests in three slots, with either adapter or none; they join and leave the batch."""
    engine = engine_with(checkpoint, *adapters.flags, deterministic=deterministic)
    frames = record(engine)
    mixed: set[frozenset[int]] = set()
    asked = {}
    for number, (text, adapter) in enumerate(product(TEXTS, adapters.references)):
        one = ask(adapter, text, FRAMES - number)
        asked[one.id] = adapters.references[adapter][text][: FRAMES - number]
        engine.add(one)
    while engine.has_work:
        engine.step()
        mixed.add(frozenset(s.adapter for s in engine.scheduler.running.values()))
    assert frames == asked
    assert frozenset({0, 1, 2}) in mixed
    assert len({tuple(said["hello"]) for said in adapters.references.values()}) == 3


def test_each_adapter_alone_speaks_as_its_merged_reference(
    checkpoint: Checkpoint, adapters: Beside
) -> None:
    engine = engine_with(checkpoint, *adapters.flags)
    frames = record(engine)
    for adapter, said in adapters.references.items():
        one = ask(adapter, "no", 8)
        engine.add(one)
        run_engine(engine)
        assert frames[one.id] == said["no"][:8]


def test_the_weights_of_the_base_are_in_memory_once(
    checkpoint: Checkpoint, adapters: Beside
) -> None:
    """The plan of the memory counts the adapters too."""
    config = EngineConfig(str(checkpoint.directory), "cpu", dtype="float32", plugins=PLUGINS)
    added = _need(attrs.evolve(config, adapter=adapters.flags)).weights - _need(config).weights
    alone, model = (engine_with(checkpoint, *flags).model for flags in ((), adapters.flags))
    assert isinstance(alone, CsmModel)
    assert isinstance(model, CsmModel)
    base, shared = (sum(p.numel() for p in m.network.parameters()) for m in (alone, model))
    assert base == shared
    layers = [m for m in model.network.modules() if isinstance(m, Adapted)]
    assert added == sum(layer.down.nbytes + layer.up.nbytes for layer in layers)


def test_a_cached_context_is_that_of_its_adapter(checkpoint: Checkpoint, adapters: Beside) -> None:
    codes = torch.arange(8 * 5).view(8, 5) % 64
    context = (Segment(1, "hi", codes=codes),)
    said = {}
    for mib in (0, 16):
        engine = engine_with(checkpoint, *adapters.flags, prefix_cache_mib=mib)
        frames = record(engine)
        restored = []
        for turn, adapter in enumerate(("anna", None, "bert", "anna")):
            one = attrs.evolve(ask(adapter, "no", 6, context=context), id=f"{turn}")
            engine.add(one)
            restored.append(engine.step().stats.restored > 0)
            run_engine(engine)
        said[mib] = dict(frames), restored
    assert said[16][0] == said[0][0]
    assert said[16][1] == [False, False, False, True]


@pytest.mark.parametrize("settings", [{"dtype": "auto"}, {"dtype": "auto", "quantize": "int8"}])
def test_packed_weights_of_the_base_take_adapters_too(
    checkpoint: Checkpoint, adapters: Beside, settings: dict[str, str]
) -> None:
    engine = engine_with(checkpoint, *adapters.flags, **settings)
    frames = record(engine)
    for adapter in adapters.references:
        engine.add(ask(adapter, "no", 4))
    run_engine(engine)
    assert len({tuple(said) for said in frames.values()}) == 3


def test_an_adapter_of_the_projector_is_refused_beside_others(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """CSM computes the depth decoder's inputs with it once, at load."""
    changed = copy.deepcopy(checkpoint.reference)
    write_adapter(tmp_path / "x", changed, targets=("q_proj", "inputs_embeds_projector"))
    with pytest.raises(CheckpointError, match=r"inputs_embeds_projector\.weight, which this model"):
        engine_with(checkpoint, f"x={tmp_path / 'x'}")


@pytest.mark.filterwarnings("ignore::FutureWarning")  # between peft and transformers
def test_what_peft_trains_is_served_beside_others(
    checkpoint: Checkpoint, adapters: Beside, tmp_path: Path
) -> None:
    """All layers with these names, including Mimi's, which a training step does not change."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(7)
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["q_proj", "down_proj"])
    model = peft.get_peft_model(copy.deepcopy(checkpoint.reference), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name and "codec" not in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path / "carl")
    expected = reference_frames(model.merge_and_unload(), text_ids("hello"), FRAMES)
    engine = engine_with(checkpoint, *adapters.flags, f"carl={tmp_path / 'carl'}")
    frames = record(engine)
    for adapter in ("anna", "carl", "bert"):
        engine.add(ask(adapter, "hello"))
    run_engine(engine)
    assert frames["carl: hello"] == expected
    for adapter in ("anna", "bert"):
        assert frames[f"{adapter}: hello"] == adapters.references[adapter]["hello"]


def test_adapters_are_models_of_the_server(checkpoint: Checkpoint, adapters: Beside) -> None:
    config = EngineConfig(
        str(checkpoint.directory),
        "cpu",
        dtype="float32",
        max_batch_size=3,
        adapter=adapters.flags,
        plugins=PLUGINS,
    )
    base = checkpoint.directory.name
    with running_server(config) as server:
        http = server.http
        listed = http.get("/models").json()["models"]
        assert [(m["name"], m["base"]) for m in listed] == [
            (base, None),
            ("anna", base),
            ("bert", base),
        ]
        assert [m["id"] for m in http.get("/v1/models").json()["data"]] == [base, "anna", "bert"]
        health = http.get("/health").json()["models"]
        assert [m["model"] for m in health] == [base]  # one engine
        body = {"text": "no", "temperature": 0, "max_seconds": 0.64, "normalize": "off"}
        sounds = {}
        for name in (None, base, "csm", "anna", "bert"):
            chosen = {} if name is None else {"model": name}
            answer = http.post("/generate", json=body | chosen)
            assert answer.status_code == 200, answer.text
            sounds[name] = answer.content
        assert sounds[None] == sounds[base] == sounds["csm"]
        assert len({*sounds.values()}) == 3
        spoken = {"model": "anna", "input": "no", "voice": "alloy", "response_format": "wav"}
        assert http.post("/v1/audio/speech", json=spoken).status_code == 200
        unknown = http.post("/generate", json=body | {"model": "carl"})
        assert unknown.status_code == 404
        assert f"this server has {base}, anna, bert" in unknown.json()["error"]["message"]
        clip = ("anna.wav", answer.content)
        form = {"name": "new", "text": "no", "model": "anna"}
        added = http.post("/v1/audio/voices", data=form, files={"audio": clip})
        assert added.json()["model"] == base  # adapters share the base's voices
        for name in ("anna", base):
            assert (
                http.post("/generate", json=body | {"model": name, "voice": "new"}).status_code
                == 200
            )
            assert http.get(f"/v1/audio/voices/new?model={name}").json()["text"] == "no"
        assert http.get("/v1/audio/voices/new").json()["model"] == base
        talk = body | {"conversation": "c"}
        for name in ("anna", "bert", base):
            assert http.post("/generate", json=talk | {"model": name}).status_code == 200
        assert http.delete("/conversations/c?model=bert").status_code == 204
