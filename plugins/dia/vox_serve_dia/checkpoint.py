"""Loads a model from a checkpoint directory: Dia and DAC, only from safetensors.

Dia is stored as `save_pretrained` writes it.  DAC is a repository of its own, which the checkpoint
names; a directory `dac` beside the weights is used instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import sqrt
from pathlib import Path
from typing import Any

import torch

from vox_serve import CheckpointError, InvalidRequest, LoadOptions
from vox_serve.hub import fetch, read_config, read_json
from vox_serve.nn import WeightFiles, WeightLoader, uninitialised, weights_path
from vox_serve.sizes import check_sizes
from vox_serve_dia.config import COUNTS, DiaConfig
from vox_serve_dia.dac import Dac
from vox_serve_dia.model import DiaModel
from vox_serve_dia.network import DiaNetwork
from vox_serve_dia.plugin import HUB_ID, DiaParameters, original

DAC = "descript/dac_44khz"
DEFAULTS = DiaParameters(temperature=1.8, top_k=45, top_p=0.9)
"""Defaults for parameters that `generation_config.json` does not set."""
Sources = dict[str, Sequence[str] | Callable[[], torch.Tensor]]


def load_model(options: LoadOptions) -> DiaModel:
    """Load a Dia checkpoint.

    Raises:
        CheckpointError: names the file, tensor or key at fault and says what to do.
    """
    directory, device = options.directory, torch.device(options.device)
    json = read_config(str(directory))
    if original(json):
        raise CheckpointError(
            f"{directory}: this is Nari Labs' own layout; use the same weights as transformers "
            f"has them, {HUB_ID}"
        )
    config = DiaConfig.from_json(json)
    codec = load_codec(directory, config, device)
    loader = WeightLoader(WeightFiles(weights_path(directory)))
    network = load_network(config, loader, options)
    loader.finish()
    return DiaModel(options, config, network, codec, read_sampling(directory))


def load_network(config: DiaConfig, loader: WeightLoader, options: LoadOptions) -> DiaNetwork:
    """Build and fill the network, layer by layer."""
    with uninitialised():
        network = DiaNetwork(config)
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    loader.build(network, sources(config, loader), device, dtype, options.weights)
    network.prepare(device, dtype)
    return network


def load_codec(directory: Path, config: DiaConfig, device: torch.device) -> Dac:
    """Load DAC from `dac/`, or from the source that the checkpoint names."""
    folder = directory / "dac"
    if not folder.is_dir():
        folder = fetch(dac_source(directory), ("config.json", "model*.safetensors*"))
    sizes = read_config(str(folder))
    check_sizes(folder / "config.json", sizes, COUNTS, {}, ())
    codec = Dac(sizes, config.delays, config.vocab, device)
    codec.load(WeightLoader(WeightFiles(weights_path(folder))))
    return codec


def dac_source(directory: Path) -> str:
    """The hub id, or the directory, that transformers' processor would load."""
    for name in ("processor_config.json", "audio_tokenizer_config.json"):
        path = directory / name
        found: Any = read_json(path) if path.is_file() else {}
        found = found.get("audio_tokenizer") or found
        named = found.get("audio_tokenizer_name_or_path") if isinstance(found, dict) else None
        if isinstance(named, str):
            return named
    return DAC


def read_sampling(directory: Path) -> DiaParameters:
    """Defaults from `generation_config.json`; missing ones are Nari Labs'.

    Raises:
        CheckpointError: the file is not a JSON object, or a value is out of range.
    """
    path = directory / "generation_config.json"
    if not path.is_file():
        return DEFAULTS
    stored = read_json(path)
    names = ("temperature", "top_k", "top_p", "guidance_scale")
    named = {name: stored[name] for name in names if stored.get(name) is not None}
    if stored.get("do_sample") is False:
        named["temperature"] = 0.0
    try:
        return DEFAULTS.merged(named)
    except InvalidRequest as error:
        raise CheckpointError(f"{path}: {error}") from error


def sources(config: DiaConfig, loader: WeightLoader) -> Sources:
    """The tensors that fill each parameter of the network.

    Dia does not divide by the root of a head's width before the softmax, as attention does here;
    so the matrices of queries are multiplied by it.
    """

    def scaled(names: Sequence[str], head_dim: int) -> torch.Tensor:
        queries, *others = (loader.read(name).float() for name in names)
        return torch.cat([queries * sqrt(head_dim), *others])

    found: Sources = {
        "text_embedding.weight": ["model.encoder.embedding.weight"],
        "encoder.norm.weight": ["model.encoder.norm.weight"],
        "audio_embedding.weight": ["model.decoder.embeddings.embed.weight"],
        "norm.weight": ["model.decoder.norm.weight"],
        "head.weight": ["logits_dense.weight"],
    }
    stacks = (
        ("encoder.layers", "model.encoder.layers", config.encoder),
        ("layers", "model.decoder.layers", config.decoder),
    )
    for stack, theirs, sizes in stacks:
        after = "post_sa_norm" if stack.startswith("encoder") else "pre_mlp_norm"
        for number in range(sizes.num_hidden_layers):
            ours, name = f"{stack}.{number}.", f"{theirs}.{number}."
            qkv = [f"{name}self_attention.{x}_proj.weight" for x in "qkv"]
            found |= {
                f"{ours}attention_norm.weight": [f"{name}pre_sa_norm.weight"],
                f"{ours}attention.qkv.weight": partial(scaled, qkv, sizes.head_dim),
                f"{ours}attention.output.weight": [f"{name}self_attention.o_proj.weight"],
                f"{ours}feed_forward_norm.weight": [f"{name}{after}.weight"],
                f"{ours}feed_forward.gate_up.weight": [f"{name}mlp.gate_up_proj.weight"],
                f"{ours}feed_forward.down.weight": [f"{name}mlp.down_proj.weight"],
            }
    for number in range(config.decoder.num_hidden_layers):
        ours, name = f"layers.{number}.", f"model.decoder.layers.{number}."
        cross = f"{name}cross_attention."
        found |= {
            f"{ours}cross_norm.weight": [f"{name}pre_ca_norm.weight"],
            f"{ours}cross.query.weight": partial(
                scaled, [f"{cross}q_proj.weight"], config.cross_head_dim
            ),
            f"{ours}cross.memory.weight": [f"{cross}{x}_proj.weight" for x in "kv"],
            f"{ours}cross.output.weight": [f"{cross}o_proj.weight"],
        }
    return found
