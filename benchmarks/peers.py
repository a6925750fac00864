"""The other engines of a comparison, behind one interface: they speak, and say how long it took.

Each runs with its own code and its own codec; nothing of vox_serve is in them.  Both choose the
likeliest code each time (greedy).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import torch
from moshi.models import loaders
from moshi.models.lm import LMGen, LMModel
from moshi.utils import compile as moshi_compile
from torch import nn
from transformers import CompileConfig, CsmForConditionalGeneration
from transformers.generation import MaxLengthCriteria, StoppingCriteriaList

LONGEST = 150
"""Frames after which a run without a forced count is cut."""


@attrs.frozen
class Timing:
    """One run of a peer over a batch."""

    first_audio: float
    """Seconds from the call to the first sound in hand."""
    frame: float
    """Seconds per frame after the first, the whole batch."""
    real_time_factor: float
    """Time over audio, all rows together."""


class Transformers:
    """`CsmForConditionalGeneration.generate` with its own codec.

    Args:
        directory: a checkpoint in the transformers layout.
        device: torch device.
        dtype: of all weights, the codec's included.
        compiled: with static caches, as its documentation of CSM says: `generate` then compiles
            by itself, on a CPU too where its own flag for that is set, in the first run of each
            batch size.
    """

    def __init__(
        self, directory: Path, device: str, dtype: torch.dtype, compiled: bool = False
    ) -> None:
        model: Any = CsmForConditionalGeneration.from_pretrained(directory, dtype=dtype)
        self._model = model.to(device).eval()
        self._device = torch.device(device)
        codec = model.config.codec_config
        self._sample_rate = codec.sampling_rate
        self._frame_size = round(codec.sampling_rate / codec.frame_rate)
        self._compiled = compiled
        graphs = {} if self._device.type == "cuda" else {"mode": "default"}
        self._compile_config = CompileConfig(**graphs)
        # The flag is its own; without it `generate` compiles on CUDA only.
        self._compile_config._compile_all_devices = True

    def compiled_twin(self) -> Transformers:
        """The same weights, compiled, in no more memory."""
        twin = copy.copy(self)
        twin._compiled = True
        return twin

    def speak(self, ids: torch.Tensor, frames: int | None) -> Timing:
        """Speak text token ids `[B, T]`; it hands nothing out before its end.

        So its first audio is a run of one frame, and the time per frame comes from the difference
        between that and a longer run.

        Args:
            frames: 2 or more; None: until it ends by itself, at most 150.
        """
        _require_frames(frames)
        ids = ids.to(self._device)
        most = frames or LONGEST
        first, _ = self._timed(ids, 1, most)
        spent, samples = self._timed(ids, most, most)
        return Timing(
            first_audio=first,
            frame=(spent - first) / (max(samples) // self._frame_size - 1),
            real_time_factor=spent / (sum(samples) / self._sample_rate),
        )

    def _timed(self, ids: torch.Tensor, frames: int, most: int) -> tuple[float, list[int]]:
        """Seconds, and samples of each row."""
        greedy = {"do_sample": False, "depth_decoder_do_sample": False, "output_audio": True}
        length: dict[str, Any] = {"max_new_tokens": frames}
        for each in (self._model, self._model.depth_decoder):
            each.generation_config.cache_implementation = "static" if self._compiled else None
            each.generation_config.compile_config = self._compile_config if self._compiled else None
        if self._compiled:
            # A static cache is as long as the longest run: another length would compile anew.
            stop = MaxLengthCriteria(ids.shape[1] + frames)
            length = {
                "max_length": ids.shape[1] + most,
                "stopping_criteria": StoppingCriteriaList([stop]),
            }
        start = _now(self._device)
        audio = self._model.generate(ids, **length, **greedy)
        return _now(self._device) - start, [len(each) for each in audio]


class Moshi:
    """moshi's `LMGen` with the sizes of a CSM, random weights and its own Mimi in float32.

    The text stream stands for codebook 0 and the depformer makes the others, so that a frame
    takes as many passes as CSM's.  The depformer's steps share their weights, and as many heads
    share keys and values as CSM's.  It has no text prompt: nothing is prefilled.

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
        """Weights that one frame at batch 1 reads, the codec's not counted."""
        self._mimi = loaders.get_mimi(None, device=device, num_codebooks=self._books)
        for book in self._mimi.quantizer.modules():
            if hasattr(book, "embedding_sum"):
                _random(book.embedding_sum)

    @torch.inference_mode()
    def speak(self, count: int, frames: int) -> Timing:
        """Speak so many rows for so many frames, 2 or more; every frame is sound at once."""
        _require_frames(frames)
        generator = LMGen(self._model, use_sampling=False)
        nothing = torch.empty(count, 0, 1, dtype=torch.int64, device=self._device)
        with _as_installed(), generator.streaming(count), self._mimi.streaming(count):
            start = _now(self._device)
            samples, first = 0, 0.0
            for _ in range(frames):
                codes = generator.step(nothing)
                assert codes is not None  # no codebook is delayed
                samples += self._mimi.decode(codes).numel()
                if not first:
                    first = _now(self._device) - start
            spent = _now(self._device) - start
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
        # Its gated layers are two thirds as wide as they are told.
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
        # One set of weights for all steps; without any schedule it cannot size its cache.
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


@contextmanager
def _as_installed() -> Iterator[None]:
    """moshi's own torch.compile switched on, as it is by default.

    vox_serve_csm turns it off for its process; a peer must not be slowed down by that.
    """
    before = moshi_compile._compile_disabled
    moshi_compile._compile_disabled = False
    try:
        yield
    finally:
        moshi_compile._compile_disabled = before


def _require_frames(frames: int | None) -> None:
    if frames is not None and frames < 2:
        raise ValueError(f"frames must be 2 or more, not {frames}: the first is no measure")


def _now(device: torch.device) -> float:
    """The clock, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
