"""Plans the memory of several workers before any of them loads.

Each model is built without memory, on torch's device `meta`; its weights and slots are added up for
each device and compared with what is free there.  Runs in a process of its own, started by
`vox_serve.workers.devices`, because it loads torch.
"""

from __future__ import annotations

import logging
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import cache

import attrs
import msgspec
import torch

from vox_serve.config import EngineConfig
from vox_serve.engine import device
from vox_serve.engine.load import load_model, number_formats
from vox_serve.errors import ConfigError
from vox_serve.model import LoadOptions
from vox_serve.plugins import load_plugins

REFUSED = 3
"""The exit code if the workers do not fit; also `workers.devices.ROOM_REFUSED`."""
log = logging.getLogger("vox_serve.room")


@attrs.frozen
class Need:
    """What one worker needs, in bytes."""

    model: str
    weights: int
    slots: int
    slot: int

    @property
    def total(self) -> int:
        return self.weights + self.slots * self.slot


def require_room(workers: Sequence[EngineConfig]) -> None:
    """Raise ConfigError unless all these workers fit on their devices at the same time."""
    needs: defaultdict[torch.device, list[Need]] = defaultdict(list)
    for worker in workers:
        try:
            needs[device.choose(worker.device)].append(_need(worker))
        except Exception as error:  # noqa: BLE001  # the worker reports it when it loads
            log.warning("the memory of %s is not planned: %s", worker.model, error)
    for place, found in needs.items():
        _require(place, found)


def _require(place: torch.device, needs: Sequence[Need]) -> None:
    free = device.free_bytes(place)
    reserved = device.RESERVED_BYTES * len(needs) if place.type == "cuda" else 0
    total = sum(need.total for need in needs) + reserved
    if free is None or total <= free:
        return
    gb = device.gb
    each = "; ".join(
        f"{count} x {need.model} with {gb(need.weights)} of weights and {need.slots} slots of "
        f"{gb(need.slot)}"
        for need, count in Counter(needs).items()
    )
    raise ConfigError(
        f"the workers on {place} need {gb(total)}, but it has {gb(free)} free: {each}"
        + (f"; {gb(reserved)} are reserved for prefill" if reserved else "")
        + ". Lower max_batch_size or replicas, or use another device"
    )


@cache
def _need(worker: EngineConfig) -> Need:
    resolved = load_plugins(worker.plugins).resolve(worker.model)
    dtype, weights = number_formats(worker, device.choose(worker.device).type)
    options = LoadOptions(resolved.directory(), "meta", dtype, weights)
    model = load_model(worker, resolved, options)
    return Need(resolved.name, model.weight_bytes, worker.max_batch_size, device.slot_bytes(model))


def main() -> int:
    """Read the workers' configurations from standard input; print why they do not fit."""
    workers = msgspec.json.decode(sys.stdin.buffer.read(), type=list[EngineConfig])
    try:
        require_room(workers)
    except ConfigError as error:
        print(error)
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main())
