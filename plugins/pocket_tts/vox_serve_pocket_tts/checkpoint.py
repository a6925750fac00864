"""Loads a model from a checkpoint directory in the layout of Kyutai's repositories."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch.nn import functional as F

from vox_serve import CheckpointError, LoadOptions
from vox_serve.nn import WeightFiles, WeightLoader, uninitialised
from vox_serve_pocket_tts.codec import LatentCodec, LatentDecoder, halves
from vox_serve_pocket_tts.config import TIMES, PocketConfig, read
from vox_serve_pocket_tts.model import GivenVoice, PocketModel, PocketNetwork, time_table
from vox_serve_pocket_tts.plugin import OPEN, FlowParameters, OneStepParameters
from vox_serve_pocket_tts.text import read_tokenizer

DEFAULT_FOLDER = "languages/english"
Sources = dict[str, Sequence[str] | Callable[[], torch.Tensor]]


def load_model(options: LoadOptions) -> PocketModel:
    """Load a checkpoint.

    Raises:
        CheckpointError: says which file, tensor or key is wrong and what to do.
    """
    directory = options.directory
    if (directory / "languages").is_dir():  # a whole repository
        directory = directory / DEFAULT_FOLDER
    config = PocketConfig.from_tree(read(directory))
    loader = WeightLoader(WeightFiles(directory / "model.safetensors"))
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    network = load_network(config, loader, options)
    codec = (LatentCodec if encodes(directory, loader) else LatentDecoder)(config, device)
    codec.load(loader)
    loader.ignore(*(name for name in loader.names if name.startswith("mimi.")))
    loader.finish()
    kind = FlowParameters if config.flow_kind == "lsd" else OneStepParameters
    return PocketModel(
        options,
        config,
        network,
        codec,
        read_tokenizer(directory, config),
        read_voices(directory, config, device, dtype),
        kind(noise_temperature=config.temperature),
    )


def encodes(directory: Path, loader: WeightLoader) -> bool:
    """Whether the checkpoint can make voices from clips.  The open repository's cannot: it has the
    encoder and the projection, but not their trained weights."""
    if OPEN.partition("/")[2] in str(directory.resolve()):
        return False
    return bool(loader.read("flow_lm.speaker_proj_weight").any())


def load_network(config: PocketConfig, loader: WeightLoader, options: LoadOptions) -> PocketNetwork:
    """Build and fill the network, layer by layer."""
    with uninitialised():
        network = PocketNetwork(config)
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    loader.build(network, _sources(config, loader), device, dtype, options.weights)
    network.prepare(config.backbone, device, dtype)
    embed = [_Time(loader, number) for number in range(TIMES[config.flow_kind])]
    network.flow.times = time_table(config, embed).to(device, dtype)
    return network


def read_voices(
    directory: Path, config: PocketConfig, device: torch.device, dtype: torch.dtype
) -> dict[str, GivenVoice]:
    """The voices in `embeddings/`, by name: keys and values that Kyutai's package exported.

    Raises:
        CheckpointError: a file is not a voice of this model.
    """
    voices = {}
    for path in sorted((directory / "embeddings").glob("*.safetensors")):
        files = WeightFiles(path)
        try:
            layers = [
                _layer_of_voice(files, f"transformer.layers.{number}.self_attn", config)
                for number in range(config.backbone.num_hidden_layers)
            ]
            keys, values = (torch.stack(each) for each in zip(*layers, strict=True))
        except (CheckpointError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"{path}: not a voice of this model ({error})") from error
        voices[path.stem] = GivenVoice(keys.to(device, dtype), values.to(device, dtype))
    return voices


def _layer_of_voice(
    files: WeightFiles, name: str, config: PocketConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values `[P, H, D]` of a layer, with RoPE's pairs as halves."""
    cache = files.read(f"{name}/cache")  # [2, 1, P or more, H, D]
    if f"{name}/offset" in files.names:
        length = int(files.read(f"{name}/offset").flatten()[0])
    else:
        length = len(files.read(f"{name}/current_end"))
    sizes = config.backbone
    shape = (2, 1, cache.shape[2], sizes.num_key_value_heads, sizes.head_dim)
    if cache.shape != shape or not 0 < length <= cache.shape[2]:
        raise ValueError(f"{name} has shape {list(cache.shape)} of which {length} are filled")
    keys, values = cache[:, 0, :length].float()
    return torch.cat([keys[..., ::2], keys[..., 1::2]], dim=-1), values


