"""A server in its own process, as users start it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import attrs
import httpx

from tests.waiting import until

ROOT = Path(__file__).parent.parent
REPLICAS = int(os.environ.get("TONE_REPLICAS", "1"))
"""Workers of each tone; 2: `make test-replicas`."""
TONE = ["--model", "tone", "--plugins", "tests.tone", "--replicas", str(REPLICAS)]


@attrs.define
class Launched:
    """A server process in its own process group, like one started from a shell."""

    process: subprocess.Popen[str]
    mark: str
    log: IO[str]
    banner: str = ""
    http: httpx.Client = attrs.field(factory=lambda: httpx.Client(timeout=30))

    def read_banner(self) -> None:
        lines = []
        for line in self.process.stdout:
            lines.append(line)
            if line.rstrip().endswith("-o output.wav"):
                break
        self.banner = "".join(lines)
        address = re.search(r"address +(http://\S+)", self.banner)
        assert address, f"no banner but {self.banner!r}; log:\n{self.read_log()}"
        self.http.base_url = address[1]

    def read_log(self) -> str:
        self.log.seek(0)
        return self.log.read()

    def processes(self) -> list[int]:
        """All processes of this server, recognised by a variable in their environment."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    if self.mark.encode() in (entry / "environ").read_bytes():
                        found.append(int(entry.name))
                except OSError:  # it has ended, or is another user's
                    continue
        return found

    def workers(self) -> list[int]:
        """The engines' processes: all child processes except the resource tracker."""
        return [
            pid
            for pid in self.processes()
            if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]

    def signal_workers(self, number: signal.Signals) -> None:
        for pid in self.workers():
            os.kill(pid, number)

    def stream(self, **body: object):
        return self.http.stream("POST", "/generate", json={"streaming": True, **body})

    def end(self, seconds: float) -> int:
        """Wait for the exit code; fails the test if a process is left running."""
        code = self.process.wait(seconds)
        until(lambda: not self.processes(), 1)
        return code


@contextmanager
def launched(log: Path, *flags: str, **environment: str) -> Iterator[Launched]:
    mark = uuid.uuid4().hex
    with log.open("w+") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "vox_serve.launch", *TONE, "--port", "0", *flags],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "VOX_TEST_MARK": mark, **environment},
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            start_new_session=True,
        )
        server = Launched(process, mark, file)
        try:
            with process.stdout, server.http:
                yield server
        finally:
            for pid in server.processes():
                os.kill(pid, signal.SIGKILL)
            process.wait(10)


Start = Callable[..., Launched]
