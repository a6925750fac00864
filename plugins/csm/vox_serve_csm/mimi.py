"""Mimi, the codec inside CSM: 24 kHz sound to frames of 80 ms and back, through `moshi`.

This module knows moshi's building blocks, the transformers configuration and tensor names
of a Mimi checkpoint, and how to hold its streaming state in one row per slot.  It knows
nothing of CSM, of checkpoint files or of the engine.

Mimi is described in section 3.3 of the Moshi paper, https://arxiv.org/abs/2410.00037.  On
the way out a frame of codes becomes one latent (quantizer), two latents (upsample), two
latents that have seen the last `sliding_window` ones (transformer) and sound (SEANet).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from math import prod
from typing import Any

import torch
from moshi.modules.resample import ConvDownsample1d, ConvTrUpsample1d
from moshi.modules.seanet import SEANetDecoder, SEANetEncoder
from moshi.modules.transformer import ProjectedTransformer
from moshi.quantization.vq import SplitResidualVectorQuantizer
from moshi.utils.compile import no_compile
from torch import nn

from vox_serve.nn import held_bytes, uninitialised
from vox_serve_csm.mimi_decoder import MimiDecoder

LATENTS_PER_FRAME = 2
"""Stride between latents and frames: fixed in transformers' `MimiModel`, so here too."""

# moshi would run torch.compile on CUDA.  Its switch is one global, and `encode` may run in a
# thread beside `step`: so it is thrown once, for good.
no_compile().__enter__()

# transformers' MimiConfig defaults: a published config.json may leave them out.
_DEFAULTS: dict[str, Any] = {
    "sampling_rate": 24000,
    "hidden_size": 512,
    "num_filters": 64,
    "num_residual_layers": 1,
    "upsampling_ratios": [8, 6, 5, 4],
    "kernel_size": 7,
    "last_kernel_size": 3,
    "residual_kernel_size": 3,
    "dilation_growth_rate": 2,
    "compress": 2,
    "use_conv_shortcut": False,
    "codebook_size": 2048,
    "vector_quantization_hidden_dimension": 256,
    "num_quantizers": 32,
    "num_semantic_quantizers": 1,
    "num_hidden_layers": 8,
    "intermediate_size": 2048,
    "num_attention_heads": 8,
    "norm_eps": 1e-5,
    "sliding_window": 250,
    "layer_scale_initial_scale": 0.01,
}

# moshi's parameter names become transformers' names by these substitutions, in this order.
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


def _read_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in the defaults; refuse with a ValueError what moshi's Mimi cannot reproduce."""
    if config.get("sliding_window", 0) is None:
        raise ValueError("codec_config: sliding_window is null; a stream needs a finite window")
    c = _DEFAULTS | {key: value for key, value in config.items() if value is not None}
    c["rope"] = {"rope_theta": c.get("rope_theta", 10000.0)}  # transformers 4's spelling
    c["rope"] |= c.get("rope_scaling", {}) | c.get("rope_parameters", {})
    c["frame_size"] = LATENTS_PER_FRAME * prod(c["upsampling_ratios"])
    frame_rate = c["sampling_rate"] / c["frame_size"]
    head_dim = c["hidden_size"] // c["num_attention_heads"]
    supported = {
        "audio_channels": 1,
        "use_causal_conv": True,
        "pad_mode": "constant",
        "trim_right_ratio": 1.0,
        "hidden_act": "gelu",
        "attention_bias": False,
        "num_key_value_heads": c["num_attention_heads"],
        "hidden_size": head_dim * c["num_attention_heads"],
        "head_dim": head_dim,
        "upsample_groups": c["hidden_size"],
        "codebook_dim": c["vector_quantization_hidden_dimension"],
        "frame_rate": frame_rate,
        "_frame_rate": frame_rate,
    }
    for key, value in supported.items():
        if c.get(key, value) != value:
            raise ValueError(f"codec_config: {key} is {c[key]!r}; only {value!r} is supported")
    rope_type = c["rope"].get("rope_type", c["rope"].get("type", "default"))
    if rope_type != "default":
        raise ValueError(f"codec_config: rope_type is {rope_type!r}; only 'default' is supported")
    return c


def _build(c: Mapping[str, Any]) -> Any:
    """Build moshi's modules, unfilled, on the meta device; returns an `nn.ModuleDict`."""
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
        "max_period": c["rope"]["rope_theta"],
        "positional_embedding": "rope",
        "conv_layout": True,
        "causal": True,
    }
    resample = {"stride": LATENTS_PER_FRAME, "dimension": size, "causal": True, "learnt": True}
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
                "upsample": ConvTrUpsample1d(**resample, channel_wise=True),
                "decoder_transformer": ProjectedTransformer(**transformer),
                "decoder": SEANetDecoder(**seanet),
            }
        )
    if c["vector_quantization_hidden_dimension"] == size:
        # transformers has no projection between equal sizes; moshi always makes one.
        for rvq in (quantizer.rvq_first, quantizer.rvq_rest):
            rvq.input_proj = rvq.output_proj = nn.Identity()
    for module in network.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = c["norm_eps"]  # moshi offers no argument for it
    return network


