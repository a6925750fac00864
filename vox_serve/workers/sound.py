"""Postprocesses requests' audio in separate processes (see `jobs`).

A request's state is sent and returned with each piece, so any process can handle any piece, and a
process that hangs or crashes ends only the request that it works for.
"""

from __future__ import annotations

import pickle

import numpy as np

from vox_serve.errors import PluginError, SequenceFailed
from vox_serve.postprocess import Postprocessor, SoundFacts
from vox_serve.workers.jobs import MIB, JobFailed, Jobs

PROCESSES = 2
SECONDS = 30.0
"""That one piece may take, with the import of libraries and the load of a network."""
MEMORY = 16 * 1024 * MIB
"""Of address space: torch's libraries alone take several GiB of it."""
SCALE = 32767.0
WARMING = SoundFacts(sample_rate=24000, model="", request_id="", speaker=0, voice=None)


class Postprocessing:
    """The postprocessor that `--postprocess` names, and the processes that run it.

    Args:
        what: the postprocessor.
        in_thread: run it in threads of this process; for tests.

    Raises:
        PluginError: it cannot be sent to another process.
    """

    def __init__(self, what: Postprocessor, in_thread: bool = False) -> None:
        self.name = what.name
        self._jobs = Jobs(
            "sound", processes=PROCESSES, seconds=SECONDS, memory=MEMORY, in_thread=in_thread
        )
        try:
            self._begin = pickle.dumps(what.begin)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise PluginError(
                f"postprocess {what.name}: begin must be a function of a module: {error}"
            ) from error

    def warm_up(self) -> None:
        """Start the processes and load the postprocessor, so the first request does not wait."""
        self._jobs.warm_up(_step, self._begin, WARMING, None, b"", True)

    def close(self) -> None:
        """End the processes."""
        self._jobs.close()

    def begin(self, facts: SoundFacts) -> ProcessedSound:
        """The sound of one request."""
        return ProcessedSound(self, facts)

    async def step(
        self, facts: SoundFacts, state: bytes | None, pcm: bytes, last: bool
    ) -> tuple[bytes, bytes]:
        """Process a piece; returns the new state and the samples that are ready."""
        try:
            return await self._jobs.run(_step, self._begin, facts, state, pcm, last)
        except JobFailed as error:
            raise SequenceFailed(f"postprocess {self.name} failed: {error}") from error


class ProcessedSound:
    """The sound of one request while it is postprocessed, piece by piece."""

    def __init__(self, processing: Postprocessing, facts: SoundFacts) -> None:
        self._processing = processing
        self._facts = facts
        self._state: bytes | None = None
        self._ended = False

    async def process(self, pcm: bytes | None) -> bytes | None:
        """Process signed 16-bit samples; returns those that are ready, perhaps none.

        `None` marks the end: it returns the rest, and None when it is called again.

        Raises:
            RequestError: the plugin failed.
        """
        if self._ended:
            return None
        self._ended = pcm is None
        self._state, ready = await self._processing.step(
            self._facts, self._state, pcm or b"", self._ended
        )
        return ready or (None if self._ended else b"")


def _step(
    begin: bytes, facts: SoundFacts, state: bytes | None, pcm: bytes, last: bool
) -> tuple[bytes, bytes]:
    process = pickle.loads(begin)(facts) if state is None else pickle.loads(state)
    ready = []
    if pcm:
        ready.append(process.process(np.frombuffer(pcm, "<i2").astype(np.float32) / SCALE))
    if last:
        ready.append(process.finish())
    return b"" if last else pickle.dumps(process), b"".join(map(_pcm, ready))


def _pcm(sound: object) -> bytes:
    samples = np.asarray(sound)
    if samples.ndim != 1 or not np.issubdtype(samples.dtype, np.floating):
        raise SequenceFailed("postprocess must return an array of real numbers in one dimension")
    if not np.isfinite(samples).all():
        raise SequenceFailed("postprocess returned samples that are not finite")
    return np.rint(samples.clip(-1.0, 1.0) * SCALE).astype("<i2").tobytes()
