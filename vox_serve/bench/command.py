"""vox-serve bench: measures, then writes a table, JSON and a picture."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
from tqdm import tqdm

from vox_serve.bench.client import SpeechClient
from vox_serve.bench.config import BenchConfig, Target, find_target, read_texts
from vox_serve.bench.figures import figures
from vox_serve.bench.load import execute, plan
from vox_serve.bench.picture import check_picture, draw
from vox_serve.bench.recording import Outcome, Recording, Run
from vox_serve.bench.report import describe_client, document, heading, table, unit_of
from vox_serve.errors import BenchError, ConfigError

INTERRUPTED = 130
"""Exit code after Ctrl-C."""


@attrs.define
class Bench:
    """What is measured, and the results so far, which survive Ctrl-C.

    Args:
        runs: those that have begun.
        server: the server's description of itself, if it is a vox_serve.
        interrupted: Ctrl-C ended it.
    """

    target: Target
    config: BenchConfig
    texts: Sequence[str]
    runs: list[Run] = attrs.Factory(list)
    server: dict[str, Any] | None = None
    interrupted: bool = False

    async def measure(self, planned: Sequence[Run]) -> None:
        """Warm the server up, then do one run after another.  Raises BenchError."""
        async with SpeechClient(self.target, self.config) as client:
            await self._warm_up(client)
            self.server = await client.facts()
            for run in planned:
                self.runs.append(run)
                await self._run(run, client)

    async def _warm_up(self, client: SpeechClient) -> None:
        for number in range(self.config.warmup):
            recording = Recording(self.texts[number % len(self.texts)], client.clock())
            await client.speak(recording)
            if recording.outcome is not Outcome.OK:
                detail = f": {recording.detail}" if recording.detail else ""
                raise BenchError(f"the warm-up got {recording.failure}{detail}")

    async def _run(self, run: Run, client: SpeechClient) -> None:
        total = len(run.arrivals) or self.config.requests
        # disable=None: a bar on a terminal, nothing in a log.
        title = f"{run.load:g} {unit_of(self.config)}"
        with tqdm(desc=title, total=total, unit=" requests", disable=None) as bar:

            async def speak(recording: Recording) -> None:
                await client.speak(recording)
                bar.update()

            await execute(run, self.config, self.texts, speak, client.clock)


def bench(url: str, config: BenchConfig) -> int:
    """Measure a server and print the table; returns the exit code.

    0: at least one request was ok; 1: none was; 130: Ctrl-C, after printing the figures so far.

    Raises:
        ConfigError: a setting is wrong, or a file cannot be written.
        BenchError: the server does not answer the warm-up with sound.
    """
    found = Bench(find_target(url, config.api), config, read_texts(config.texts))
    planned = plan(config)
    if config.picture is not None:
        check_picture(config.picture)
    for path in (config.json, config.picture):
        if path is not None:
            _check_writable(path)
    client = describe_client()
    try:
        asyncio.run(found.measure(planned))
    except KeyboardInterrupt:
        found.interrupted = True
    _report(found, client)
    if found.interrupted:
        return INTERRUPTED
    return int(not any(each.outcome is Outcome.OK for run in planned for each in run.recordings))


def _report(found: Bench, client: dict[str, Any]) -> None:
    runs = [run for run in found.runs if run.recordings]
    if not runs:
        print("nothing was measured")
        return
    summary, unit = [figures(run) for run in runs], unit_of(found.config)
    print(heading(found.target, found.config, client))
    print(table(summary, unit))
    if found.interrupted:
        print("Stopped by Ctrl-C: these are the figures so far.")
    if found.config.json is not None:
        content = document(found.target, found.config, found.texts, found.runs)
        content |= {"client": client, "server": found.server, "interrupted": found.interrupted}
        found.config.json.write_text(json.dumps(content) + "\n", encoding="utf-8")
    if found.config.picture is not None:
        draw(summary, unit, found.target.url, found.config.picture)


def _check_writable(path: Path) -> None:
    """Check before the work, so that no results are lost.  Raises ConfigError."""
    existed = path.exists()
    try:
        path.open("ab").close()
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error
    if not existed:
        path.unlink()
