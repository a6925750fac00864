"""Sampling parameters, and the protocol of the sampler.

Defines the range and the meaning of each parameter; the arithmetic is in
`vox_serve.engine.sampler`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, TypeAlias

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
        if self.kind is int:
            return f"from {self.low} to {self.high}"
        return f"from {self.low:g} to {self.high:g}"

    def check(self, name: str, value: object) -> None:
        """Raise InvalidRequest unless `value` is a number of this kind within the range."""
        accepted = (int,) if self.kind is int else (int, float)
        if isinstance(value, bool) or not isinstance(value, accepted):
            noun = "an integer" if self.kind is int else "a number"
            raise InvalidRequest(f"{name} must be {noun}, not {type(value).__name__}", name)
        if not self.low <= value <= self.high:  # NaN is not
            raise InvalidRequest(f"{name} must be {self.limits}, not {str(value)[:40]}", name)

    @property
    def schema(self) -> dict[str, Any]:
        """As a JSON Schema."""
        kind = "integer" if self.kind is int else "number"
        bounds = {"minimum": self.kind(self.low), "maximum": self.kind(self.high)}
        return {"type": kind, **bounds, "description": self.text}


@attrs.frozen
class Choice:
    """The values of a parameter that is one of a few words."""

    values: tuple[str, ...]
    text: str

    def check(self, name: str, value: object) -> None:
        """Raise InvalidRequest unless `value` is one of them."""
        if value not in self.values:
            known = ", ".join(self.values)
            raise InvalidRequest(f"{name} must be one of {known}, not {str(value)[:40]!r}", name)

    @property
    def schema(self) -> dict[str, Any]:
        """As a JSON Schema."""
        return {"type": "string", "enum": list(self.values), "description": self.text}


@attrs.frozen
class Words:
    """The length of a parameter that is free text, in characters; it may be empty."""

    most: int
    text: str

    def check(self, name: str, value: object) -> None:
        """Raise InvalidRequest unless `value` is a text that is not too long."""
        if not isinstance(value, str):
            raise InvalidRequest(f"{name} must be text, not {type(value).__name__}", name)
        if len(value) > self.most:
            raise InvalidRequest(
                f"{name} has {len(value)} characters; the limit is {self.most}", name
            )

    @property
    def schema(self) -> dict[str, Any]:
        """As a JSON Schema."""
        return {"type": "string", "maxLength": self.most, "description": self.text}


Allowed: TypeAlias = Range | Choice | Words
"""What the value of a parameter may be."""


def parameter(default: Any, allowed: Allowed, kw_only: bool = False) -> Any:
    """A field of a `Parameters` class."""
    return attrs.field(default=default, metadata={"allowed": allowed}, kw_only=kw_only)


@attrs.frozen
class Parameters:
    """The settings of a request that change how a model speaks, one field each.

    Numbers reach `Model.emit`, with a value per row; `Model.prompt` sees all of them.

    A model that picks codes has `SamplingParams`.  One that has other parameters, or more,
    declares a class of its own, in a module that loads no torch:

        @attrs.frozen
        class MyParameters(SamplingParams):
            guidance_scale: float = parameter(3.0, Range(float, 1.0, 10.0, "weight of the text"))

    Raises:
        InvalidRequest: a value is out of its range; names the field and the limit.
    """

    seed: int | None = parameter(
        None,
        Range(int, 0, 2**63 - 1, "same request and seed, same audio; random unless given"),
        kw_only=True,
    )

    def __attrs_post_init__(self) -> None:
        for name, allowed in self.allowed().items():
            value = getattr(self, name)
            if name != "seed" or value is not None:
                allowed.check(name, value)

    @classmethod
    def allowed(cls) -> dict[str, Allowed]:
        """Every parameter with its allowed values and one line of help."""
        return {field.name: field.metadata["allowed"] for field in attrs.fields(cls)}

    @classmethod
    def ranges(cls) -> dict[str, Range]:
        """The parameters that are numbers."""
        return {n: each for n, each in cls.allowed().items() if isinstance(each, Range)}

    def merged(self, *overrides: Mapping[str, Any]) -> Self:
        """These parameters with those that the overrides name; later ones win.

        Raises:
            InvalidRequest: a value is not allowed, or the model does not have the parameter.
        """
        changes = {name: value for each in overrides for name, value in each.items()}
        unknown = changes.keys() - self.allowed().keys()
        if unknown:
            name, known = min(unknown), ", ".join(self.allowed())
            raise InvalidRequest(f"this model has no parameter {name}; it has {known}", name)
        return attrs.evolve(self, **changes)


@attrs.frozen
class SamplingParams(Parameters):
    """How codes are picked for one sequence.

    Filters apply in this order: repetition penalty, temperature, top-k, top-p, min-p.
    The repetition penalty acts only on codebook 0, over a window of recent frames.
    """

    repetition_window: ClassVar[int] = REPETITION_WINDOW
    """In frames; a model's own class may have another.  Up to 32 it costs nothing on a GPU."""

    temperature: float = parameter(
        0.9, Range(float, 0.0, 5.0, "0 always picks the likeliest code (greedy)")
    )
    top_k: int = parameter(50, Range(int, 0, 2**31 - 1, "keep the k likeliest codes; 0 keeps all"))
    top_p: float = parameter(
        1.0, Range(float, 0.01, 1.0, "keep the likeliest codes that sum to p; 1 keeps all")
    )
    min_p: float = parameter(
        0.0, Range(float, 0.0, 1.0, "keep codes at least this share as likely as the likeliest")
    )
    repetition_penalty: float = parameter(
        1.0,
        Range(
            float,
            0.1,
            10.0,
            f"divides logits of codes of the last {REPETITION_WINDOW} frames; 1 is off",
        ),
    )


RANGES: Mapping[str, Range] = SamplingParams.ranges()
"""The parameters of a model that picks codes; each has a flag and a field of its own."""


class Sampler(Protocol):
    """The rows of one batch as a model sees them, and the sampler that picks its codes.

    The runner passes it to `Model.emit`.  Nothing here is read by the host, and nothing
    depends on the other rows.
    """

    slots: torch.Tensor
    """int64 `[B]`: where a model keeps the state of each row."""

    @property
    def frame(self) -> torch.Tensor:
        """int64 `[B]`: the number of the frame in its utterance, from 0."""
        ...

    def __call__(self, logits: torch.Tensor, codebook: int) -> torch.Tensor:
        """Pick codes from `logits` `[B, V]` for codebook number `codebook`.

        Returns int64 `[B]`.  Call it once per codebook and frame, in the model's own order:
        codebook and frame number key the random draws.
        """
        ...

    def noise(self, size: int, place: int = 0) -> torch.Tensor:
        """Standard normal numbers, float32 `[B, size]`, keyed by seed, frame and `place`."""
        ...

    def parameter(self, name: str) -> torch.Tensor:
        """A number that the model's `Parameters` declare, `[B]`; float32 or int64."""
        ...

    def largest(self, name: str) -> float:
        """The largest value of a parameter among the rows; where the host does not know which
        rows there are, as in a captured step, the largest that is allowed."""
        ...
