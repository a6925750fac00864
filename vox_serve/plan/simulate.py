"""The engine under a load, in virtual time.

Scheduling, batching, pieces of prompts, prefixes, conversations, pacing and the parts of a long
text are the server's code; only the runner is replaced, by one that adds up the times of steps.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Sequence as Rows
from typing import Any, cast
from zlib import crc32

import attrs
import torch

from vox_serve.bench.config import BenchConfig
from vox_serve.bench.load import execute
from vox_serve.bench.recording import Chunk, Recording, Run
from vox_serve.config import EngineConfig
from vox_serve.engine.engine import Engine
from vox_serve.engine.frames import Frame, FrameReader
from vox_serve.engine.kv_cache import SlotKVCache
from vox_serve.engine.prefix_cache import PrefixCache
from vox_serve.engine.runner import ModelRunner
from vox_serve.engine.sequence import Sequence
from vox_serve.errors import RequestError
from vox_serve.messages import Audio, Event, Failed, Finished, Said, SpeechRequest, Started
from vox_serve.model import CheckpointSpec, KVLayout, Model, Prompt
from vox_serve.parts import Parts, in_parts
from vox_serve.plan import virtual
from vox_serve.plan.costs import Costs
from vox_serve.sampling import Parameters, SamplingParams
from vox_serve.voice import Segment, Voice

HEARTBEAT = 0.2
"""Seconds between the steps of an idle engine, unless a message wakes it."""
POSITION_BYTES = 4
"""Bytes of a position's key and value in the cache below, which has one head of one number."""
FRAME = b"."
"""The sound of a frame; only its amount and the time when it is sent matter here."""


@attrs.frozen
class Site:
    """One device and its server.

    Args:
        costs: the model's times on the device.
        slots: sequences that may speak at once.
        max_queue: requests that may wait.
        overhead: seconds from the client to the engine and back: connection, HTTP, two processes.
        slowdown: factor on every step's time, because server and other work share the machine.
        seed: for the random lengths of utterances.
    """

    costs: Costs
    slots: int
    max_queue: int = 64
    overhead: float = 0.0
    slowdown: float = 1.0
    seed: int = 0


def simulate(site: Site, run: Run, config: BenchConfig, texts: Rows[str]) -> Run:
    """Simulate a run of `vox-serve bench`; returns `run` with its recordings filled in."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = _Server(site, config.timeout)
        working = asyncio.create_task(server.work())
        try:
            await execute(run, config, texts, server.speak, loop.time)
        finally:
            working.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await working

    virtual.run(main())
    return run


class _Server:
    """The code between client and engine: admission, parts, and the worker's loop."""

    def __init__(self, site: Site, timeout: float) -> None:
        costs = site.costs
        self._site = site
        self._timeout = timeout
        self._loop = asyncio.get_running_loop()
        self._runner = _Runner(costs, site.slots)
        config = EngineConfig(max_batch_size=site.slots)
        limits = CheckpointSpec("", "", "", costs.max_characters, costs.max_words)
        self._engine = Engine(
            cast(Model, _Model(costs, site.seed)),
            config,
            limits,
            runner=self._runner,
            clock=lambda: self._loop.time() + self._runner.elapsed * site.slowdown,
        )
        self._info = self._engine.info(costs.model, "simulated", 0.0)
        self._open: dict[str, asyncio.Queue[Event]] = {}
        self._woken = asyncio.Event()
        self._count = 0

    async def work(self) -> None:
        """The worker's loop; a step takes the time that the runner has added up."""
        engine, runner = self._engine, self._runner
        while True:
            if not engine.has_work:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(HEARTBEAT):
                        await self._woken.wait()
            self._woken.clear()
            output = engine.step()
            runner.elapsed += self._site.costs.step(max(1, output.stats.batch_size)).rest
            await asyncio.sleep(runner.spent() * self._site.slowdown)
            for event in output.events:
                if event.request_id in self._open:
                    self._open[event.request_id].put_nowait(event)

    async def speak(self, recording: Recording) -> None:
        """Do what `SpeechClient.speak` does, without HTTP."""
        recording.started = self._loop.time()
        if len(self._open) >= self._site.slots + self._site.max_queue:
            recording.status, recording.failure = 429, "status 429"
        else:
            recording.status = 200
            try:
                async with asyncio.timeout(self._timeout):
                    await asyncio.sleep(self._site.overhead)
                    await self._listen(recording)
            except TimeoutError:
                recording.failure = "timeout"
            except RequestError as error:
                recording.status = 400
                recording.failure, recording.detail = "status 400", error.message
        recording.ended = self._loop.time()

    async def _listen(self, recording: Recording) -> None:
        self._count += 1
        name = f"request {self._count}"
        request = in_parts(
            SpeechRequest(name, recording.text, arrival=self._loop.time()), self._info
        )
        parts = Parts(request, self._info.frame_rate, self._info.sample_rate)
        events = self._open[name] = asyncio.Queue()
        try:
            self._submit(request)
            while True:
                event = await events.get()
                if isinstance(event, Audio):
                    seconds = len(event.pcm) / self._info.frame_rate
                    recording.chunks.append(Chunk(self._loop.time(), seconds))
                elif isinstance(event, Failed):
                    raise event.error
                elif isinstance(event, Finished):
                    _, following = parts.after(event)
                    if isinstance(following, Finished):
                        return
                    self._submit(attrs.evolve(following, arrival=self._loop.time()))
                else:
                    assert isinstance(event, Started | Said)  # the engine remembers the turns
        finally:
            del self._open[name]
            self._engine.abort(name)

    def _submit(self, request: SpeechRequest) -> None:
        self._engine.add(request)
        self._runner.elapsed += self._site.costs.prepare
        self._woken.set()


