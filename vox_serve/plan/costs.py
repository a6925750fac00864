"""The times of a model's steps on a device: measured once, kept as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from vox_serve.errors import ConfigError


@attrs.frozen
class Step:
    """Seconds of one step in which `batch` sequences speak.

    Args:
        batch: sequences.
        advance: the backbone, without its context.
        advance_position: added to `advance` for each position of each sequence's context.
        emit: picking the codes of a frame.
        codec: decoding the sound, averaged over the steps.
        rest: everything else in the worker: scheduling, messages.
    """

    batch: int
    advance: float
    advance_position: float
    emit: float
    codec: float
    rest: float


@attrs.frozen
class Line:
    """A figure that grows with a size."""

    base: float
    each: float

    def at(self, size: float) -> float:
        return self.base + self.each * size


@attrs.frozen
class Costs:
    """The times of a model on a device, and the limits that decide how it is used.

    Args:
        model, device, machine, source: what was measured, where, and how.
        slots: the largest batch that was measured.
        steps: by batch, ascending; a batch between two of them is interpolated.
        prefill: seconds of a pass over prompts, by positions (padding included).
        prepare: seconds to check a request and build its prompt.
        speech: seconds of audio by characters of text.
        spread: the relative standard deviation of an utterance's seconds from `speech`.
        positions: positions of a prompt by characters of text.
        prefix_positions: how many positions the prefix cache holds.
        max_positions, frame_rate, frames_per_step, takes_context, max_characters, max_words: the
            model's, as in `EngineInfo` and `Codec`.
    """

    model: str
    device: str
    machine: str
    source: str
    slots: int
    max_positions: int
    frame_rate: float
    frames_per_step: int
    takes_context: bool
    max_characters: int | None
    max_words: int | None
    prefix_positions: int
    prepare: float
    prefill: Line
    speech: Line
    positions: Line
    spread: float
    steps: tuple[Step, ...]

    def step(self, batch: int) -> Step:
        """The step of a batch; linear interpolation between two measured ones."""
        sizes = [step.batch for step in self.steps]
        if batch > sizes[-1]:
            raise ConfigError(f"slots: steps were measured up to a batch of {sizes[-1]}")

        def at(name: str) -> float:
            return float(np.interp(batch, sizes, [getattr(step, name) for step in self.steps]))

        names = [field.name for field in attrs.fields(Step)][1:]
        return Step(batch, **{name: at(name) for name in names})

    def write(self, path: Path) -> None:
        """Write it as JSON.  Raises ConfigError."""
        try:
            path.write_text(json.dumps(attrs.asdict(self), indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error.strerror}") from error

    @classmethod
    def read(cls, path: Path) -> Costs:
        """Read what `write` wrote.

        Raises:
            ConfigError: the file cannot be read, or holds something else.
        """
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            return cls._of(found)
        except OSError as error:
            raise ConfigError(f"costs: {path} cannot be read: {error.strerror}") from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigError(
                f"costs: {path} is not a file of `vox-serve plan --measure` ({error})"
            ) from error

    @classmethod
    def _of(cls, found: dict[str, Any]) -> Costs:
        lines = {name: Line(**found[name]) for name in ("prefill", "speech", "positions")}
        steps = tuple(sorted((Step(**each) for each in found["steps"]), key=lambda s: s.batch))
        costs = cls(**{**found, **lines, "steps": steps})
        numbers = [costs.prepare, *attrs.astuple(costs.prefill), costs.frame_rate]
        numbers += [number for step in steps for number in attrs.astuple(step)]
        if not steps or steps[0].batch != 1 or not all(np.isfinite(numbers)) or min(numbers) < 0:
            raise ValueError("steps must begin at batch 1, with finite times of 0 or more")
        return costs
