"""Loads weights from safetensors files into parameters, one tensor at a time.

Nothing is unpickled.  A file is reopened for each tensor, so that memory only ever holds the
parameters and the tensor being copied.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from tqdm import tqdm

from vox_serve.errors import CheckpointError
from vox_serve.nn.adapter import adapted, merged
from vox_serve.nn.linear import Linear, pack


class WeightFiles:
    """The tensors of a checkpoint: one safetensors file, or shards under an index.

    Args:
        path: a `.safetensors` file or a `.safetensors.index.json`.

    Raises:
        CheckpointError: a file is missing, truncated or does not match the index.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.name.endswith(".index.json"):
            self._file_of = self._read_index(path)
        else:
            self._file_of = dict.fromkeys(self._names(path), path)

    @property
    def names(self) -> set[str]:
        return set(self._file_of)

    def read(self, name: str) -> torch.Tensor:
        """One tensor, on the CPU, an adapter merged (`vox_serve.nn.adapter`).

        Raises:
            CheckpointError: it is missing, or the adapter does not fit.
        """
        if name not in self._file_of:
            raise CheckpointError(f"{self.path}: tensor {name} is missing")
        path = self._file_of[name]
        try:
            with safe_open(path, framework="pt") as file:
                tensor: torch.Tensor = file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: cannot read {name}: {error}") from error
        return merged(name, tensor)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one tensor, from its file's header.  Raises CheckpointError."""
        if name not in self._file_of:
            raise CheckpointError(f"{self.path}: tensor {name} is missing")
        path = self._file_of[name]
        try:
            with safe_open(path, framework="pt") as file:
                return tuple(file.get_slice(name).get_shape())
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: cannot read {name}: {error}") from error

    def _read_index(self, path: Path) -> dict[str, Path]:
        try:
            index = json.loads(path.read_text(encoding="utf-8"))
            shards = {
                name: path.parent / Path(file).name for name, file in index["weight_map"].items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{path}: not an index of safetensors shards ({error})"
            ) from error
        for shard in sorted(set(shards.values())):
            held = self._names(shard)
            lost = [name for name, file in shards.items() if file == shard and name not in held]
            if lost:
                raise CheckpointError(
                    f"{shard}: tensor {lost[0]} is missing, although the index lists it"
                )
        return shards

    @staticmethod
    def _names(path: Path) -> set[str]:
        if not path.is_file():
            raise CheckpointError(f"{path}: this file is missing; download the checkpoint again")
        try:
            with safe_open(path, framework="pt") as file:
                return set(file.keys())
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path}: truncated, or not a safetensors file ({error}); download it again"
            ) from error


def weights_path(directory: Path, *preferred: str) -> Path:
    """The index or file that holds a checkpoint's weights.

    Args:
        preferred: file names to try before those that transformers writes.

    Raises:
        CheckpointError: there is none.
    """
    candidates = (*preferred, "model.safetensors.index.json", "model.safetensors")
    for name in candidates:
        if (directory / name).is_file():
            return directory / name
    raise CheckpointError(
        f"{directory}: no weights; it must contain one of {', '.join(candidates)}"
    )


