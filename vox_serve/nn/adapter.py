"""Adapters in the format of the PEFT library: low-rank changes of a checkpoint's weights.

LoRA (Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021): a matrix W becomes
W + scale * B @ A.  Plugins need no code for this.  There are two ways to use them:

`merging`: one adapter is added to the weights as they are read, so the model is as fast as its
base.

`beside`: several share the base's weights, and each row of a batch chooses one, or none.  A changed
layer holds all A, stacked by rows, and all B, concatenated by columns.  It computes the products
with all of A, and before B sets those of adapters other than the row's to zero.  So two products
serve any mixture of adapters, for one position or a prompt, with static shapes.  They take time in
proportion to the sum of the ranks.  (S-LoRA, Sheng et al. 2023, and Punica, Chen
et al. 2023, gather each row's A and B instead, which is worthwhile for hundreds of adapters.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from vox_serve.errors import CheckpointError
from vox_serve.hub import read_json

PREFIX = "base_model.model."
PARTS = (".lora_A.weight", ".lora_B.weight")
MOST = 2**20
"""Of rank and alpha."""
ALIGNED = 16
"""The ranks of a layer are padded to a multiple of this: the products are faster."""
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
        pair, whole = self._pair(name), self._changes.pop(name, None)  # `modules_to_save`
        if whole is not None:
            changed = whole
        elif pair is not None:
            changed = pair[1] @ pair[0]
        else:
            return tensor
        self._require(name, changed.shape, tensor.shape)
        result: torch.Tensor = changed if whole is not None else tensor.float() + changed
        return result.to(tensor.dtype)

    def factors(self, name: str, shape: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor] | None:
        """A `[r, in]` and scaled B `[out, r]` for a tensor of this shape; None if it is unchanged.

        Raises:
            CheckpointError: the shapes do not fit.
        """
        pair = self._pair(name)
        if pair is None:
            return None
        self._require(name, (len(pair[1]), pair[0].shape[1]), shape)
        return pair if all(map(torch.any, pair)) else None

    def _pair(self, name: str) -> tuple[torch.Tensor, torch.Tensor] | None:
        a, b = (self._changes.pop(name.removesuffix(".weight") + part, None) for part in PARTS)
        if a is None and b is None:
            return None
        if a is None or b is None or not a.ndim == b.ndim == 2 or b.shape[1] != len(a):
            raise CheckpointError(f"{self._directory}: the two parts of {name} do not fit")
        return a.float(), b.float() * self._scale

    def _require(self, name: str, found: Sequence[int], shape: Sequence[int]) -> None:
        if tuple(found) != tuple(shape):
            raise CheckpointError(
                f"{self._directory}: the change of {name} has shape {list(found)}, but the "
                f"checkpoint's tensor has {list(shape)}"
            )

    def finish(self) -> None:
        """Raise CheckpointError if a change has not been merged."""
        if self._changes:
            raise CheckpointError(
                f"{self._directory}: {len(self._changes)} tensors do not belong to this model, the "
                f"first is {min(self._changes)}"
            )

    def finish_beside(self) -> None:
        """Raise CheckpointError if a change other than zeros has not been used."""
        left = {
            name
            for name, tensor in self._changes.items()
            # A codec without gradients, for instance, keeps the zeros that PEFT begins with.
            if not name.endswith(PARTS) or (name.endswith(PARTS[1]) and torch.any(tensor))
        }
        if left:
            raise CheckpointError(
                f"{self._directory}: changes {min(left)}, which is not a linear layer of its own "
                f"in this model, so it cannot be served beside others ({len(left)} such tensors); "
                f"serve it alone: --adapter {self._directory}"
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


class Adapted(nn.Module):
    """A linear layer with several adapters; see the module's docstring.

    Args:
        base: the layer, in any form.
        name: of its tensor, for messages.
        down: `[K, in]`, K the sum of the ranks.
        up: `[out, K]`.
        owners: int64 `[K]`, the number of the adapter that each rank belongs to.
    """

    down: torch.Tensor
    up: torch.Tensor

    def __init__(
        self,
        base: nn.Module,
        name: str,
        down: torch.Tensor,
        up: torch.Tensor,
        owners: torch.Tensor,
    ) -> None:
        super().__init__()
        self.base = base
        self._name = name
        self._owners = owners  # shared with the layers that have the same
        self.register_buffer("down", down)
        self.register_buffer("up", up)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, ..., in]` to `[B, ..., out]`.  Raises CheckpointError outside `rows_with`."""
        y: torch.Tensor = self.base(x)
        rows = _rows.get()
        if rows is None:
            return y
        if rows is _NOT_SPEAKING:
            raise CheckpointError(
                f"an adapter changes {self._name}, which this model computes with while it loads, "
                "so it cannot be served beside others; serve it alone: --adapter DIRECTORY"
            )
        mine = rows.mask(self._owners).view(-1, *[1] * (x.ndim - 2), len(self.down))
        low = F.linear(x, self.down)
        return y + F.linear(torch.where(mine, low, 0.0), self.up)


