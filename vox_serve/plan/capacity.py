"""Finds the load that one device can carry, and fits a simulation to a measured server."""

from __future__ import annotations

import math
from collections.abc import Sequence as Rows
from typing import Any

import attrs

from vox_serve.bench.config import BenchConfig
from vox_serve.bench.figures import Figures, figures
from vox_serve.bench.load import plan
from vox_serve.errors import ConfigError
from vox_serve.plan.config import PlanConfig
from vox_serve.plan.simulate import Site, simulate

FITTING_ROUNDS = 6
MOST = 1000.0
"""The highest rate that is tried, in requests per second."""
PRECISION = 0.03
"""The search ends when its bounds on the capacity are this close, relative to each other."""


@attrs.frozen
class Capacity:
    """The highest rate at which one device meets the target, and its figures there."""

    rate: float
    figures: Figures


def capacity(site: Site, config: PlanConfig, texts: Rows[str]) -> Capacity:
    """Find the capacity by bisection.

    Raises:
        ConfigError: the target is missed even at the lowest rate that the duration allows.
    """

    def at(rate: float) -> Figures:
        load = config.load((rate,))
        return figures(simulate(site, plan(load)[0], load, texts))

    low = 5.0 / config.duration  # with fewer requests the result would mean little
    best = at(low)
    if not meets(best, config):
        shown = "-" if best.first_audio.p95 is None else f"{best.first_audio.p95:.2f} s"
        raise ConfigError(
            f"one device misses the target even at {low:g} requests/s: first audio p95 {shown}, "
            f"viable {100 * (best.viable_share or 0):.0f} %"
        )
    high = 2 * low
    while meets(found := at(high), config):
        low, best, high = high, found, min(2 * high, MOST)
        if low == MOST:
            break
    while high / low > 1 + PRECISION:
        middle = math.sqrt(low * high)
        found = at(middle)
        if meets(found, config):
            low, best = middle, found
        else:
            high = middle
    return Capacity(low, best)


def meets(found: Figures, config: PlanConfig) -> bool:
    """Whether a run meets the target."""
    first = found.first_audio.p95
    return (
        first is not None
        and first <= config.first_audio
        and (found.viable_share or 0.0) >= config.viable
    )


def devices(demand: float, carried: float, headroom: float) -> int:
    """The number of devices for a demand if each is loaded up to `share` of its capacity."""
    return math.ceil(demand / (carried * (1 - headroom)))


def calibrated(site: Site, document: dict[str, Any]) -> Site:
    """The site with the overhead and slowdown for which it agrees with a measured run.

    Uses only the first run's medians of first audio and real-time factor; later runs can be
    compared with what the simulation then predicts.

    Args:
        document: the output of `vox-serve bench --json`.

    Raises:
        ConfigError: the document is something else, or its first run had no sound.
    """
    try:
        settings, run = document["settings"], document["runs"][0]
        load = BenchConfig(
            rate=tuple(settings["rate"][:1]),
            concurrency=tuple(settings["concurrency"][:1]),
            duration=settings["duration"],
            requests=settings["requests"],
            seed=settings["seed"],
            timeout=settings["timeout"],
        )
        first, factor = run["first_audio"]["p50"], run["real_time_factor"]["p50"]
        texts = document["texts"]
    except (KeyError, IndexError, TypeError) as error:
        raise ConfigError(f"calibrate: this is not JSON of `vox-serve bench` ({error})") from error
    if not first or not factor:
        raise ConfigError("calibrate: the first run had no sound")
    for _ in range(FITTING_ROUNDS):
        found = figures(simulate(site, plan(load)[0], load, texts))
        simulated, own = found.first_audio.p50, found.real_time_factor.p50
        if not simulated or not own:
            raise ConfigError("calibrate: the simulation of the first run had no sound")
        site = attrs.evolve(
            site,
            overhead=max(0.0, site.overhead + first - simulated),
            slowdown=site.slowdown * factor / own,
        )
    return site