class WeightLoader:
    """Copies tensors into parameters, and keeps track of which tensors have been used.

    Args:
        files: where the tensors come from.
    """

    def __init__(self, files: WeightFiles) -> None:
        self._files = files
        self.unused = files.names
        """Names of tensors that have not been used."""

    @property
    def names(self) -> set[str]:
        """The names of all tensors."""
        return self._files.names

    def read(self, name: str, shape: Sequence[int] | None = None) -> torch.Tensor:
        """One tensor as it is stored; marks it as used.

        Raises:
            CheckpointError: it is missing, or does not have this shape.
        """
        self.unused.discard(name)
        tensor = self._files.read(name)
        if shape is not None and tensor.shape != torch.Size(shape):
            self._refuse(name, tensor.shape, shape)
        return tensor

    def ignore(self, *names: str) -> None:
        """Mark tensors as used that may exist and are not needed."""
        self.unused -= set(names)

    def fill(self, parameter: torch.Tensor, sources: Sequence[str]) -> None:
        """Copy the named tensors into `parameter`, stacked along its first dimension.

        Raises:
            CheckpointError: a tensor is missing, or the shapes do not add up.
        """
        if parameter.is_meta:  # only its size is needed
            self.check(parameter, sources)
            self.unused -= set(sources)
            return
        start = 0
        for name in sources:
            tensor = self.read(name)
            end = start + tensor.shape[0]
            if tensor.shape[1:] != parameter.shape[1:] or end > parameter.shape[0]:
                self._refuse(name, tensor.shape, parameter.shape)
            parameter.data[start:end].copy_(tensor)
            start = end
        if start != parameter.shape[0]:
            self._refuse(sources[-1], tensor.shape, parameter.shape)

    def check(self, parameter: torch.Tensor, sources: Sequence[str]) -> None:
        """Check that `fill` would succeed, before memory is allocated for the parameter.

        Raises:
            CheckpointError: a tensor is missing, or the shapes do not add up.
        """
        want = tuple(parameter.shape)
        shapes = [self._files.shape(name) for name in sources]
        for name, shape in zip(sources, shapes, strict=True):
            if shape[1:] != want[1:]:
                self._refuse(name, shape, want)
        if sum(shape[0] if shape else 1 for shape in shapes) != (want[0] if want else 1):
            self._refuse(sources[-1], shapes[-1], want)

    def build(
        self,
        network: nn.Module,
        sources: Mapping[str, Sequence[str] | Callable[[], torch.Tensor]],
        device: torch.device,
        dtype: torch.dtype,
        form: str | None = None,
    ) -> None:
        """Fill a network that was built `uninitialised`, one layer after another.

        Args:
            sources: for each parameter, the tensors that fill it (see `fill`) or a function that
                returns it.
            dtype: in which the layers compute.
            form: how linear layers store their weights, see `vox_serve.nn.linear`; None: in
                `dtype`.  Only one layer at a time is in memory in both forms.

        Raises:
            CheckpointError: a tensor is missing, or the shapes do not add up.
            ConfigError: this machine cannot hold weights in this form.
        """
        if form is None and device.type == "cuda":
            form = "padded"
        for name, parameter in network.named_parameters():
            source = sources[name]
            if not callable(source):
                self.check(parameter, source)
        like = torch.empty(0, device=device, dtype=dtype)
        # Names, not layers: the loop must not keep a replaced layer in memory.
        names = [n for n, m in network.named_modules() if list(m.parameters(recurse=False))]
        # disable=None: a bar on a terminal, nothing in a log.
        for name in tqdm(names, "loading", disable=None):
            layer = network.get_submodule(name)
            layer.to(dtype).to_empty(device=device, recurse=False).requires_grad_(False)
            for own, parameter in layer.named_parameters(recurse=False):
                source = sources[f"{name}.{own}" if name else own]
                if callable(source):
                    made = source()
                    if made.shape != parameter.shape:
                        self._refuse(f"for {name}.{own}", made.shape, parameter.shape)
                    parameter.copy_(made)
                else:
                    self.fill(parameter, source)
            source = sources[f"{name}.weight"] if isinstance(layer, Linear) else ()
            if form and name:
                layer = pack(layer, form)
                network.set_submodule(name, layer)
            if name and source and not callable(source):
                network.set_submodule(name, adapted(layer, source, self._files.shape, like))

    def finish(self) -> None:
        """Raise CheckpointError if there are unused tensors."""
        if self.unused:
            first = sorted(self.unused)[0]
            raise CheckpointError(
                f"{self._files.path}: {len(self.unused)} tensors do not belong to this model, "
                f"the first is {first}"
            )

    def _refuse(self, name: str, found: Sequence[int], shape: Sequence[int]) -> NoReturn:
        raise CheckpointError(
            f"{self._files.path}: tensor {name} has shape {list(found)}, which does not fit "
            f"the configuration's {list(shape)}"
        )


def llama_sources(prefix: str, num_layers: int, head_norms: bool = False) -> dict[str, list[str]]:
    """Parameters of `vox_serve.nn.Llama` and the transformers tensors that fill each."""
    sources = {"norm.weight": [f"{prefix}norm.weight"]}
    for i in range(num_layers):
        ours, theirs = f"layers.{i}.", f"{prefix}layers.{i}."
        sources |= {
            f"{ours}attention_norm.weight": [f"{theirs}input_layernorm.weight"],
            f"{ours}attention.qkv.weight": [f"{theirs}self_attn.{x}_proj.weight" for x in "qkv"],
            f"{ours}attention.output.weight": [f"{theirs}self_attn.o_proj.weight"],
            f"{ours}feed_forward_norm.weight": [f"{theirs}post_attention_layernorm.weight"],
            f"{ours}feed_forward.gate_up.weight": [
                f"{theirs}mlp.{x}_proj.weight" for x in ("gate", "up")
            ],
            f"{ours}feed_forward.down.weight": [f"{theirs}mlp.down_proj.weight"],
        }
        if head_norms:
            norms = [f"{theirs}self_attn.{x}_norm.weight" for x in "qk"]
            sources[f"{ours}attention.head_norms.weight"] = norms
    return sources
