"""Loads a model from a checkpoint directory: Orpheus and SNAC, only from safetensors.

Orpheus is stored as `save_pretrained` writes it, in one file or in shards with an index, and SNAC
in the same directory: `snac/config.json` and `snac/model.safetensors`, or `snac_config.json` and
`snac.safetensors`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch

from vox_serve import CheckpointError, LoadOptions
from vox_serve.hub import read_config, read_json
from vox_serve.nn import (
    LlamaConfig,
    WeightFiles,
    WeightLoader,
    llama_sources,
    uninitialised,
    weights_path,
)
from vox_serve_orpheus.model import OrpheusModel, OrpheusNetwork
from vox_serve_orpheus.prompt import OrpheusTokenizer
from vox_serve_orpheus.snac import SlotSnac

CONTEXT = 8192
"""The longest context in positions: the length of Orpheus's training sequences.  Its config.json
has Llama 3.2's 131072, with which the cache of one slot would take 15 GB."""
ROPE_THETA = 500_000.0
DEFAULTS: Mapping[str, Any] = {
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 28,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
}
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def load_model(options: LoadOptions) -> OrpheusModel:
    """Load an Orpheus checkpoint.

    Raises:
        CheckpointError: names the file, tensor or key at fault and says what to do.
    """
    directory, device = options.directory, torch.device(options.device)
    config = read_config(str(directory))
    codec = load_codec(directory, device)  # first, because it is small and may be missing
    tokenizer = OrpheusTokenizer(directory, codec.codebook_size)
    vocab = int(config.get("vocab_size", 156940))
    if vocab <= tokenizer.last_code:
        raise CheckpointError(
            f"{directory}: vocab_size is {vocab}, but the tokenizer's last code has id "
            f"{tokenizer.last_code}"
        )
    sizes = LlamaConfig.from_json(config, DEFAULTS, ROPE_THETA)
    sizes = attrs.evolve(sizes, max_position_embeddings=min(sizes.max_position_embeddings, CONTEXT))
    loader = WeightLoader(WeightFiles(weights_path(directory)))
    tied = bool(config.get("tie_word_embeddings", False))
    network = load_network(sizes, vocab, tied, loader, options)
    return OrpheusModel(
        options,
        network,
        codec,
        tokenizer,
        tokenizer.first_code,
        [tokenizer.end_speech, *_end_ids(config)],
    )


def load_network(
    sizes: LlamaConfig,
    vocab: int,
    tied: bool,
    loader: WeightLoader,
    options: LoadOptions,
) -> OrpheusNetwork:
    """Build and fill the network, layer by layer."""
    # A packed matrix cannot be an embedding table, which is read by rows, so the two are separate.
    with uninitialised():
        network = OrpheusNetwork(sizes, vocab, shared=tied and not options.weights)
    head = EMBEDDING if tied else HEAD
    sources = {"embedding.weight": [EMBEDDING], "head.weight": [head]}
    names = llama_sources("model.", sizes.num_hidden_layers)
    sources |= {f"backbone.{name}": tensors for name, tensors in names.items()}
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    loader.build(network, sources, device, dtype, options.weights)
    if tied:
        loader.ignore(HEAD)
    loader.finish()
    network.backbone.prepare(device, dtype)
    return network


def load_codec(directory: Path, device: torch.device) -> SlotSnac:
    path, weights = directory / "snac" / "config.json", directory / "snac" / "model.safetensors"
    if not path.parent.is_dir():
        path, weights = directory / "snac_config.json", directory / "snac.safetensors"
    if not (path.is_file() and weights.is_file()):
        raise CheckpointError(
            f"{directory}: SNAC is missing; `python -m vox_serve_orpheus.convert_snac {directory}` "
            "creates it from the hub's pytorch_model.bin"
        )
    loader = WeightLoader(WeightFiles(weights))
    config = read_json(path)
    try:
        codec = SlotSnac(config, device)
    except ValueError as error:
        raise CheckpointError(f"{path}: cannot be used: {error}") from error
    codec.load(loader)
    return codec


def _end_ids(config: Mapping[str, Any]) -> list[int]:
    """The ids at which transformers ends, too."""
    named = config.get("eos_token_id")
    ids = named if isinstance(named, list) else [named]
    return [number for number in ids if isinstance(number, int)]
