"""moshi's Mimi with the weights of a checkpoint in the transformers layout, as an oracle.

It needs the extra `moshi`, which `make test-oldest` installs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from moshi.modules.resample import ConvDownsample1d
from moshi.modules.seanet import SEANetEncoder
from moshi.modules.transformer import ProjectedTransformer
from moshi.quantization.vq import SplitResidualVectorQuantizer
from torch import nn
from transformers import MimiConfig

from vox_serve.nn import uninitialised

# These substitutions, in this order, turn moshi's parameter names into transformers' names.
_RENAMES = (
    (r"(\.conv(tr)?)+\.", ".conv."),
    (r"\.model\.", ".layers."),
    (r"_transformer\.transformer\.", "_transformer."),
    (r"\.out_projs\.0\.", ".o_proj."),
    (r"\.norm1\.", ".input_layernorm."),
    (r"\.norm2\.", ".post_attention_layernorm."),
    (r"\.linear(\d)\.", r".mlp.fc\1."),
    (r"\.layer_scale_1\.", ".self_attn_layer_scale."),
    (r"\.layer_scale_2\.", ".mlp_layer_scale."),
    (r"\.rvq_first\.", ".semantic_residual_vector_quantizer."),
    (r"\.rvq_rest\.", ".acoustic_residual_vector_quantizer."),
    (r"\.vq\.layers\.", ".layers."),
    (r"\._codebook\._?", ".codebook."),
    (r"\.embedding_sum$", ".embed_sum"),
)


class MoshiEncoder:
    """Encodes complete clips.

    Args:
        config: keys of transformers' `MimiConfig`.
        tensors: weights by transformers' names.
        num_codebooks: how many of the checkpoint's codebooks are used.
    """

    def __init__(
        self, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], num_codebooks: int
    ) -> None:
        c = _all_values(config)
        self._network = _build(c).to_empty(device="cpu").eval().requires_grad_(False)
        self._network["quantizer"].set_num_codebooks(num_codebooks)
        for target, parameter in self._network.state_dict().items():
            name = target
            for pattern, replacement in _RENAMES:
                name = re.sub(pattern, replacement, name)
            if name.endswith(".in_projs.0.weight"):
                parts = [tensors[name.replace("in_projs.0", f"{x}_proj")] for x in "qkv"]
                heads = c["num_attention_heads"]
                q, k, v = parts[0], parts[1], parts[2]
                tensor = torch.cat((_interleave(q, heads), _interleave(k, heads), v))
            else:
                tensor = tensors[name]
            assert tensor.shape == parameter.shape
            parameter.copy_(tensor)

    @torch.no_grad()
    def encode(self, pcm: torch.Tensor) -> torch.Tensor:
        """Samples `[T]`, a whole number of frames, to codes `[K, F]`."""
        latents = self._network["encoder"](pcm[None, None])
        (latents,) = self._network["encoder_transformer"](latents)
        latents = self._network["downsample"](latents)
        codes: torch.Tensor = self._network["quantizer"].encode(latents)
        return codes[0]


def _all_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration, completed with transformers' defaults."""
    values: dict[str, Any] = MimiConfig(**config).to_dict()
    return {"rope_theta": 10000.0} | values | values.get("rope_parameters", {})


def _build(c: Mapping[str, Any]) -> Any:
    """moshi's modules without the weights, as an `nn.ModuleDict`."""
    size = c["hidden_size"]
    seanet = {
        "channels": 1,
        "dimension": size,
        "n_filters": c["num_filters"],
        "n_residual_layers": c["num_residual_layers"],
        "ratios": list(c["upsampling_ratios"]),
        "kernel_size": c["kernel_size"],
        "last_kernel_size": c["last_kernel_size"],
        "residual_kernel_size": c["residual_kernel_size"],
        "dilation_base": c["dilation_growth_rate"],
        "compress": c["compress"],
        "true_skip": not c["use_conv_shortcut"],
        "pad_mode": "constant",
        "causal": True,
    }
    transformer = {
        "d_model": size,
        "input_dimension": size,
        "output_dimensions": [size],
        "num_heads": c["num_attention_heads"],
        "num_layers": c["num_hidden_layers"],
        "dim_feedforward": c["intermediate_size"],
        "layer_scale": c["layer_scale_initial_scale"],
        "context": c["sliding_window"],
        "max_period": c["rope_theta"],
        "positional_embedding": "rope",
        "conv_layout": True,
        "causal": True,
    }
    resample = {"stride": 2, "dimension": size, "causal": True, "learnt": True}
    with uninitialised():
        quantizer = SplitResidualVectorQuantizer(
            n_q=c["num_quantizers"],
            n_q_semantic=c["num_semantic_quantizers"],
            bins=c["codebook_size"],
            dimension=c["vector_quantization_hidden_dimension"],
            input_dimension=size,
            output_dimension=size,
        )
        network = nn.ModuleDict(
            {
                "encoder": SEANetEncoder(**seanet),
                "encoder_transformer": ProjectedTransformer(**transformer),
                "downsample": ConvDownsample1d(**resample),
                "quantizer": quantizer,
            }
        )
    if c["vector_quantization_hidden_dimension"] == size:
        # transformers has no projection between equal sizes; moshi always has one.
        for rvq in (quantizer.rvq_first, quantizer.rvq_rest):
            rvq.input_proj = rvq.output_proj = nn.Identity()
    for module in network.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = c["norm_eps"]  # moshi has no argument for it
    return network


def _interleave(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Reorder the rows of a q or k matrix from RoPE halves (r.. i..) to pairs (r i r i ..)."""
    pairs = weight.reshape(num_heads, 2, -1, weight.shape[1]).transpose(1, 2)
    return pairs.reshape(weight.shape)