class _Runner(ModelRunner):
    """Adds up the times of steps instead of computing them.

    The prefix cache is real, over a key/value cache with one number per position.
    """

    def __init__(self, costs: Costs, slots: int) -> None:
        # Does not call the base class: nothing that it allocates is needed.
        self.costs = costs
        self.elapsed = 0.0
        self.frames_behind = self.cache_bytes = 0
        cpu, layout = torch.device("cpu"), KVLayout(1, 1, 1)
        self.kv = SlotKVCache(layout, slots + 1, costs.max_positions, cpu, torch.float16)
        self.prefixes = PrefixCache(costs.prefix_positions * POSITION_BYTES)

    def spent(self) -> float:
        """The seconds since the last call."""
        elapsed, self.elapsed = self.elapsed, 0.0
        return elapsed

    def assign(self, sequence: Sequence) -> None:
        pass

    def clear(self, sequence: Sequence) -> None:
        pass

    def prefill(self, sequences: Rows[Sequence], most: int) -> None:
        ends = [min(len(s.prompt), s.prefilled + most) for s in sequences]
        longest = max(end - s.prefilled for s, end in zip(sequences, ends, strict=True))
        self.elapsed += self.costs.prefill.at(longest * len(sequences))
        for sequence, end in zip(sequences, ends, strict=True):
            sequence.prefilled = end

    def advance(self, sequences: Rows[Sequence]) -> None:
        step = self.costs.step(len(sequences))
        self.elapsed += step.advance + step.advance_position * sum(s.length for s in sequences)

    def emit(self, sequences: Rows[Sequence]) -> None:
        self.elapsed += self.costs.step(len(sequences)).emit

    def decode(self, sequences: Rows[Sequence]) -> None:
        self.elapsed += self.costs.step(len(sequences)).codec

    def collect(self, sequences: Rows[Sequence]) -> FrameReader:
        return cast(FrameReader, _Frames([self._frame(s) for s in sequences]))

    def _frame(self, sequence: Sequence) -> Frame:
        prompt, span = sequence.prompt, self.costs.frames_per_step
        assert isinstance(prompt, _Prompt)
        due = sequence.launched % span == span - 1
        ended = sequence.launched >= prompt.frames
        return Frame(FRAME * span if due and not ended else b"", ended, True, 0, (0,))


@attrs.frozen
class _Frames:
    made: list[Frame]

    def frames(self) -> list[Frame]:
        return self.made


@attrs.frozen
class _Prompt(Prompt):
    """A prompt, and the number of frames that its text will take."""

    frames: int = 0


@attrs.define
class _Codec:
    frame_rate: float
    frames_per_step: int
    frame_width: int = 1
    frame_size: int = 1
    sample_rate: int = 1


class _Model:
    """Stands in for a model: gives prompts and utterances the right lengths."""

    device, dtype, weight_bytes = torch.device("cpu"), torch.float32, 0
    default_sampling = SamplingParams()
    takes_live_text = False
    voices = (Voice("any", 0),)

    def __init__(self, costs: Costs, seed: int) -> None:
        self._costs = costs
        self._random = random.Random(seed)
        self.codec = _Codec(costs.frame_rate, costs.frames_per_step)
        self.takes_context = costs.takes_context
        self.max_positions = costs.max_positions

    def prompt(
        self, text: str, voice: Voice, *, context: Rows[Segment], parameters: Parameters
    ) -> Prompt:
        pieces = []
        for segment in context:
            assert segment.codes is not None
            pieces += [self._ids(segment.text), cast(Any, segment.codes)[0] + 1]
        shared = sum(map(len, pieces))
        ids = torch.cat([*pieces, self._ids(text)])
        seconds = self._costs.speech.at(len(text))
        seconds *= max(0.2, self._random.gauss(1.0, self._costs.spread))
        frames = max(1, round(seconds * self._costs.frame_rate))
        return _Prompt({"ids": ids}, shared, frames=frames)

    def _ids(self, text: str) -> torch.Tensor:
        """One id for all positions of a text; another text gets another id."""
        count = max(1, round(self._costs.positions.at(len(text))))
        return torch.full((count,), -crc32(text.encode()), dtype=torch.int64)
