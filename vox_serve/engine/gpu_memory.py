"""The memory use of a GPU, for the metrics."""

from __future__ import annotations

import time

import torch

LOOK_SECONDS = 1.0


class GPUMemory:
    """Args: device; a CPU reports nothing."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._looked = -LOOK_SECONDS

    def look(self) -> tuple[int, int] | None:
        """Bytes used by all processes, and bytes free; None if read less than a second ago."""
        if self._device.type != "cuda" or time.monotonic() - self._looked < LOOK_SECONDS:
            return None
        self._looked = time.monotonic()
        free, total = torch.cuda.mem_get_info(self._device)
        return total - free, free
