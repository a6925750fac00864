"""Measures several workers behind one queue, on this machine, with the demo voice.

    python -m benchmarks.replicas                       load, then turns
    python -m benchmarks.replicas --rate 3 6 --duration 20
    python -m benchmarks.replicas --from-json FILE --picture docs/replicas.png

- Load: one and two replicas under the same open loop.  Each replica has one thread and `--slots`
  slots, and the client shares the cores.
- Turns: a conversation whose turns go to the replica that spoke the last one, beside one whose
  turns go to the other replica each time.

Prints a Markdown table for each; --json keeps the figures of the load, --picture draws them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import attrs

from benchmarks import machine
from benchmarks.picture import draw_replicas
from benchmarks.served import open_loop, running
from vox_serve.config import EngineConfig, ServerConfig
from vox_serve.messages import Audio, Failed, Finished, SpeechRequest
from vox_serve.metrics import Metrics
from vox_serve.workers.client import WorkerClient

TEXT = "The train to {} leaves at nine, and it takes two hours to get there."
"""Each use has another name, so that no earlier conversation has cached the text."""
NAMES = map("".join, product("bdfgklmnprst", "aeiou", "lmnrst", "aeo"))
TURNS = 8


def load(rates: list[float], duration: float, slots: int) -> dict[str, Any]:
    """The figures of one and two replicas at each rate, and the machine they were measured on."""
    found: dict[str, Any] = {"machine": machine.describe(), "slots": slots, "duration": duration}
    found["load"] = runs = []
    for replicas in (1, 2):
        flags = ("--replicas", str(replicas), "--max-batch-size", str(slots))
        with running("demo", *flags) as (_, address):
            for run in open_loop(address, rates, duration):
                runs.append({"replicas": replicas, **attrs.asdict(run)})
    return found


def table(found: Mapping[str, Any]) -> str:
    """The figures of the load test as Markdown."""
    lines = ["| replicas | requests/s | first audio p50, p95 | real-time factor p50 | answered |"]
    lines.append("|---|---|---|---|---|")
    for run in sorted(found["load"], key=lambda run: (run["load"], run["replicas"])):
        first = run["first_audio"]
        lines.append(
            f"| {run['replicas']} | {run['load']:g} "
            f"| {1000 * first['p50']:.0f} ms, {1000 * first['p95']:.0f} ms "
            f"| {run['real_time_factor']['p50']:.2f} | {run['ok']} of {run['requests']} |"
        )
    return "\n".join(lines)


async def turns(rounds: int) -> None:
    """Print the cost of a turn on the replica that has cached the conversation, and on another."""
    metrics = Metrics("demo")
    client = WorkerClient(EngineConfig("demo", replicas=2), ServerConfig(), metrics)
    await client.start()
    await client.wait_ready()
    times: dict[bool, list[list[float]]] = {
        same: [[] for _ in range(TURNS)] for same in (True, False)
    }
    positions: dict[bool, float] = {}
    for number in range(rounds + 1):  # the first is not counted
        for same in (True, False):
            name, before = f"{number} {same}", _prefilled(client)
            for turn in range(TURNS):
                seconds = await _speak(client, f"{name} {turn}", name)
                if number:
                    times[same][turn].append(seconds)
                talk = client._conversations.begin(name)
                client._conversations.end(talk)
                assert talk.home is not None
                talk.home = talk.home if same else 1 - talk.home
            await client.forget(name)
            positions[same] = _prefilled(client) - before
    await client.stop()
    print(f"| turn | {' | '.join(map(str, range(1, TURNS + 1)))} | positions run |")
    print("|---|" + "---|" * (TURNS + 1))
    for same, label in ((True, "the same replica"), (False, "the other replica")):
        cells = " | ".join(f"{1000 * median(found):.0f}" for found in times[same])
        print(f"| {label}, ms | {cells} | {positions[same]:.0f} |")


def _prefilled(client: WorkerClient) -> float:
    """The number of prompt positions computed so far."""
    return sum(
        replica.metrics.prompt_positions_total("prefilled")._value.get()
        for replica in client.replicas
    )


async def _speak(client: WorkerClient, request_id: str, conversation: str) -> float:
    """Speak a turn; returns the seconds to its first audio."""
    began, first = time.perf_counter(), None
    text = TEXT.format(next(NAMES))
    events = client.submit(SpeechRequest(request_id, text, conversation=conversation))
    while not isinstance(event := await events.get(), Finished | Failed):
        if isinstance(event, Audio) and first is None:
            first = time.perf_counter() - began
    assert first is not None, event
    return first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, nargs="*", default=[3.0, 6.0])
    parser.add_argument("--duration", type=float, default=15.0)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures of the load there")
    parser.add_argument("--picture", type=Path, help="draw the figures of the load there")
    parser.add_argument("--from-json", type=Path, help="measure nothing: take these figures")
    arguments = parser.parse_args()
    found = None
    if arguments.from_json:
        found = json.loads(arguments.from_json.read_text(encoding="utf-8"))
    elif arguments.rate:
        found = load(arguments.rate, arguments.duration, arguments.slots)
    if found:
        print(table(found), flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        if arguments.picture:
            draw_replicas(found, arguments.picture)
    if arguments.rounds and not arguments.from_json:
        asyncio.run(turns(arguments.rounds))


if __name__ == "__main__":
    main()
