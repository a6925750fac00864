"""The engine's device: which one it is, how it is set up, and how many slots fit."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path

import torch

from vox_serve.codec import SlotState
from vox_serve.errors import ConfigError
from vox_serve.model import Model

RESERVED_BYTES = 2 * 2**30
"""Memory for what does not belong to a slot: cuBLAS, captured graphs, prefill, encoding."""
STEP_BYTES = 24 * 2**20
"""An estimate of the memory for a step's intermediate results, per slot."""


def choose(name: str) -> torch.device:
    """The device that a setting names; a CUDA device always has an index.

    Raises:
        ConfigError: there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device {name!r} is not a torch device; try cpu or cuda:0") from None
    if device.type != "cuda":
        return device
    if not torch.cuda.is_available():
        raise ConfigError(f"device {name!r}: torch {torch.__version__} finds no CUDA device")
    return torch.device("cuda", device.index or 0)


def prepare(device: torch.device) -> None:
    """Set torch up for this device; call it once, before anything is allocated there.

    Raises:
        ConfigError: Triton cannot launch kernels on this machine.
    """
    if device.type != "cuda":
        return
    # Keep cuDNN from rounding a codec's convolutions to TF32, which changes samples and codes.
    torch.backends.cudnn.allow_tf32 = False
    # cuDNN's attention builds a plan for each new shape, that is, for each prompt length.  That
    # takes half a second, in which every stream is silent.
    torch.backends.cuda.enable_cudnn_sdp(False)
    _require_compiler()
    torch.cuda.set_device(device)  # streams, events and kernels use the current device


def require_room(model: Model, slots: int) -> None:
    """Raise ConfigError unless this many slots fit in memory with the loaded weights."""
    free = free_bytes(model.device)
    if free is None:
        return
    # A CPU needs far less of it.
    reserved = RESERVED_BYTES if model.device.type == "cuda" else 0
    each = slot_bytes(model)
    fit = max(0, int((free - reserved) // each))
    if slots > fit:
        raise ConfigError(
            f"max_batch_size {slots} needs {gb(slots * each)}, {gb(each)} for each slot, but "
            f"{model.device} has {gb(free)} free after {gb(model.weight_bytes)} of weights"
            + (f" ({gb(reserved)} are reserved for prefill)" if reserved else "")
            + f": at most {fit} fit"
        )


def slot_bytes(model: Model) -> int:
    """Memory of one slot: keys, values, state of codec and model; on a GPU, an estimate of what a
    step needs as well."""
    layout = model.kv_layout
    position = 2 * layout.num_layers * layout.num_kv_heads * layout.head_dim * model.dtype.itemsize
    state = sum(s.allocate(2) - s.allocate(1) for s in slot_states(model))
    step = STEP_BYTES if model.device.type == "cuda" else 0
    return position * model.max_positions + state + step


def slot_states(model: Model) -> list[SlotState]:
    """The objects with a row of state per slot: the codec, and the model if it has any."""
    return [model.codec, *([model] if isinstance(model, SlotState) else [])]


def free_bytes(device: torch.device) -> int | None:
    """Free memory of a device; None if it is unknown."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _available_bytes()


def _available_bytes() -> int | None:
    """Memory of this machine, or of its container, that may still be used."""
    found = []
    with contextlib.suppress(OSError, ValueError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):  # "max": no limit
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        found.append(limit - int((group / "memory.current").read_text(encoding="ascii")))
    return min(found, default=None)


def _require_compiler() -> None:
    """Triton compiles the small module that launches a kernel, with the machine's C compiler."""
    if importlib.util.find_spec("triton") is None:
        return
    compiler = os.environ.get("CC") or shutil.which("clang") or shutil.which("gcc")
    header = Path(sysconfig.get_path("include")) / "Python.h"
    missing = "a C compiler" if not compiler else "" if header.is_file() else f"{header}"
    if missing:
        raise ConfigError(
            f"device cuda: Triton needs {missing} to launch its kernels; install gcc and Python's "
            "headers (apt install gcc python3-dev), or uninstall triton to run without it, slower"
        )


def gb(count: int) -> str:
    """Format a number of bytes for a message."""
    return f"{count / 1e9:.3g} GB"
