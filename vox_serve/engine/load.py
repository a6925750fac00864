"""From a configuration to a warm engine: find, download, load, warm up."""

from __future__ import annotations

import ctypes
import platform
import time

import torch

from vox_serve.config import EngineConfig
from vox_serve.engine.engine import Engine
from vox_serve.errors import ConfigError
from vox_serve.messages import EngineInfo
from vox_serve.model import LoadOptions, Model
from vox_serve.nn.linear import holds_halves
from vox_serve.plugins import Plugins

SMALL_MODEL_BYTES = 256 * 2**20
ALL_THREADS = torch.get_num_threads()


def load_engine(config: EngineConfig, plugins: Plugins) -> tuple[Engine, EngineInfo]:
    """Find, download, load and warm up the model that `config` names.

    Raises:
        UnknownModel, CheckpointError, ConfigError: one line each.
    """
    start = time.monotonic()
    resolved = plugins.resolve(config.model)
    device = _device(config.device)
    dtype, weights = number_formats(config, device)
    options = LoadOptions(resolved.directory(), device, dtype, weights)
    # cuDNN would round a codec's convolutions to TF32: other samples, and other context codes.
    torch.backends.cudnn.allow_tf32 = False
    _keep_freed_memory()
    if torch.device(device).type == "cuda":
        torch.cuda.set_device(device)  # streams, events and kernels are made on the current one
    model = resolved.spec.load(options)
    _set_threads(config.threads, model)
    engine = Engine(model, config, resolved.checkpoint)
    engine.warm_up()
    return engine, engine.info(resolved.name, resolved.spec.name, time.monotonic() - start)


def number_formats(config: EngineConfig, device: str) -> tuple[str, str | None]:
    """What is computed in, and how linear layers hold their weights (None: in the same).

    Raises:
        ConfigError: the two settings do not go together on this device.
    """
    cpu = torch.device(device).type == "cpu"
    if config.quantize == "none":
        if config.dtype != "auto":
            return config.dtype, None
        if not cpu:
            return "bfloat16", None
        return "float32", "float16" if holds_halves() else None
    if config.quantize != ("int8" if cpu else "fp8"):
        raise ConfigError(f"quantize {config.quantize} is not for the device {device}")
    if cpu and config.dtype == "bfloat16":
        raise ConfigError("quantize int8 computes in float32; leave dtype at auto")
    return ("float32" if cpu else "bfloat16"), config.quantize


def _keep_freed_memory() -> None:
    """Have glibc keep what the tensors of one step leave, for those of the next.

    It would give blocks of some 100 KiB back to the kernel and be handed them anew, page by page
    and zeroed, in every step: nearly half the time of a codec step over eight rows.  Larger ones
    than a step needs, as an encoder makes them, still go back at once.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # names in malloc.h
    libc = ctypes.CDLL(None)
    libc.mallopt(mmap_threshold, 32 * 2**20)  # the most that it takes
    libc.mallopt(trim_threshold, 256 * 2**20)
    libc.mallopt(top_pad, 16 * 2**20)


def _set_threads(threads: int, model: Model) -> None:
    """A small model's operations are too short to share: threads would only wait for each other,
    and where cores are busy they slow it down ten times."""
    small = model.weight_bytes < SMALL_MODEL_BYTES
    torch.set_num_threads(threads or (1 if small else ALL_THREADS))


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device {name!r} is no torch device; try cpu or cuda:0") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {name!r}: torch {torch.__version__} finds no CUDA device here")
    return name