class _Rows:
    """The adapters `[B]` of the rows of a batch."""

    def __init__(self, numbers: torch.Tensor) -> None:
        self._numbers = numbers
        self._masks: dict[int, torch.Tensor] = {}

    def mask(self, owners: torch.Tensor) -> torch.Tensor:
        """Mask `[B, K]` of the ranks that belong to each row's adapter."""
        found = self._masks.get(id(owners))
        if found is None:
            found = self._masks[id(owners)] = self._numbers[:, None] == owners
        return found


_NOT_SPEAKING = _Rows(torch.empty(0))
_rows: ContextVar[_Rows | None] = ContextVar("rows", default=_NOT_SPEAKING)


@contextmanager
def rows_with(numbers: torch.Tensor | None) -> Iterator[None]:
    """Within the block, the model runs a batch whose rows have these adapters.

    Args:
        numbers: int64 `[B]`, from 1; 0: the row has no adapter.  None: no row has one.
    """
    before = _rows.set(None if numbers is None else _Rows(numbers))
    try:
        yield
    finally:
        _rows.reset(before)


class _Beside:
    """Adapters that are being loaded for the same base."""

    def __init__(self, adapters: Sequence[Adapter]) -> None:
        self._adapters = adapters
        self._owners: dict[tuple[int, ...], torch.Tensor] = {}

    def wrap(
        self, layer: nn.Module, shapes: Mapping[str, Sequence[int]], like: torch.Tensor
    ) -> nn.Module:
        """The layer with the changes of the tensors that are stacked in its weight."""
        out, start = sum(shape[0] for shape in shapes.values()), 0
        owners: list[int] = []
        downs: list[torch.Tensor] = []
        ups: list[torch.Tensor] = []
        for name, shape in shapes.items():
            for number, adapter in enumerate(self._adapters, start=1):
                found = adapter.factors(name, shape)
                if found is None:
                    continue
                down, up = found
                downs.append(down)
                ups.append(F.pad(up, (0, 0, start, out - start - shape[0])))
                owners += [number] * len(down)
            start += shape[0]
        if not owners:
            return layer
        spare = -len(owners) % ALIGNED
        down = F.pad(torch.cat(downs), (0, 0, 0, spare)).to(like)
        up = F.pad(torch.cat(ups, 1), (0, spare)).to(like)
        key = (*owners, *[-1] * spare)
        if key not in self._owners:
            self._owners[key] = torch.tensor(key, device=like.device)
        return Adapted(layer, next(iter(shapes)), down, up, self._owners[key])


_beside: ContextVar[_Beside | None] = ContextVar("beside", default=None)


@contextmanager
def beside(directories: Sequence[Path]) -> Iterator[None]:
    """Add these adapters, numbered from 1, to the layers that `WeightLoader` builds in this block.

    Raises:
        CheckpointError: an adapter does not fit; also at the end, if a change was not used.
    """
    adapters = [Adapter(directory) for directory in directories]
    before = _beside.set(_Beside(adapters) if adapters else None)
    try:
        yield
    finally:
        _beside.reset(before)
    for adapter in adapters:
        adapter.finish_beside()


def adapted(
    layer: nn.Module,
    sources: Sequence[str],
    shape: Callable[[str], Sequence[int]],
    like: torch.Tensor,
) -> nn.Module:
    """The layer, with the adapters of the enclosing `beside` if they change it.

    Args:
        layer: in any form.
        sources: the tensors that are stacked in its weight, in order.
        shape: of a tensor.
        like: has the device and the number format of the computation.
    """
    found = _beside.get()
    if found is None:
        return layer
    return found.wrap(layer, {name: shape(name) for name in sources}, like)
