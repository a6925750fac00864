"""Voices and the segments of context that give them their sound."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch


@attrs.frozen(eq=False)
class Segment:
    """One turn of context: who said what, and how it sounded.

    Give the sound as `audio` (float32 `[T]`, mono, at the codec's sample rate) or as
    `codes` (int64 `[K, F]`, audio that is encoded already).  A model gets codes as a tensor;
    messages carry them as an array, because the server loads no torch.
    """

    speaker: int
    text: str
    audio: npt.NDArray[np.float32] | None = None
    codes: torch.Tensor | None = None
    vector: torch.Tensor | None = None
    """The speaker's vector, float32 `[E]`, if the codec computes one (`SpeakerCodec`)."""


@attrs.frozen(eq=False)
class Voice:
    """A named speaker: a speaker id and the segments that come before every text."""

    name: str
    speaker: int
    segments: tuple[Segment, ...] = ()
