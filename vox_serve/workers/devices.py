"""Asks torch about the devices of this machine, without loading it into the server's process."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Sequence
from functools import cache

import attrs
import msgspec

from vox_serve.config import EngineConfig
from vox_serve.errors import ConfigError

COUNT = "import torch; print(torch.cuda.device_count())"
SECONDS = 120.0
ROOM_REFUSED = 3
"""The exit code of `vox_serve.engine.room` if the workers do not fit."""
log = logging.getLogger("vox_serve.devices")


def with_devices(config: EngineConfig) -> EngineConfig:
    """The configuration with the names of its devices.  Raises ConfigError like `all_devices`."""
    if config.device != "auto-all":
        return config
    return attrs.evolve(config, device=all_devices())


def require_room(configs: Sequence[EngineConfig]) -> None:
    """Check that the workers of these configurations fit on their devices together.

    A single worker checks that itself, when its weights are loaded.

    Raises:
        ConfigError: they do not fit; says what each needs, and what is free.
    """
    workers = [worker for config in configs for worker in with_devices(config).workers()]
    if len(workers) == 1:
        return
    asked = subprocess.run(
        [sys.executable, "-m", "vox_serve.engine.room"],
        check=False,
        input=msgspec.json.encode(workers),
        stdout=subprocess.PIPE,
    )
    if asked.returncode == ROOM_REFUSED:
        raise ConfigError(asked.stdout.decode().strip())
    if asked.returncode:
        log.warning("the workers' memory is not planned: exit code %d", asked.returncode)


@cache
def all_devices() -> str:
    """The setting that names every GPU, or the CPU if there is none.

    Raises:
        ConfigError: torch cannot be asked.
    """
    try:
        asked = subprocess.run(
            [sys.executable, "-c", COUNT],
            check=False,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        count = int(asked.stdout)
    except (ValueError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"device auto-all: torch cannot count the GPUs: {error}") from error
    return ",".join(f"cuda:{n}" for n in range(count)) or "cpu"
