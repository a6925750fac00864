"""The GPU suite: correctness and speed of CSM on this device, compared with peers, and a profile.

    python -m benchmarks.gpu            one NVIDIA GPU, under ten minutes
    python -m benchmarks.gpu --smoke    the same code over a tiny model on a CPU

Needs only the repository and its dependencies, because weights are random.  Each section runs in a
separate process: a device fault makes a process unusable, a process that hangs can be ended, and a
peer's memory is always freed.  JSON is written after every section, and after every part of one.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import attrs

from benchmarks.gpu.report import FRAME_TARGETS, TARGETS, report

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parents[1] / "results"
CACHE = Path.home() / ".cache/vox_serve"
PLUGINS = ("csm", "demo_voice", "orpheus")
GRACE_SECONDS = 5.0


@attrs.frozen
class Section:
    """A section's entry point and the least time it needs, in seconds."""

    name: str
    module: str
    function: str
    needs: float


SECTIONS = (
    Section("setup", "setup", "run", 10),
    Section("correctness", "correctness", "run", 70),
    Section("frames", "frames", "run", 50),
    Section("first_audio", "latency", "first_audio", 30),
    Section("streams", "streams", "run", 60),
    Section("http", "latency", "http", 50),
    Section("peers", "peers", "run", 60),
    Section("profile", "profile", "run", 30),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the sections, or with --section one; returns 1 if any failed."""
    arguments = _parser().parse_args(argv)
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    if arguments.section:
        return _section(arguments)
    suite = Suite(arguments)
    chosen = [s for s in SECTIONS if s.name == "setup" or s.name in (arguments.only or s.name)]
    for number, section in enumerate(chosen):
        later = sum(each.needs for each in chosen[number + 1 :])
        suite.run(section, later)
    print(suite.text)
    print(f"wrote {suite.file}")
    return int(any(s["outcome"] == "failed" for s in suite.document["sections"].values()))


class Suite:
    """The parent process: starts the sections and collects their results.  Imports no torch."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._end = time.monotonic() + arguments.budget
        self.document: dict[str, Any] = {
            "device": "unknown",
            "machine": {},
            "smoke": arguments.smoke,
            "targets": {**TARGETS, "frame_ms_by_batch": FRAME_TARGETS},
            "sections": {},
        }

    @property
    def file(self) -> Path:
        device = re.sub(r"[^a-z0-9]+", "-", self.document["device"].lower()).strip("-")
        smoke = "-smoke" if self._arguments.smoke else ""
        folder: Path = self._arguments.output
        return folder / f"csm-{device}{smoke}.json"

    @property
    def text(self) -> str:
        return report(self.document)

    def run(self, section: Section, later: float) -> None:
        """Run a section in a process, within the budget that later sections leave."""
        left = self._end - time.monotonic()
        if left < section.needs:
            reason = f"needs some {section.needs:.0f} s, {max(0.0, left):.0f} s are left"
            self._keep(section.name, {"outcome": "skipped", "reason": reason})
            return
        seconds = max(section.needs, left - later)
        result = self._arguments.scratch / f"{section.name}.json"
        result.unlink(missing_ok=True)
        start = time.monotonic()
        reason = self._child(section.name, result, seconds)
        found = json.loads(result.read_text()) if result.is_file() else {}
        outcome = "failed" if reason or found.get("failures") else "done"
        kept = {"outcome": outcome, "seconds": round(time.monotonic() - start, 1)}
        self._keep(section.name, kept | ({"reason": reason} if reason else {}) | {"result": found})

    def _child(self, name: str, result: Path, seconds: float) -> str:
        """Returns why it failed; empty if it did not."""
        arguments = self._arguments
        command = [sys.executable, "-m", "benchmarks.gpu", "--section", name]
        command += ["--result", str(result), "--budget", str(seconds - GRACE_SECONDS)]
        command += ["--scratch", str(arguments.scratch), *(["--smoke"] if arguments.smoke else [])]
        paths = [ROOT, *(ROOT / "plugins" / plugin for plugin in PLUGINS)]
        path = os.pathsep.join([*map(str, paths), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": path.rstrip(os.pathsep)}
        # A new session, so that its child processes end with it.
        process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return f"cut after {seconds:.0f} s"
        finally:
            _end_group(process)
        return f"its process ended with {code}" if code else ""

    def _keep(self, name: str, section: dict[str, Any]) -> None:
        self.document["sections"][name] = section
        if name == "setup":
            self.document["machine"] = section.get("result", {}).get("machine", {})
            self.document["device"] = self.document["machine"].get("device", "unknown")
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text(json.dumps(self.document, indent=1) + "\n")
        text = self.file.with_suffix(".md")
        text.write_text(self.text)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def _section(arguments: argparse.Namespace) -> int:
    """One section, in this process."""
    import torch

    from benchmarks.gpu.bench import FULL, SMOKE, Bench, log, one_line
    from vox_serve.engine.device import prepare

    torch.set_num_threads(1)  # the host computes little, and threads would wait for each other
    section = next(each for each in SECTIONS if each.name == arguments.section)
    scale = SMOKE if arguments.smoke else FULL
    bench = Bench(scale, arguments.scratch, arguments.result, arguments.budget)
    prepare(bench.device)  # as a server does
    log(f"{section.name}: at most {arguments.budget:.0f} s")
    try:
        run: Callable[[Bench], None]
        run = getattr(import_module(f"benchmarks.gpu.{section.module}"), section.function)
        run(bench)
    except Exception as error:
        bench.result.setdefault("failures", []).append(one_line(error))
        bench.write()
        raise
    bench.write()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="a tiny model, a few frames, on a CPU")
    parser.add_argument("--budget", type=float, default=540.0, help="seconds for all (540)")
    names = [section.name for section in SECTIONS]
    parser.add_argument("--only", nargs="+", choices=names, help="these sections, and the setup")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for JSON and Markdown")
    parser.add_argument("--scratch", type=Path, default=CACHE, help="folder for checkpoints (4 GB)")
    hidden = argparse.SUPPRESS  # how the suite starts a section
    parser.add_argument("--section", choices=names, help=hidden)
    parser.add_argument("--result", type=Path, help=hidden)
    return parser
