"""Mimi: converts 24 kHz sound to frames of 80 ms and back.

Reads the transformers configuration of a Mimi checkpoint.

Mimi is described in section 3.3 of the Moshi paper, https://arxiv.org/abs/2410.00037.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from torch import nn

from vox_serve.nn.linear import held_bytes
from vox_serve.nn.mimi_decoder import MimiDecoder
from vox_serve.nn.mimi_encoder import PIECE_FRAMES, MimiEncoder
from vox_serve.nn.mimi_quantizer import CodeTable, Quantizer, quantizer_tensors
from vox_serve.nn.seanet import Read
from vox_serve.nn.weights import WeightLoader

LATENTS_PER_FRAME = 2
"""Latents per frame; fixed in transformers' `MimiModel`."""

# The defaults of transformers' MimiConfig, which a published config.json may omit.
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


def _read_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in the defaults.  Raises ValueError if a setting is not supported."""
    if config.get("sliding_window", 0) is None:
        raise ValueError("codec_config: sliding_window is null; a stream needs a finite window")
    c = _DEFAULTS | {key: value for key, value in config.items() if value is not None}
    c["rope"] = {"rope_theta": c.get("rope_theta", 10000.0)}  # the name in transformers 4
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


class MimiClips:
    """Mimi's encoder: clips to codes.  Float32 throughout; build, `load`, then `encode`."""

    def __init__(
        self, config: Mapping[str, Any], num_codebooks: int, device: torch.device | str = "cpu"
    ) -> None:
        """Build an unfilled encoder of any size.

        Args:
            config: keys of transformers' `MimiConfig`.
            num_codebooks: K, the number of the checkpoint's codebooks to use.
            device: of its weights and state.

        Raises:
            ValueError: the configuration has a setting that is not supported.
        """
        c = _read_config(config)
        semantic, total = c["num_semantic_quantizers"], c["num_quantizers"]
        if not (semantic <= num_codebooks <= total and semantic < total):
            raise ValueError(
                f"codec_config: num_quantizers is {total}, {semantic} of them semantic; "
                f"cannot use {num_codebooks} codebooks"
            )
        self.sample_rate: int = c["sampling_rate"]
        self.frame_size: int = c["frame_size"]
        self.frame_rate: float = self.sample_rate / self.frame_size
        self.frame_width = num_codebooks
        self.codebook_size: int = c["codebook_size"]
        self.device = torch.device(device)
        self._config = c

    def load(self, loader: WeightLoader, prefix: str = "") -> None:
        """Fill the weights from a checkpoint's tensors, one at a time.

        Args:
            loader: has the tensors under the names that transformers uses.
            prefix: of each name.

        Raises:
            CheckpointError: a tensor is missing or has another shape.
        """
        read = self._reader(loader, prefix)
        c, size = self._config, self._config["hidden_size"]
        quantizer = Quantizer(c, self.frame_width, read)
        self._encoder = MimiEncoder(c, quantizer, size, LATENTS_PER_FRAME, read)
        loader.ignore(*(prefix + name for name in quantizer_tensors(c)))

    def _reader(self, loader: WeightLoader, prefix: str) -> Read:
        def read(name: str, *shape: int) -> torch.Tensor:
            tensor = loader.read(prefix + name, shape)
            # A copy, because the tensor may be a view of the file.
            return tensor.to(self.device, torch.float32, copy=True)

        return read

    @property
    def weight_bytes(self) -> int:
        """Memory of the weights in bytes."""
        return held_bytes(self._encoder)

    @torch.no_grad()
    def encode(self, pcm: torch.Tensor) -> torch.Tensor:
        """Encode a clip; see `Codec.encode`.  The last frame is padded with silence.

        The clip is encoded in pieces, so a long one takes no more memory than a short one.
        """
        if not len(pcm):
            return torch.empty(self.frame_width, 0, dtype=torch.int64, device=self.device)
        pcm = pcm.to(self.device, torch.float32)
        pcm = nn.functional.pad(pcm, (0, -len(pcm) % self.frame_size))
        clip = self._encoder.begin()
        pieces = torch.split(pcm, PIECE_FRAMES * self.frame_size)
        return torch.cat([self._encoder(piece, clip) for piece in pieces], dim=1)


class Mimi(MimiClips):
    """Encoder and decoder: implements `vox_serve.EncodingCodec`.  `allocate` before `step`."""

    frames_per_step = 1

    def load(self, loader: WeightLoader, prefix: str = "") -> None:
        super().load(loader, prefix)
        c, read = self._config, self._reader(loader, prefix)
        table = CodeTable(c, self.frame_width, read)
        self._decoder = MimiDecoder(c, table, LATENTS_PER_FRAME, read)

    @property
    def weight_bytes(self) -> int:
        return super().weight_bytes + held_bytes(self._decoder)

    def allocate(self, num_slots: int) -> int:
        """Allocate the state rows of slots 0 .. num_slots - 1; returns their bytes."""
        return self._decoder.allocate(num_slots)

    @torch.no_grad()
    def step(
        self, codes: torch.Tensor, slots: torch.Tensor, reset: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Decode a frame `[B, K, 1]` of each slot; see `Codec.step`.  N samples are valid."""
        pcm = self._decoder(codes.squeeze(2), slots, reset)
        return pcm, torch.full_like(slots, self.frame_size)

    def clear(self, slot: int) -> None:
        """Reset a slot's row; see `Codec.clear`."""
        self._decoder.clear(slot)
