"""vox-serve plan: measures, simulates, and writes a table, JSON and a picture."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence as Rows
from pathlib import Path
from typing import Any

import attrs

from vox_serve.bench.config import read_texts
from vox_serve.bench.figures import Figures, figures
from vox_serve.bench.load import plan as runs_of
from vox_serve.bench.picture import check_picture, draw
from vox_serve.bench.report import table, unit_of
from vox_serve.config import EngineConfig
from vox_serve.errors import ConfigError
from vox_serve.plan.capacity import Capacity, calibrated, capacity, devices
from vox_serve.plan.config import LONG_CHARACTERS, PlanConfig
from vox_serve.plan.costs import Costs
from vox_serve.plan.simulate import Site, simulate


def plan(file: Path, config: PlanConfig, engine: EngineConfig) -> int:
    """Run the command; returns its exit code.

    Raises:
        VoxServeError: a setting is wrong, a file cannot be read or written, or the model cannot be
            measured.
    """
    texts = read_texts(config.texts)
    if config.picture is not None:
        check_picture(config.picture)
    if config.measure:
        from vox_serve.plan.measure import measure  # loads a model

        measure(engine, texts).write(file)
    costs = Costs.read(file)
    site = Site(costs, config.slots or costs.slots, config.max_queue, seed=config.seed)
    costs.step(site.slots)  # refuses more slots than were measured
    if config.calibrate is not None:
        site = calibrated(site, _read(config.calibrate))
    print(_heading(site))
    if not (config.rate or config.concurrency or config.demand):
        return 0
    texts = mixed(texts, config.long_share, config.seed)
    found: list[Figures] = []
    if config.rate or config.concurrency:
        load = config.load(config.rate)
        found = [figures(simulate(site, run, load, texts)) for run in runs_of(load)]
        print(table(found, unit_of(load)))
        if config.picture is not None:
            title = f"simulated: {costs.model} on {costs.machine}"
            draw(found, unit_of(load), title, config.picture)
    carried = None
    if config.demand is not None:
        carried = capacity(site, config, texts)
        print(_answer(carried, config, config.demand))
    if config.json is not None:
        content = _document(site, config, found, carried)
        try:
            config.json.write_text(json.dumps(content) + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{config.json} cannot be written: {error.strerror}") from error
    return 0


def mixed(texts: Rows[str], long_share: float, seed: int) -> list[str]:
    """The texts, with a share of them replaced by long texts made from them."""
    if not long_share:
        return list(texts)
    draws = random.Random(seed)
    found: list[str] = []
    for _ in range(max(1000, len(texts))):
        text = draws.choice(texts)
        if draws.random() < long_share:
            while len(text) < LONG_CHARACTERS:
                text += " " + draws.choice(texts)
        found.append(text)
    return found


def _heading(site: Site) -> str:
    costs = site.costs
    return (
        f"simulated: {costs.model} on {costs.device} ({costs.machine}), {site.slots} slots\n"
        f"costs: {costs.source}; slowdown {site.slowdown:.2f}, "
        f"overhead {site.overhead * 1000:.0f} ms\n"
    )


def _answer(carried: Capacity, config: PlanConfig, demand: float) -> str:
    found = carried.figures
    count = devices(demand, carried.rate, config.headroom)
    streams = found.goodput_audio
    lines = [
        f"one device meets the target (first audio p95 {config.first_audio:g} s, viable "
        f"{100 * config.viable:g} %) up to {carried.rate:.2f} requests/s: "
        f"{streams:.0f} s of audio per second",
        f"{demand:g} requests/s with {100 * config.headroom:g} % kept free: {count} devices",
    ]
    if config.price is not None:
        hourly = count * config.price
        hours = demand * streams / carried.rate  # hours of audio per hour
        lines.append(f"cost: {hourly:.2f} per hour, {hourly / hours:.4f} per hour of audio")
    return "\n".join(lines)


def _document(
    site: Site, config: PlanConfig, found: Rows[Figures], carried: Capacity | None
) -> dict[str, Any]:
    def plain(_: object, __: object, value: object) -> object:
        return str(value) if isinstance(value, Path) else value

    return {
        "settings": attrs.asdict(config, value_serializer=plain),
        "site": attrs.asdict(site),
        "runs": [attrs.asdict(each) for each in found],
        "capacity": None if carried is None else attrs.asdict(carried),
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"calibrate: {path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"calibrate: {path} is not JSON of `vox-serve bench`")
    return found
