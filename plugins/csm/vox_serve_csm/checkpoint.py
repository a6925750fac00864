"""Loads a model from a checkpoint directory.

Only the transformers layout is read.  Sesame's original layout, which interleaves RoPE pairs, may
be in the same directory as `model.safetensors`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from vox_serve import CheckpointError, InvalidRequest, LoadOptions, SamplingParams
from vox_serve.hub import read_config, read_json
from vox_serve.nn import WeightFiles, WeightLoader, llama_sources, uninitialised, weights_path
from vox_serve.nn.mimi import Mimi
from vox_serve_csm.config import CsmConfig
from vox_serve_csm.model import CsmModel, CsmNetwork
from vox_serve_csm.prompt import PromptBuilder, TextTokenizer
from vox_serve_csm.voices import read_voices

CODEC_PREFIX = "codec_model."
DEPTH_HEADS = "depth_decoder.codebooks_head.weight"
TRANSFORMERS_INDEX = "transformers.safetensors.index.json"


def load_model(options: LoadOptions) -> CsmModel:
    """Load a CSM checkpoint.

    Raises:
        CheckpointError: names the file, tensor or key at fault and says what to do.
    """
    directory = options.directory
    config_json = read_config(str(directory))
    config = CsmConfig.from_json(config_json)
    loader = WeightLoader(WeightFiles(find_weights(directory, config_json)))
    if "backbone_model.norm.weight" not in loader.unused:
        raise CheckpointError(
            f"{directory}: these weights are not in the transformers layout; download the "
            "transformers-*.safetensors files and their index too"
        )
    network = load_network(config, loader, options)
    codec = load_codec(config, loader, torch.device(options.device))
    loader.finish()
    builder = PromptBuilder(TextTokenizer(directory), config.num_codebooks, config.end_code)
    return CsmModel(
        options,
        config,
        network,
        codec,
        builder,
        read_voices(directory, codec, config.speakers),
        read_sampling(directory),
    )


def find_weights(directory: Path, config: Mapping[str, Any]) -> Path:
    """The file or index with the transformers layout."""
    named = config.get("transformers_weights")
    if named:
        path = directory / Path(str(named)).name
        if not path.is_file():
            raise CheckpointError(
                f"{path}: config.json names this file, but it is missing; "
                "download the checkpoint again"
            )
        return path
    return weights_path(directory, TRANSFORMERS_INDEX)


def load_network(config: CsmConfig, loader: WeightLoader, options: LoadOptions) -> CsmNetwork:
    """Build and fill the network, layer by layer."""
    with uninitialised():
        network = CsmNetwork(config)
    sources: dict[str, Sequence[str] | Callable[[], torch.Tensor]] = {
        "text_embedding.weight": ["embed_text_tokens.weight"],
        "audio_embedding.weight": [_audio_embedding(loader)],
        "head.weight": ["lm_head.weight"],
        "projector.weight": ["depth_decoder.model.inputs_embeds_projector.weight"],
    }
    stacks = (
        ("backbone.", "backbone_model.", config.backbone),
        ("depth.", "depth_decoder.model.", config.depth),
    )
    for ours, theirs, sizes in stacks:
        names = llama_sources(theirs, sizes.num_hidden_layers)
        sources |= {ours + name: tensors for name, tensors in names.items()}
    heads = loader.read(DEPTH_HEADS)  # [K - 1, width, codes]
    for number, head in enumerate(heads):
        sources[f"depth_heads.{number}.weight"] = head.t
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    loader.build(network, sources, device, dtype, options.weights)
    network.backbone.prepare(device, dtype)
    network.depth.prepare(device, dtype, network.depth_heads)
    return network


def load_codec(config: CsmConfig, loader: WeightLoader, device: torch.device) -> Mimi:
    try:
        codec = Mimi(config.codec, config.num_codebooks, device)
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"the checkpoint's codec cannot be loaded: {error}") from error
    codec.load(loader, CODEC_PREFIX)
    return codec


def read_sampling(directory: Path) -> SamplingParams:
    """Defaults from `generation_config.json`; missing ones are Sesame's 0.9 and 50.

    Raises:
        CheckpointError: the file is not a JSON object, or a value is out of range.
    """
    path = directory / "generation_config.json"
    if not path.is_file():
        return SamplingParams()
    stored = read_json(path)
    if stored.get("do_sample") is False:
        return SamplingParams(temperature=0.0)
    named = {k: stored[k] for k in ("temperature", "top_k", "top_p") if stored.get(k) is not None}
    try:
        return SamplingParams().merged(named)
    except InvalidRequest as error:
        raise CheckpointError(f"{path}: {error}") from error


def _audio_embedding(loader: WeightLoader) -> str:
    """The table shared by backbone and depth decoder, stored under either name or both."""
    names = (
        "backbone_model.embed_tokens.embed_audio_tokens.weight",
        "depth_decoder.model.embed_tokens.weight",
    )
    loader_has = [name for name in names if name in loader.unused]
    loader.ignore(*names)
    return loader_has[0] if loader_has else names[0]