def _sources(config: PocketConfig, loader: WeightLoader) -> Sources:
    """The tensors that fill each parameter of the network."""
    width, stack = config.backbone.hidden_size, config.backbone
    lm, flow = "flow_lm.", "flow_lm.flow_net."

    def stored(name: str, *shape: int) -> torch.Tensor:
        return loader.read(f"{lm}{name}", shape).float()

    def table() -> torch.Tensor:
        text = stored("conditioner.embed.weight", config.text_tokens + 1, config.text_width)
        if config.low_rank:
            text = text @ stored("conditioner.proj.weight", width, config.text_width).t()
        begin = torch.zeros(1, width)
        if config.begins_voice:
            begin = stored("bos_before_voice", 1, 1, width)[0]
        speech = stored("input_linear.weight", width, config.latent)
        speech = speech @ stored("bos_emb", config.latent)
        return torch.cat([text, begin, speech[None]])

    def qkv(number: int) -> torch.Tensor:
        heads, kv_heads, dim = stack.num_attention_heads, stack.num_key_value_heads, stack.head_dim
        sizes = [heads * dim, kv_heads * dim, kv_heads * dim]
        name = f"transformer.layers.{number}.self_attn.in_proj.weight"
        q, k, v = torch.split(stored(name, sum(sizes), width), sizes)
        return torch.cat([halves(q, heads), halves(k, kv_heads), v])

    def stacked(kind: str) -> Callable[[], torch.Tensor]:
        blocks = [*(f"res_blocks.{n}" for n in range(config.flow_depth)), "final_layer"]
        names = [f"{flow}{block}.adaLN_modulation.1.{kind}" for block in blocks]
        return lambda: torch.cat([loader.read(name) for name in names])

    sources: Sources = {
        "embedding.weight": table,
        "voice.weight": [f"{lm}speaker_proj_weight"],
        "latent.weight": [f"{lm}input_linear.weight"],
        "narrow.weight": [f"{lm}z_proj.weight"],
        "flow.modulation.linear.weight": stacked("weight"),
        "flow.modulation.bias": stacked("bias"),
    }
    biased = {
        "end": f"{lm}out_eos",
        "flow.entry": f"{flow}input_proj",
        "flow.condition": f"{flow}cond_embed",
        "flow.output": f"{flow}final_layer.linear",
    }
    plain = {"norm": f"{lm}out_norm"}
    for number in range(config.flow_depth):
        block = f"{flow}res_blocks.{number}."
        plain[f"flow.norms.{number}"] = f"{block}in_ln"
        biased |= {f"flow.up.{number}": f"{block}mlp.0", f"flow.down.{number}": f"{block}mlp.2"}
    for number in range(stack.num_hidden_layers):
        ours, theirs = f"layers.{number}.", f"{lm}transformer.layers.{number}."
        plain |= {f"{ours}norm1": f"{theirs}norm1", f"{ours}norm2": f"{theirs}norm2"}
        sources |= {
            f"{ours}attention.qkv.weight": partial(qkv, number),
            f"{ours}attention.output.weight": [f"{theirs}self_attn.out_proj.weight"],
            f"{ours}up.weight": [f"{theirs}linear1.weight"],
            f"{ours}down.weight": [f"{theirs}linear2.weight"],
        }
    for names, weight in ((biased, "linear.weight"), (plain, "weight")):
        for ours, theirs in names.items():
            sources |= {
                f"{ours}.{weight}": [f"{theirs}.weight"],
                f"{ours}.bias": [f"{theirs}.bias"],
            }
    return sources


class _Time:
    """A flow time `[N, 1]` to `[N, width]`: sinusoids, an MLP, division by its deviation."""

    def __init__(self, loader: WeightLoader, number: int) -> None:
        name = f"flow_lm.flow_net.time_embed.{number}."
        layers = ("mlp.0.weight", "mlp.0.bias", "mlp.2.weight", "mlp.2.bias", "mlp.3.alpha")
        self._tensors = [loader.read(f"{name}{part}").float() for part in ("freqs", *layers)]

    def __call__(self, time: torch.Tensor) -> torch.Tensor:
        frequencies, weight1, bias1, weight2, bias2, alpha = self._tensors
        angles = time * frequencies
        x = torch.cat([angles.cos(), angles.sin()], dim=-1)
        x = F.linear(F.silu(F.linear(x, weight1, bias1)), weight2, bias2)
        return x * alpha / (x.var(-1, keepdim=True) + 1e-5).sqrt()
