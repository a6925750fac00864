"""moshi as a peer of the benchmarks, if it is installed (extra `moshi`); see `peers.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from moshi.models import loaders
from moshi.models.lm import LMGen, LMModel
from torch import nn

from benchmarks.peers import Timing, now, require_frames


class Moshi:
    """moshi's `LMGen` with the sizes of a CSM, random weights and its own Mimi in float32.

    The text stream takes the place of codebook 0 and the depformer generates the others, so that a
    frame takes as many passes as CSM's.  The depformer's steps share their weights, and as many
    heads share keys and values as in CSM.  There is no text prompt, so nothing is prefilled.

    Args:
        config: a CSM checkpoint's config.json.
        device: torch device.
        dtype: of the language model.
    """

    def __init__(self, config: Mapping[str, Any], device: str, dtype: torch.dtype) -> None:
        self._device = torch.device(device)
        self._books = int(config["num_codebooks"])
        model: Any = LMModel(**_lm_sizes(config), device="meta", dtype=dtype)
        self._model = _filled(model.to_empty(device=device)).eval()
        self.bytes_per_frame = _bytes_per_frame(self._model)
        """Weights that one frame at batch 1 reads, without the codec's."""
        self._mimi = loaders.get_mimi(None, device=device, num_codebooks=self._books)
        for book in self._mimi.quantizer.modules():
            if hasattr(book, "embedding_sum"):
                _random(book.embedding_sum)

    @torch.inference_mode()
    def speak(self, count: int, frames: int) -> Timing:
        """Speak a number of rows for 2 or more frames; each frame is decoded at once."""
        require_frames(frames)
        generator = LMGen(self._model, use_sampling=False)
        nothing = torch.empty(count, 0, 1, dtype=torch.int64, device=self._device)
        with generator.streaming(count), self._mimi.streaming(count):
            start = now(self._device)
            samples, first = 0, 0.0
            for _ in range(frames):
                codes = generator.step(nothing)
                assert codes is not None  # no codebook is delayed
                samples += self._mimi.decode(codes).numel()
                if not first:
                    first = now(self._device) - start
            spent = now(self._device) - start
        return Timing(
            first_audio=first,
            frame=(spent - first) / (frames - 1),
            real_time_factor=spent / (samples / self._mimi.sample_rate),
        )


def _lm_sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `LMModel` for a CSM's sizes."""
    depth = config["depth_decoder_config"]
    books, codes = int(config["num_codebooks"]), int(config["codec_config"]["codebook_size"])
    heads, depth_heads = config["num_attention_heads"], depth["num_attention_heads"]
    return {
        "delays": [0] * books,
        "n_q": books - 1,
        "dep_q": books - 1,
        "card": codes,
        "text_card": codes,
        "dim": config["hidden_size"],
        "num_heads": heads,
        "kv_repeat": heads // config["num_key_value_heads"],
        "num_layers": config["num_hidden_layers"],
        # moshi makes gated layers two thirds as wide as this argument.
        "hidden_scale": 1.5 * config["intermediate_size"] / config["hidden_size"],
        "context": config["max_position_embeddings"],
        "norm": "rms_norm_f32",
        "gating": "silu",
        "positional_embedding": "rope",
        "max_period": 500_000,
        "depformer_dim": depth["hidden_size"],
        "depformer_num_heads": depth_heads,
        "depformer_kv_repeat": depth_heads // depth["num_key_value_heads"],
        "depformer_num_layers": depth["num_hidden_layers"],
        "depformer_dim_feedforward": 3 * depth["intermediate_size"] // 2,
        "depformer_gating": "silu",
        "depformer_pos_emb": "rope",
        # One set of weights for all steps; without a schedule, moshi cannot size its cache.
        "depformer_weights_per_step": True,
        "depformer_weights_per_step_schedule": [0] * (books - 1),
        "depformer_multi_linear": False,
    }


def _filled(model: nn.Module) -> Any:
    for parameter in model.parameters():
        _random(parameter)
    return model


@torch.no_grad()
def _random(weight: torch.Tensor) -> None:
    """Uniform with the scale of a trained network, never zero; one for a norm."""
    if weight.squeeze().dim() < 2:
        weight.fill_(1.0)
    else:
        scale = (3.0 / weight.shape[-1]) ** 0.5
        weight.uniform_(-scale, scale)


def _bytes_per_frame(model: Any) -> int:
    def size(*parts: nn.Module) -> int:
        return sum(p.nbytes for part in parts for p in part.parameters())

    passes: int = model.dep_q
    once = size(model.transformer, model.text_linear, model.linears)
    return once + passes * size(model.depformer, model.depformer_in)
