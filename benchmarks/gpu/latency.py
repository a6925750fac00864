"""First audio: in process, and over HTTP under Poisson load."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.gpu.bench import (
    FRAME_SECONDS,
    TEXT,
    Bench,
    an_engine,
    random_context,
    request,
    stop,
)
from benchmarks.gpu.timing import percentiles, warm_clocks
from vox_serve.engine.engine import Engine
from vox_serve.messages import Audio, Failed, SpeechRequest
from vox_serve.plugins import load_plugins

ROOT = Path(__file__).parents[2]
SLOTS = 8
PREFIX_MIB = 512
HTTP_FRAMES = 50
START_SECONDS = 120.0


def first_audio(bench: Bench) -> None:
    """Without other requests: from `Engine.add` to the first sound from `Engine.step`."""
    model = bench.model()
    rounds, positions = bench.scale.first_audio_rounds, bench.scale.voice_positions
    voice = random_context(model, positions, 0)
    fresh = [random_context(model, positions, 1 + n) for n in range(rounds)]
    with an_engine(model, SLOTS, prefix_cache_mib=PREFIX_MIB) as engine:
        engine.warm_up()
        warm_clocks(bench.device, bench.scale.warm_seconds)

        def timed(contexts: list[Any]) -> dict[str, Any]:
            spoken = [request(str(n), TEXT, 25, context=c) for n, c in enumerate(contexts)]
            times = [seconds_to_sound(engine, each) for each in spoken]
            return percentiles([t for t, _ in times]) | {"restored": times[-1][1]}

        bench.part("no voice", lambda: timed([()] * rounds))
        bench.part("voice, not cached", lambda: timed(fresh))
        seconds_to_sound(engine, request("first", TEXT, 25, context=voice))  # this caches it
        bench.part("voice, cached", lambda: timed([voice] * rounds))


def seconds_to_sound(engine: Engine, asked: SpeechRequest) -> tuple[float, int]:
    """The seconds, and the number of prompt positions that came from the cache."""
    start, restored = time.perf_counter(), 0
    engine.add(asked)
    while True:
        output = engine.step()
        restored += output.stats.restored
        for event in output.events:
            if isinstance(event, Failed):
                raise RuntimeError(event.error.message)
            if isinstance(event, Audio):
                seconds = time.perf_counter() - start
                stop(engine)
                return seconds, restored


def http(bench: Bench) -> None:
    """Run a server in one process and `vox-serve bench` in another."""
    bench.part("poisson", lambda: _poisson(bench))


def _poisson(bench: Bench) -> dict[str, Any]:
    texts, found = bench.scratch / "texts.txt", bench.scratch / "http.json"
    texts.write_text(TEXT + "\n")
    body = json.dumps({"max_seconds": HTTP_FRAMES * FRAME_SECONDS})
    with server(bench) as address:
        command = [sys.executable, "-m", "vox_serve.cli", "bench", address, *bench.scale.http]
        command += ["--texts", str(texts), "--body", body, "--json", str(found), "--warmup", "3"]
        done = subprocess.run(
            command,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=max(30.0, bench.left - 5),
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"vox-serve bench ended with {done.returncode}: {done.stderr[-300:]}")
    bench.result["table"] = done.stdout
    (run,) = json.loads(found.read_text())["runs"]
    keys = ("load", "requests", "ok", "refused", "failed", "underruns", "viable", "client_late")
    seconds = {key: run[key] for key in ("first_audio", "gap", "real_time_factor")}
    return {f"{key}_requests" if key == "failed" else key: run[key] for key in keys} | {
        "seconds": seconds
    }


@contextmanager
def server(bench: Bench) -> Iterator[str]:
    """A running server's address.  Its log is left in the scratch folder."""
    plugins = [] if "csm" in load_plugins().models else ["--plugins", "vox_serve_csm.plugin"]
    log = bench.scratch / "server.txt"
    command = [sys.executable, "-m", "vox_serve.launch", "--port", "0", "--log-level", "warning"]
    command += ["--model", str(bench.checkpoint()), "--device", bench.scale.device, *plugins]
    command += ["--max-batch-size", str(bench.scale.http_slots)]
    with log.open("w") as errors:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        try:
            assert process.stdout is not None
            # It prints its address when it is ready, or exits; the suite ends a section that hangs.
            lines = (line.split() for line in process.stdout)
            address = next((words[1] for words in lines if words[:1] == ["address"]), None)
            if address is None:
                said = log.read_text().strip().splitlines()
                raise RuntimeError(f"the server did not start: {said[-1] if said else 'no word'}")
            yield address
        finally:
            process.terminate()
            process.wait(60)
