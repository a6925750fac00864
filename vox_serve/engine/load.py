"""From a configuration to a warm engine: find, download, load, warm up."""

from __future__ import annotations

import ctypes
import platform
import time
from pathlib import Path

import torch

from vox_serve.config import EngineConfig
from vox_serve.engine import device
from vox_serve.engine.engine import Engine
from vox_serve.errors import ConfigError
from vox_serve.messages import EngineInfo
from vox_serve.model import LoadOptions, Model
from vox_serve.nn.adapter import beside, merging
from vox_serve.nn.linear import holds_halves
from vox_serve.plugins import Plugins, ResolvedModel

SMALL_MODEL_BYTES = 128 * 2**20
ALL_THREADS = torch.get_num_threads()


def load_engine(config: EngineConfig, plugins: Plugins) -> tuple[Engine, EngineInfo]:
    """Find, download, load and warm up the model that `config` names.

    Raises:
        UnknownModel, CheckpointError, ConfigError: it cannot be found, loaded or run here.
    """
    start = time.monotonic()
    resolved = plugins.resolve(config.model)
    chosen = device.choose(config.device)
    dtype, weights = number_formats(config, chosen.type)
    options = LoadOptions(resolved.directory(), str(chosen), dtype, weights)
    device.prepare(chosen)
    _keep_freed_memory()
    try:
        model = load_model(config, resolved, options)
        device.require_room(model, config.max_batch_size)
        _set_threads(config, model)
        engine = Engine(model, config, resolved.checkpoint)
        engine.warm_up()
    except (MemoryError, RuntimeError) as error:
        # On a CPU, torch has no class of its own for this.
        wants_memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not wants_memory and "can't allocate memory" not in str(error):
            raise
        said = str(error).partition(". ")[0]
        raise ConfigError(
            f"device {chosen}: not enough memory for this model with max_batch_size "
            f"{config.max_batch_size} ({said})"
        ) from error
    seconds = time.monotonic() - start
    return engine, engine.info(resolved.name, resolved.spec.name, seconds, resolved.languages)


def load_model(config: EngineConfig, resolved: ResolvedModel, options: LoadOptions) -> Model:
    """The model with its adapters.  Raises CheckpointError, ConfigError."""
    merged = config.merged_adapter
    with (
        merging(None if merged is None else Path(merged)),
        beside([Path(directory) for directory in config.adapters.values()]),
    ):
        return resolved.spec.load(options)


def number_formats(config: EngineConfig, kind: str) -> tuple[str, str | None]:
    """The number format of the computation, and that of linear layers' weights (None: the same).

    Args:
        kind: the type of device, `cpu` or `cuda`.

    Raises:
        ConfigError: the two settings cannot be combined on this device.
    """
    cpu = kind == "cpu"
    if config.quantize == "none":
        if config.dtype != "auto":
            return config.dtype, None
        if not cpu:
            return "bfloat16", None
        return "float32", "float16" if holds_halves() else None
    if config.quantize != ("int8" if cpu else "fp8"):
        raise ConfigError(f"quantize {config.quantize} does not work on the device {kind}")
    if cpu and config.dtype == "bfloat16":
        raise ConfigError("quantize int8 computes in float32; leave dtype at auto")
    return ("float32" if cpu else "bfloat16"), config.quantize


def _keep_freed_memory() -> None:
    """Make glibc keep the memory of one step's tensors for the next step.

    By default it returns blocks of over about 100 KiB to the kernel and gets them back zeroed,
    page by page, in every step: nearly half the time of a codec step over eight rows.  Blocks
    larger than a step needs, such as an encoder's, are still returned at once.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # constants of malloc.h
    libc = ctypes.CDLL(None)
    libc.mallopt(mmap_threshold, 32 * 2**20)  # the largest value allowed
    libc.mallopt(trim_threshold, 256 * 2**20)
    libc.mallopt(top_pad, 16 * 2**20)


def _set_threads(config: EngineConfig, model: Model) -> None:
    """A small model's operations are too short to share: threads would only wait for each other,
    and on busy cores they make it ten times slower.  Replicas share the cores."""
    small = model.weight_bytes < SMALL_MODEL_BYTES
    most = 1 if small else max(1, ALL_THREADS // config.replicas)
    torch.set_num_threads(config.threads or most)