def _interleave(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Reorder the rows of a q or k matrix from RoPE halves (r.. i..) to pairs (r i r i ..)."""
    pairs = weight.reshape(num_heads, 2, -1, weight.shape[1]).transpose(1, 2)
    return pairs.reshape(weight.shape)


class Mimi:
    """The `Codec` of CSM.  Float32 throughout; build, `load`, `allocate`, then use."""

    def __init__(
        self, config: Mapping[str, Any], num_codebooks: int, device: torch.device | str = "cpu"
    ) -> None:
        """Build an unfilled codec of any size.

        Args:
            config: keys of transformers' `MimiConfig` (a CSM checkpoint's `codec_config`).
            num_codebooks: K, how many of the checkpoint's codebooks are in use.
            device: where its weights and state live.

        Raises:
            ValueError: the configuration asks for what moshi's Mimi cannot do.
        """
        c = _read_config(config)
        semantic, total = c["num_semantic_quantizers"], c["num_quantizers"]
        if not (semantic <= num_codebooks <= total and semantic < total):
            raise ValueError(
                f"codec_config: num_quantizers is {total}, of them {semantic} semantic; "
                f"cannot use {num_codebooks} codebooks"
            )
        self.sample_rate: int = c["sampling_rate"]
        self.frame_size: int = c["frame_size"]
        self.frames_per_step = 1
        self.frame_rate: float = self.sample_rate / self.frame_size
        self.num_codebooks = num_codebooks
        self.codebook_size: int = c["codebook_size"]
        self.device = torch.device(device)
        self._config = c

    def load(self, read: Callable[[str], torch.Tensor], names: Iterable[str]) -> None:
        """Fill the weights from a checkpoint's tensors, one at a time.

        Args:
            read: gives the tensor of a transformers name (without the `codec_model.` prefix).
            names: all names the checkpoint has under that prefix.

        Raises:
            ValueError: a tensor is missing, has another shape, or is left over.
        """
        network = _build(self._config).to_empty(device=self.device).eval().requires_grad_(False)
        network["quantizer"].set_num_codebooks(self.num_codebooks)
        num_heads = self._config["num_attention_heads"]
        unread = set(names)

        def take(name: str, shape: torch.Size) -> torch.Tensor:
            if name not in unread:
                raise ValueError(f"codec tensor {name} is missing")
            unread.remove(name)
            tensor = read(name)
            if tensor.shape != shape:
                raise ValueError(
                    f"codec tensor {name} has shape {list(tensor.shape)}, not {list(shape)}"
                )
            return tensor

        for target, tensor in network.state_dict().items():
            name = target
            for pattern, replacement in _RENAMES:
                name = re.sub(pattern, replacement, name)
            if name.endswith(".in_projs.0.weight"):
                name = name.removesuffix("in_projs.0.weight")
                q, k, v = tensor.chunk(3)
                q.copy_(_interleave(take(f"{name}q_proj.weight", q.shape), num_heads))
                k.copy_(_interleave(take(f"{name}k_proj.weight", k.shape), num_heads))
                v.copy_(take(f"{name}v_proj.weight", v.shape))
            else:
                tensor.copy_(take(name, tensor.shape))
        if unread:
            raise ValueError(
                f"{len(unread)} codec tensors have no place in Mimi, such as {min(unread)}"
            )
        self._decoder = MimiDecoder(network, self.num_codebooks, LATENTS_PER_FRAME)
        for part in ("upsample", "decoder_transformer", "decoder"):
            del network[part]
        self._network = network

    @property
    def weight_bytes(self) -> int:
        """Memory that the weights take."""
        return held_bytes(self._network) + held_bytes(self._decoder)

    def allocate(self, num_slots: int) -> int:
        """Make the state rows of slots 0 .. num_slots - 1."""
        return self._decoder.allocate(num_slots)

    @torch.no_grad()
    def step(
        self, codes: torch.Tensor, slots: torch.Tensor, reset: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Decode a frame `[B, K, 1]` of each slot; see `Codec.step`.  N samples are valid."""
        pcm = self._decoder(codes.squeeze(2), slots, reset)
        return pcm, torch.full_like(slots, self.frame_size)

    def clear(self, slot: int) -> None:
        """Forget what a slot's row holds; see `Codec.clear`."""
        self._decoder.clear(slot)

    @torch.no_grad()
    def encode(self, pcm: torch.Tensor) -> torch.Tensor:
        """Encode a clip; see `Codec.encode`.  Its last frame is filled up with silence."""
        if not len(pcm):
            return torch.empty(self.num_codebooks, 0, dtype=torch.int64, device=self.device)
        pcm = pcm.to(self.device, torch.float32)
        latents = nn.functional.pad(pcm, (0, -len(pcm) % self.frame_size))[None, None]
        latents = self._network["encoder"](latents)
        (latents,) = self._network["encoder_transformer"](latents)
        latents = self._network["downsample"](latents)
        codes: torch.Tensor = self._network["quantizer"].encode(latents)
        return codes[0]
