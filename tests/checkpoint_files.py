"""Reads and changes the files of a checkpoint, for tests that damage them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def change_json(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file."""
    write_json(path, read_json(path) | changes)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file, or the `model.safetensors` of a directory.

    Returns:
        Copies, because tensors that map a file would change when the file is written.
    """
    return safetensors.torch.load(_weights(path).read_bytes())


def change_tensors(path: Path, changes: Mapping[str, torch.Tensor | None]) -> None:
    """Replace tensors of what `read_tensors` reads; None removes one."""
    tensors = {**read_tensors(path), **changes}
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    safetensors.torch.save_file(kept, _weights(path))


def _weights(path: Path) -> Path:
    return path / "model.safetensors" if path.is_dir() else path
