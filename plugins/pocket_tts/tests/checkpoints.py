"""Small checkpoints with random weights in Kyutai's layout, and the reference model of each."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import yaml
from pocket_tts import TTSModel
from pocket_tts.models.model_state import export_model_state
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from vox_serve import LoadOptions
from vox_serve.config import EngineConfig
from vox_serve.engine.engine import Engine
from vox_serve.engine.sampler import SlotSampler
from vox_serve.messages import Audio, Failed, Finished, SpeechRequest
from vox_serve.testing import watch_frames
from vox_serve_pocket_tts.checkpoint import load_model
from vox_serve_pocket_tts.languages import SEANET
from vox_serve_pocket_tts.model import PocketModel
from vox_serve_pocket_tts.plugin import FlowParameters

CHARACTERS = "▁etaoinshrdlucmfwypvbgkjqxz.,!?;:'ETAOINSHRDLUCMFWYPVBGKJQXZ0123456789"
ENDLESS, AT_ONCE = 1e6, -1e6
"""End thresholds: one never reached, one reached in the first frame whose logit counts."""
LATENT = 8

SMALL: dict[str, Any] = {
    "default_eos_threshold": ENDLESS,
    "replace_characters": {"’": "'", '"': ""},
    "flow_lm": {
        "dtype": "float32",
        "insert_bos_before_voice": True,
        "flow": {"depth": 2, "dim": 48},
        "transformer": {
            "d_model": 64,
            "hidden_scale": 3,
            "max_period": 10000,
            "num_heads": 4,
            "num_layers": 3,
        },
        "lookup_table": {
            "dim": 64,
            "n_bins": len(CHARACTERS) + 1,
            "tokenizer": "tokenizers",
        },
    },
    "mimi": {
        "dtype": "float32",
        "sample_rate": 24000,
        "inner_dim": LATENT,
        "outer_dim": 32,
        "channels": 1,
        "frame_rate": 12.5,
        "seanet": SEANET | {"dimension": 32, "n_filters": 4},
        "transformer": {
            "d_model": 32,
            "num_heads": 4,
            "num_layers": 2,
            "layer_scale": 0.01,
            "context": 40,
            "dim_feedforward": 64,
            "input_dimension": 32,
            "output_dimensions": [32],
        },
        "quantizer": {"dimension": LATENT, "output_dimension": 32},
    },
}


def changed(tree: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy with the values of keys such as `a.b.c` replaced."""
    tree = copy.deepcopy(tree)
    for path, value in changes.items():
        *way, last = path.split(".")
        node = tree
        for key in way:
            node = node[key]
        node[last] = value
    return tree


def write_checkpoint(directory: Path, seed: int = 0, **changes: Any) -> TTSModel:
    """Write a checkpoint; returns the reference model with it.

    Args:
        changes: changed configuration values; a dot in a key is written as two underscores.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = write_tokenizer(directory, "tokenizers")
    tree = changed(SMALL, {key.replace("__", "."): value for key, value in changes.items()})
    (directory / "config.yaml").write_text(yaml.safe_dump(tree, allow_unicode=True))
    theirs = changed(tree, {"flow_lm.lookup_table.tokenizer_path": str(path)})
    config = directory.parent / f"{directory.name}.yaml"
    config.write_text(yaml.safe_dump(theirs, allow_unicode=True))
    reference = TTSModel.load_model(config=config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in reference.state_dict().items():
            if name.endswith(".freqs"):
                continue
            spread = torch.randn(tensor.shape, generator=generator)
            if name.endswith(("norm1.weight", "norm2.weight", "norm.weight", "ln.weight", "alpha")):
                tensor.copy_(1 + 0.1 * spread)
            elif name.endswith("emb_std"):
                tensor.copy_(0.5 + spread.abs())
            elif name.endswith(".scale"):
                tensor.copy_(0.3 * spread)
            else:
                fan = tensor[0].numel() if tensor.dim() > 1 else 25
                tensor.copy_(spread / max(fan, 1) ** 0.5)
    safetensors.torch.save_file(reference.state_dict(), directory / "model.safetensors")
    return reference


def write_tokenizer(directory: Path, kind: str) -> Path:
    """A tokenizer of single characters in sentencepiece's format."""
    vocabulary = [("<unk>", 0.0), *((character, -1.0) for character in CHARACTERS)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory / "tokenizer.json"


def write_voice(reference: TTSModel, directory: Path, name: str, seconds: float = 1.0) -> None:
    """Export a voice made from a random clip, as Kyutai's package does."""
    (directory / "embeddings").mkdir(exist_ok=True)
    state = reference.get_state_for_audio_prompt(clip(seconds)[None])
    export_model_state(state, directory / "embeddings" / f"{name}.safetensors")


def clip(seconds: float, seed: int = 0) -> torch.Tensor:
    """Noise that swells and fades, similar to speech; float32 `[T]`."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(int(24000 * seconds), generator=generator)
    return 0.1 * noise * torch.linspace(0, 25, len(noise)).sin().abs()


@contextmanager
def noise_of(seed: int, reference: TTSModel) -> Iterator[list[torch.Tensor]]:
    """Make the reference use the noise of our sampler; yields its latents one by one."""
    state = SlotSampler(1, torch.device("cpu"), FlowParameters)
    state.assign(0, FlowParameters(), seed=seed)
    slots = torch.tensor([0])
    latents: list[torch.Tensor] = []
    step, normal = reference._run_flow_lm_and_increment_step, torch.nn.init.normal_
    speaking = False

    def fill(tensor: torch.Tensor, mean: float = 0.0, std: float = 1.0) -> torch.Tensor:
        return tensor.copy_(state.rows([0], slots).noise(LATENT) * std) if speaking else tensor

    def watched(**inputs: Any) -> Any:
        nonlocal speaking
        speaking = inputs.get("backbone_input_latents") is not None
        latent, end = step(**inputs)
        if speaking:
            latents.append(latent[0, 0].clone())
            state.commit(slots, torch.zeros(1, dtype=torch.int64))
        return latent, end

    reference._run_flow_lm_and_increment_step = watched
    torch.nn.init.normal_ = fill
    try:
        yield latents
    finally:
        torch.nn.init.normal_ = normal
        del reference._run_flow_lm_and_increment_step


def load(directory: Path, device: str = "cpu", dtype: str = "float32") -> PocketModel:
    return load_model(LoadOptions(directory, device, dtype))


def make_engine(directory: Path, slots: int = 4, **settings: Any) -> Engine:
    return Engine(load(directory), EngineConfig(model="p", max_batch_size=slots, **settings))


def speak(engine: Engine, *requests: SpeechRequest, stagger: int = 0) -> dict[str, Any]:
    """Latents `[F, K]` and samples of each request; they start `stagger` steps apart."""
    latents: dict[str, list[Any]] = {}
    sound: dict[str, bytes] = {}

    def keep(sequence: Any, frame: Any) -> None:
        if not frame.end:
            latents.setdefault(sequence.id, []).append(frame.codes)

    watch_frames(engine, keep)

    def step() -> None:
        for event in engine.step().events:
            assert not isinstance(event, Failed), event
            if isinstance(event, Audio):
                sound[event.request_id] = sound.get(event.request_id, b"") + event.pcm
            elif isinstance(event, Finished):
                sound.setdefault(event.request_id, b"")

    for request in requests:
        engine.add(request)
        for _ in range(stagger):
            step()
    while engine.has_work:
        step()
    return {
        name: (
            torch.tensor(latents[name]),
            torch.frombuffer(bytearray(pcm), dtype=torch.int16).float() / 32767,
        )
        for name, pcm in sound.items()
    }
