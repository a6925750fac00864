"""A plugin that breaks the server or the engine, as negative controls of the promises.

FAULT names one of the functions below.  The server and its workers load the plugin.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys


def admits_everybody() -> None:
    from vox_serve.workers.client import WorkerClient

    WorkerClient.check_room = WorkerClient.admit


def forgets_who_left() -> None:
    from vox_serve.workers.replica import Replica

    Replica.abort = lambda self, request_id: None


def ends_without_limit() -> None:
    import uvicorn

    shutdown = uvicorn.Server.shutdown

    async def unlimited(self: uvicorn.Server, sockets=None) -> None:
        self.config.timeout_graceful_shutdown = None
        await shutdown(self, sockets)

    uvicorn.Server.shutdown = unlimited


def misses_a_death() -> None:
    from vox_serve.workers.supervisor import Supervisor

    Supervisor._ended = lambda self, link, reason: None


def misses_a_hang() -> None:
    from vox_serve.workers.life import Pulse

    Pulse.tick = lambda self, seconds: None


def fails_the_batch() -> None:
    from vox_serve.engine import engine

    def together(run, rows):
        try:
            run(rows)
        except Exception as error:  # noqa: BLE001
            return dict.fromkeys(rows, error)
        return {}

    engine.run_isolated = together


def waits_for_readers() -> None:
    from vox_serve.server.response import AudioResponse

    async def patient(self, send, body: bytes, more: bool = True) -> None:
        if body or not more:
            await send({"type": "http.response.body", "body": body, "more_body": more})

    AudioResponse._send = patient
    del socket.TCP_USER_TIMEOUT


def waits_for_requests() -> None:
    from vox_serve.server.protocol import TimedProtocol

    TimedProtocol._expect = lambda self, seconds: None


def leaks() -> None:
    """Leak 16 KiB per request."""
    from tests.tone import ToneModel

    kept, prompt = [], ToneModel.prompt

    def leaky(self, text, voice, **others):
        kept.append(os.urandom(16 * 1024))
        return prompt(self, text, voice, **others)

    ToneModel.prompt = leaky


def leaves_processes() -> None:
    """Leave a process per worker."""
    from tests.tone import ToneModel

    init = ToneModel.__init__

    def spawning(self) -> None:
        init(self)
        sleep = "import time; time.sleep(120)"
        subprocess.Popen([sys.executable, "-c", sleep], start_new_session=True)

    ToneModel.__init__ = spawning


def fails_on_names() -> None:
    """Answer a name that is not ASCII with 500."""
    from vox_serve.server.owner import Owner

    own = Owner.own

    def fragile(self, name: str) -> str:
        name.encode("ascii")
        return own(self, name)

    Owner.own = fragile


def shares_everything() -> None:
    """Make what belongs to one key belong to all."""
    from vox_serve.server.owner import Owner

    Owner.own = lambda self, name: name
    Owner.seen = lambda self, names: ((name, name, value) for name, value in names)


def read_whole(content: bytes, sample_rate: int, max_seconds: float):
    """Decode the whole clip before checking its length."""
    import io

    import soundfile

    from vox_serve.audio import AudioUnreadable

    samples, rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    if len(samples) > max_seconds * rate:
        raise AudioUnreadable(f"audio is longer than {max_seconds:g} seconds")
    return samples.mean(axis=1)


def decodes_everything() -> None:
    from vox_serve.workers import reading

    reading._read_clip = read_whole


def ignores_deterministic() -> None:
    """Make a row's sound depend on the number of rows, too, so that it shows on every machine."""
    from vox_serve.engine.runner import ModelRunner

    init = ModelRunner.__init__

    def plain(self, model, num_slots, prefix_bytes=0, deterministic=False, *others) -> None:
        init(self, model, num_slots, prefix_bytes, False, *others)
        step = model.codec.step

        def rounded(codes, slots, reset):
            pcm, valid = step(codes, slots, reset)
            return pcm * (1 - 1e-2 * len(slots)), valid

        model.codec.step = rounded

    ModelRunner.__init__ = plain


if name := os.environ.get("FAULT"):
    globals()[name]()
