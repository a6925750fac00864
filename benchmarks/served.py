"""Measures the server over HTTP: `python -m vox_serve.launch`, on this machine."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import attrs

from benchmarks.spread import spread
from vox_serve.bench.command import Bench
from vox_serve.bench.config import BenchConfig, find_target, read_texts
from vox_serve.bench.figures import Figures, figures
from vox_serve.bench.load import plan

HEADER_BYTES = 44
BYTES_PER_SECOND = 48_000
"""Bytes per second of 16-bit mono sound at 24 kHz."""


def measure(
    model: str, text: str, rounds: int, clients: Sequence[int], duration: float
) -> dict[str, Any]:
    """Serve a model with default settings; its client runs on the same cores.

    Returns:
        `single`: first audio and real-time factor of one greedy stream at a time, as spreads
        over the rounds; `closed_loop`: for each number of clients, the results of
        `vox-serve bench` over `duration` seconds with its built-in texts; `exit_code`.

    Raises:
        RuntimeError: the server did not start.
        BenchError: it did not answer.
    """
    with running(model) as (process, address):
        body = {"text": text, "temperature": 0, "streaming": True}
        streams = [_stream(f"{address}/generate", body) for _ in range(rounds + 1)][1:]
        loops = _closed_loop(address, clients, duration)
    return {
        "single": {
            "first_audio": spread(first for first, _ in streams),
            "real_time_factor": spread(factor for _, factor in streams),
        },
        "closed_loop": loops,
        "duration": duration,
        "exit_code": process.returncode,
    }


@contextmanager
def running(model: str, *flags: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server of this model, and its address."""
    command = [sys.executable, "-m", "vox_serve.launch", "--port", "0", "--log-level", "warning"]
    process = subprocess.Popen(
        [*command, "--model", model, *flags], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line.split()[:1] == ["address"]:
                yield process, line.split()[1]
                break
        else:
            raise RuntimeError(f"the server for {model} did not start; see its log above")
    finally:
        process.terminate()
        process.wait(60)


def _stream(url: str, body: dict[str, Any]) -> tuple[float, float]:
    """Seconds to the first sound, and time over audio."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    start = time.perf_counter()
    size, first = 0, 0.0
    with urllib.request.urlopen(request, timeout=600) as answer:
        while chunk := answer.read1():
            size += len(chunk)
            if size > HEADER_BYTES:
                first = first or time.perf_counter() - start
    spent = time.perf_counter() - start
    return first, spent / ((size - HEADER_BYTES) / BYTES_PER_SECOND)


def _closed_loop(address: str, clients: Sequence[int], duration: float) -> list[dict[str, Any]]:
    config = BenchConfig(concurrency=tuple(clients), duration=duration)
    return [attrs.asdict(found) for found in _measured(address, config)]


def open_loop(address: str, rates: Sequence[float], duration: float) -> list[Figures]:
    """The figures at each rate of requests per second, which arrive at random times."""
    return _measured(address, BenchConfig(rate=tuple(rates), duration=duration, warmup=2))


def _measured(address: str, config: BenchConfig) -> list[Figures]:
    found = Bench(find_target(address, None), config, read_texts(None))
    asyncio.run(found.measure(plan(config)))
    return [figures(run) for run in found.runs]
