"""All settings of `vox-serve plan` with their defaults."""

from __future__ import annotations

from pathlib import Path

import attrs

from vox_serve.bench.config import BenchConfig
from vox_serve.config import DAY, setting
from vox_serve.errors import ConfigError

LONG_CHARACTERS = 3000


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@attrs.frozen
class PlanConfig:
    """The load, the device and the target.  Raises ConfigError for a bad value."""

    measure: bool = setting(
        False, "measure the model on this machine and write COSTS, instead of reading it"
    )
    calibrate: Path | None = setting(
        None,
        "JSON of `vox-serve bench` against a server on this kind of device: the simulation is "
        "fitted to its first run",
    )
    rate: tuple[float, ...] = setting(
        (), "requests per second of one device, at random times (Poisson); one run for each"
    )
    concurrency: tuple[int, ...] = setting(
        (), "clients of one device, each of which asks again after its response"
    )
    duration: float = setting(120.0, "seconds simulated for each run")
    seed: int = setting(0, "seed of the arrival times and of the lengths of speech")
    texts: Path | None = setting(None, "file with one text per line (default: built-in texts)")
    long_share: float = setting(
        0.0, f"share of the requests that have a long text, of {LONG_CHARACTERS} characters"
    )
    slots: int | None = setting(
        None, "requests spoken at once by one device (default: as many as were measured)"
    )
    max_queue: int = setting(64, "requests that may wait for one device")
    timeout: float = setting(60.0, "seconds after which a client gives up")
    demand: float | None = setting(
        None, "requests per second of all devices together: how many devices do they need?"
    )
    first_audio: float = setting(
        0.5, "the target: seconds to the first audio, for 95 % of requests"
    )
    viable: float = setting(
        0.99, "the target: the share of requests that are answered, and play without an underrun"
    )
    headroom: float = setting(
        0.3, "the share of a device that is kept free for peaks and for a device that fails"
    )
    price: float | None = setting(None, "of one device for an hour, in any currency")
    json: Path | None = setting(None, "file for settings, figures and every request, as JSON")
    picture: Path | None = setting(
        None, "file for a chart of the figures (needs the extra `bench`)"
    )

    def __attrs_post_init__(self) -> None:
        _require(not (self.rate and self.concurrency), "give --rate or --concurrency, not both")
        wanted = bool(self.rate or self.concurrency or self.demand)
        _require(wanted or self.measure, "give --rate, --concurrency, --demand or --measure")
        _require(0 <= self.long_share <= 1, "long_share must be from 0 to 1")
        _require(self.slots is None or 1 <= self.slots <= 4096, "slots must be from 1 to 4096")
        _require(0 <= self.max_queue <= 1_000_000, "max_queue must be from 0 to 1000000")
        _require(
            self.demand is None or 0 < self.demand <= 1e7, "demand must be above 0, at most 1e7"
        )
        _require(0 < self.first_audio <= DAY, f"first_audio must be above 0, at most {DAY} s")
        _require(0 < self.viable <= 1, "viable must be above 0, at most 1")
        _require(0 <= self.headroom < 1, "headroom must be at least 0 and below 1")
        _require(self.price is None or self.price >= 0, "price must be at least 0")
        if wanted:
            self.load(self.rate or (1.0,))

    def load(self, rate: tuple[float, ...] = ()) -> BenchConfig:
        """The same load as settings of `vox-serve bench`.  Raises ConfigError."""
        return BenchConfig(
            rate=() if self.concurrency else rate,
            concurrency=self.concurrency,
            duration=self.duration,
            seed=self.seed,
            timeout=self.timeout,
        )
