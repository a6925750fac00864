"""A CSM checkpoint of full size with random weights, in the hub's layout.

Sizes are the defaults of `CsmConfig`.  Weights are uniform with the scale of a trained
network, never zero, and stored in float32 as on the hub: about 6.6 GB.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from tqdm import tqdm
from transformers import CsmConfig, CsmForConditionalGeneration

TOKENIZER = Path(__file__).parents[1] / "plugins/demo_voice/vox_serve_demo_voice/checkpoint"
INDEX = "transformers.safetensors.index.json"
TIED = "backbone_model.embed_tokens.embed_audio_tokens.weight"
TABLE = "depth_decoder.model.embed_tokens.weight"
"""The same table under both names: transformers 4 ties them automatically, 5 does not."""
SHARD_BYTES = 4_500_000_000


def write_full_size(directory: Path, config: CsmConfig | None = None) -> Path:
    """Write the checkpoint unless it exists; returns `directory`."""
    if (directory / INDEX).is_file():
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    config = config or CsmConfig()
    with torch.device("meta"):
        shapes = {
            _hub_name(name): tensor.shape
            for name, tensor in CsmForConditionalGeneration(config).state_dict().items()
            if name != TIED
        }
    torch.manual_seed(0)
    shards: list[dict[str, torch.Tensor]] = [{}]
    size = 0
    for name, shape in tqdm(shapes.items(), desc="random weights", disable=None):
        tensor = _random(name, shape)
        if shards[-1] and size + tensor.nbytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
        if name == TABLE:
            shards[-1][TIED] = tensor.clone()
            size += tensor.nbytes
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file = f"transformers-{number:05}-of-{len(shards):05}.safetensors"
        save_file(shard, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    written = config.to_dict() | {
        "architectures": ["CsmForConditionalGeneration"],
        "transformers_weights": INDEX,
    }
    (directory / "config.json").write_text(json.dumps(written))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / file, directory / file)
    # The index is written last, so if it exists, the checkpoint is complete.
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return directory


def _hub_name(name: str) -> str:
    """The name in a file: transformers 5 nests Mimi's modules in memory, not there."""
    name = re.sub(r"\b(encoder|decoder)\.\1_seanet\.", r"\1.", name)
    return re.sub(
        r"\b(?:en|de)coder\.((?:en|de)coder_transformer|(?:up|down)sample)\.", r"\1.", name
    )


def _random(name: str, shape: torch.Size) -> torch.Tensor:
    if name.endswith(("cluster_usage", "initialized")):
        return torch.ones(shape)
    if len(shape) < 2:  # norms, biases, layer scales
        offset = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        return offset + torch.empty(shape).uniform_(-0.02, 0.02)
    scale = (3.0 / shape[-1]) ** 0.5
    return torch.empty(shape).uniform_(-scale, scale)
