"""Finds the devices of this machine without loading torch into the server's process."""

from __future__ import annotations

import subprocess
import sys
from functools import cache

from vox_serve.errors import ConfigError

COUNT = "import torch; print(torch.cuda.device_count())"
SECONDS = 120.0


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
