"""Sampling parameters, and the protocol of the function that picks codes.

Defines the range and the meaning of each parameter; the arithmetic is in
`vox_serve.engine.sampler`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import attrs

from vox_serve.errors import InvalidRequest

if TYPE_CHECKING:
    import torch

REPETITION_WINDOW = 32
"""Frames that `repetition_penalty` looks back over (2.56 s for CSM's 12.5 frames/s)."""


@attrs.frozen
class Range:
    """The range of one sampling parameter, both ends included."""

    kind: type[int] | type[float]
    low: float
    high: float
    text: str

    @property
    def limits(self) -> str:
        """The range in words."""
        return f"from {self.low:g} to {self.high:g}" if self.high < 1e9 else "0 or more"

    def check(self, name: str, value: object) -> None:
        """Raise InvalidRequest unless `value` is a number of this kind within the range."""
        accepted = (int,) if self.kind is int else (int, float)
        if isinstance(value, bool) or not isinstance(value, accepted):
            noun = "an integer" if self.kind is int else "a number"
            raise InvalidRequest(f"{name} must be {noun}, not {type(value).__name__}", name)
        if not self.low <= value <= self.high:  # NaN is not
            raise InvalidRequest(f"{name} must be {self.limits}, not {str(value)[:40]}", name)


RANGES: Mapping[str, Range] = {
    "temperature": Range(float, 0.0, 5.0, "0 always picks the likeliest code (greedy)"),
    "top_k": Range(int, 0, 2**31 - 1, "keep the k likeliest codes; 0 keeps all"),
    "top_p": Range(float, 0.01, 1.0, "keep the likeliest codes that sum to p; 1 keeps all"),
    "min_p": Range(float, 0.0, 1.0, "keep codes at least this share as likely as the likeliest"),
    "repetition_penalty": Range(
        float,
        0.1,
        10.0,
        f"divides logits of codes of the last {REPETITION_WINDOW} frames; 1 is off",
    ),
    "seed": Range(int, 0, 2**63 - 1, "same request and seed, same audio; random unless given"),
}
"""Every sampling parameter with its range and one line of help; flags and HTTP read it."""


@attrs.frozen
class SamplingParams:
    """How codes are picked for one sequence.

    Filters apply in this order: repetition penalty, temperature, top-k, top-p, min-p.
    The repetition penalty acts only on codebook 0, over a window of recent frames.

    Raises:
        InvalidRequest: a value is out of its range; names the field and the limit.
    """

    temperature: float = 0.9
    top_k: int = 50
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __attrs_post_init__(self) -> None:
        for name, allowed in RANGES.items():
            value = getattr(self, name)
            if name != "seed" or value is not None:
                allowed.check(name, value)

    def merged(self, *overrides: Mapping[str, Any]) -> SamplingParams:
        """These parameters with those that the overrides name; later ones win."""
        changes = {name: value for each in overrides for name, value in each.items()}
        return attrs.evolve(self, **changes)


class Sampler(Protocol):
    """Picks one code per row; the runner passes it to `Model.emit`."""

    def __call__(self, logits: torch.Tensor, codebook: int) -> torch.Tensor:
        """Pick codes from `logits` `[B, V]` for codebook number `codebook`.

        Returns int64 `[B]`.  No host read.  Call it once per codebook and frame, in the
        model's own order: codebook and frame number key the random draws.
        """
        ...
