"""Adapters as the library PEFT saves them: low-rank changes of a checkpoint's weights.

LoRA (Hu et al., 2021): a matrix W becomes W + scale * B @ A.  The change is made as the weights are
read, so a merged model is as fast as its base, and a plugin needs no code for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from vox_serve.errors import CheckpointError
from vox_serve.hub import read_json

PREFIX = "base_model.model."
PARTS = (".lora_A.weight", ".lora_B.weight")
MOST = 2**20
"""Of rank and alpha."""
UNSUPPORTED = ("use_dora", "fan_in_fan_out", "lora_bias", "rank_pattern", "alpha_pattern")


class Adapter:
    """The changes of one adapter, by the base's names of tensors.

    Args:
        directory: with `adapter_config.json` and `adapter_model.safetensors`.

    Raises:
        CheckpointError: a file is missing or cannot be read, or the adapter is not a plain LoRA.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        config = read_json(directory / "adapter_config.json")
        kind, odd = config.get("peft_type"), [key for key in UNSUPPORTED if config.get(key)]
        if kind != "LORA" or odd:
            raise CheckpointError(
                f"{directory}: only plain LoRA adapters can be merged, not "
                + (f"peft_type {kind!r}" if kind != "LORA" else f"one with {odd[0]}")
            )
        self._scale = _scale(directory, config)
        path = directory / "adapter_model.safetensors"
        if not path.is_file():
            raise CheckpointError(f"{path}: this file is missing; adapters are safetensors only")
        try:
            stored = load_file(path)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: cannot be read: {error}") from error
        self._changes = {name.removeprefix(PREFIX): tensor for name, tensor in stored.items()}

    def merge(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of the base with what the adapter changes of it, in the same dtype.

        Raises:
            CheckpointError: the shapes do not fit.
        """
        a, b = (self._changes.pop(name.removesuffix(".weight") + part, None) for part in PARTS)
        whole = self._changes.pop(name, None)  # `modules_to_save`
        if whole is not None:
            changed = whole
        elif a is not None and b is not None and b.ndim == a.ndim == 2 and b.shape[1] == len(a):
            changed = b.float() @ a.float() * self._scale
        elif a is None and b is None:
            return tensor
        else:
            raise CheckpointError(f"{self._directory}: the two parts of {name} do not fit")
        if changed.shape != tensor.shape:
            raise CheckpointError(
                f"{self._directory}: the change of {name} has shape {list(changed.shape)}, but the "
                f"checkpoint's tensor has {list(tensor.shape)}"
            )
        result: torch.Tensor = changed if whole is not None else tensor.float() + changed
        return result.to(tensor.dtype)

    def finish(self) -> None:
        """Raise CheckpointError if a change has not been merged."""
        if self._changes:
            first = min(self._changes)
            raise CheckpointError(
                f"{self._directory}: {len(self._changes)} tensors do not belong to this model, the "
                f"first is {first}"
            )


def _scale(directory: Path, config: dict[str, Any]) -> float:
    def number(name: str) -> float:
        value = config.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MOST:
            raise CheckpointError(
                f"{directory}/adapter_config.json: {name} must be a number above 0 and at most "
                f"{MOST}, not {str(value)[:40]}"
            )
        return float(value)

    rank = number("r")
    return number("lora_alpha") / (sqrt(rank) if config.get("use_rslora") else rank)


_merged: ContextVar[Adapter | None] = ContextVar("adapter", default=None)


@contextmanager
def merging(directory: Path | None) -> Iterator[None]:
    """Merge an adapter into all weights that `WeightFiles` reads in this block; None: merge none.

    Raises:
        CheckpointError: also at the end, if a change has not been merged.
    """
    adapter = None if directory is None else Adapter(directory)
    before = _merged.set(adapter)
    try:
        yield
    finally:
        _merged.reset(before)
    if adapter is not None:
        adapter.finish()


def merged(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A tensor with the change of the adapter that is being merged, if there is one."""
    adapter = _merged.get()
    return tensor if adapter is None else adapter.merge(name, tensor)
