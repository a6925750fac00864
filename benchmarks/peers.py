"""transformers as a peer of the benchmarks; `moshi_peer.py` is the other one.

Both have the same interface: they speak and return the time it took.  Each runs its own code and
codec, without any part of vox_serve.  Both sample greedily.
"""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import attrs
import torch
from transformers import CompileConfig, CsmForConditionalGeneration
from transformers.generation import MaxLengthCriteria, StoppingCriteriaList

LONGEST = 150
"""The most frames of a run without a fixed number."""


@attrs.frozen
class Timing:
    """One run of a peer over a batch."""

    first_audio: float
    """Seconds from the call to the first sound."""
    frame: float
    """Seconds per frame after the first, for the whole batch."""
    real_time_factor: float
    """Time over audio, all rows together."""


class Transformers:
    """`CsmForConditionalGeneration.generate` with its own codec.

    Args:
        directory: a checkpoint in the transformers layout.
        device: torch device.
        dtype: of all weights, the codec's included.
        compiled: with static caches, as in its documentation of CSM: `generate` then compiles in
            the first run of each batch size, even on a CPU if its flag for that is set.
    """

    _model: Any = None

    def __init__(
        self, directory: Path, device: str, dtype: torch.dtype, compiled: bool = False
    ) -> None:
        self._directory, self._device = directory, torch.device(device)
        self.hold(dtype)
        codec = self._model.config.codec_config
        self._sample_rate = codec.sampling_rate
        self._frame_size = round(codec.sampling_rate / codec.frame_rate)
        self._compiled = compiled
        graphs = {} if self._device.type == "cuda" else {"mode": "default"}
        self._compile_config = CompileConfig(**graphs)
        # A flag of transformers; without it, `generate` compiles only on CUDA.
        self._compile_config._compile_all_devices = True

    def hold(self, dtype: torch.dtype) -> None:
        """Load the weights in this type, if they are held in another.

        Converting a loaded model is not enough: Mimi keeps its codebooks a second time.
        """
        if self._model is not None and self._model.dtype == dtype:
            return
        self._model = None  # before another one is in memory
        model: Any = CsmForConditionalGeneration.from_pretrained(self._directory, dtype=dtype)
        self._model = model.to(self._device).eval()

    def compiled_twin(self) -> Transformers:
        """The same weights, compiled, in no more memory."""
        twin = copy.copy(self)
        twin._compiled = True
        return twin

    def speak(self, ids: torch.Tensor, frames: int | None) -> Timing:
        """Speak text token ids `[B, T]`.

        It returns nothing before its end, so first audio is measured with a run of one frame, and
        the time per frame is the difference between that and a longer run.

        Args:
            frames: 2 or more; None: until the model ends, at most 150.
        """
        require_frames(frames)
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
            # A static cache has the length of the longest run; another length would compile again.
            stop = MaxLengthCriteria(ids.shape[1] + frames)
            length = {
                "max_length": ids.shape[1] + most,
                "stopping_criteria": StoppingCriteriaList([stop]),
            }
        start = now(self._device)
        audio = self._model.generate(ids, **length, **greedy)
        return now(self._device) - start, [len(each) for each in audio]


def require_frames(frames: int | None) -> None:
    if frames is not None and frames < 2:
        raise ValueError(f"frames must be 2 or more, not {frames}: the first cannot be measured")


def now(device: torch.device) -> float:
    """The time, after all work on the device has ended."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
