"""Measures how long a model's steps take on this machine, by running its engine."""

from __future__ import annotations

import pickle
import time
from collections import defaultdict
from collections.abc import Iterator
from collections.abc import Sequence as Rows
from statistics import median

import attrs
import numpy as np

from vox_serve.bench.report import describe_client
from vox_serve.config import EngineConfig
from vox_serve.engine.engine import Engine
from vox_serve.engine.load import load_engine
from vox_serve.errors import BenchError
from vox_serve.messages import EngineInfo, Failed, Finished, SpeechRequest
from vox_serve.parts import in_parts
from vox_serve.plan.costs import Costs, Line, Step
from vox_serve.plugins import load_plugins
from vox_serve.text import AS_WRITTEN, FrontEnd

STEPS = 60
"""Steps measured at each batch size, after the prompts."""
PASSES = 5
"""Prompts measured of each length."""


@attrs.frozen
class _Timed:
    """One step: its batch size, the positions of all its sequences, and its times by phase."""

    batch: int
    positions: int
    prefilled: int
    phases: dict[str, float]
    rest: float


@attrs.define
class _Spoken:
    """An utterance that ended by itself."""

    characters: int
    seconds: float


def measure(config: EngineConfig, texts: Rows[str]) -> Costs:
    """Load the model and time its steps at batches of 1, 2, 4 ... `max_batch_size`.

    Raises:
        VoxServeError: unknown model or unusable checkpoint, or it cannot speak the texts.
    """
    plugins = load_plugins(config.plugins)
    front_end = plugins.resolve(config.model).front_end or AS_WRITTEN
    engine, info = load_engine(config, plugins)
    bench = _Bench(engine, info, front_end, texts)
    machine = describe_client()
    prefill = bench.prefill()
    steps = tuple(bench.step(size) for size in _sizes(info.num_slots))
    spoken = bench.spoken()
    speech = _fit([s.characters for s in spoken], [s.seconds for s in spoken])
    ratios = [s.seconds / speech.at(s.characters) for s in spoken]
    each = engine.runner.kv.num_bytes / (engine.runner.num_slots + 1) / info.max_positions
    limits = {
        name: getattr(info, name)
        for name in ("max_positions", "takes_context", "max_characters", "max_words")
    }
    return Costs(
        model=info.model,
        device=info.device,
        machine=f"{machine['processor']}, {machine['cores']} cores",
        source=f"measured {machine['date']}, torch {info.torch_version}, {info.dtype}",
        slots=info.num_slots,
        frame_rate=info.frame_rate,
        frames_per_step=engine.model.codec.frames_per_step,
        prefix_positions=int(config.prefix_cache_mib * 2**20 / each),
        prepare=median(bench.preparing),
        prefill=prefill,
        speech=speech,
        positions=_fit(*zip(*bench.prompts, strict=True)),
        spread=float(np.std(ratios)),
        steps=steps,
        **limits,
    )


class _Bench:
    """Runs one engine, and records the time and size of each prompt."""

    def __init__(
        self, engine: Engine, info: EngineInfo, front_end: FrontEnd, texts: Rows[str]
    ) -> None:
        self.engine = engine
        self.info = info
        self.preparing: list[float] = []
        self.prompts: list[tuple[int, int]] = []
        """Characters and positions of each prompt."""
        self._front_end = front_end
        self._texts = sorted(texts, key=len)
        self._count = 0

    def add(self, text: str) -> SpeechRequest:
        """Queue the text, or its first part; returns its request."""
        self._count += 1
        request = in_parts(SpeechRequest(f"plan {self._count}", text), self.info, self._front_end)
        request = attrs.evolve(request, following=(), more=False, conversation=None)
        began = time.perf_counter()
        sequence = self.engine.prompts.prepare(request)
        self.preparing.append(time.perf_counter() - began)
        self.prompts.append((len(request.text), len(sequence.prompt) - sequence.prompt.shared))
        self.engine.enqueue(sequence)
        return request

    def prefill(self) -> Line:
        """Time prompts of three lengths, one at a time; the median of each length counts."""
        longest, shortest = self._texts[-1], self._texts[0]
        sizes, seconds = [], []
        for text in (shortest, longest, " ".join(self._texts)):
            request = self.add(text)
            steps = [self._timed()]
            for _ in range(PASSES):
                self.engine.abort(request.id)
                request = self.add(text)
                steps.append(self._timed())
            self.engine.abort(request.id)
            first = [step for step in steps[1:] if step.prefilled]
            if first:
                sizes.append(median(step.prefilled for step in first))
                seconds.append(median(step.phases["prefill"] for step in first))
        return _fit(sizes, seconds)

    def step(self, batch: int) -> Step:
        """Time the steps of a batch of this size; a new request replaces each that ends."""
        open_requests: set[str] = set()
        timed: list[_Timed] = []
        texts = self._endless()
        while len(timed) < STEPS:
            while len(open_requests) < batch:
                open_requests.add(self.add(next(texts)).id)
            step = self._timed(open_requests)
            if step.batch == batch and not step.prefilled:
                timed.append(step)
        for name in open_requests:
            self.engine.abort(name)
        self.engine.step()
        by_phase = {
            phase: median(step.phases.get(phase, 0.0) for step in timed)
            for phase in ("advance", "emit")
        }
        slope = _slope([step.positions for step in timed], [s.phases["advance"] for s in timed])
        return Step(
            batch,
            advance=max(0.0, by_phase["advance"] - slope * median(s.positions for s in timed)),
            advance_position=slope,
            emit=by_phase["emit"],
            codec=float(np.mean([step.phases.get("codec", 0.0) for step in timed])),
            rest=median(step.rest for step in timed),
        )

    def spoken(self) -> list[_Spoken]:
        """Speak every text to its end."""
        found: list[_Spoken] = []
        lengths: dict[str, int] = {}
        waiting = list(self._texts)
        while waiting or lengths:
            while waiting and len(lengths) < self.info.num_slots:
                request = self.add(waiting.pop())
                lengths[request.id] = len(request.text)
            for event in self.engine.step().events:
                if isinstance(event, Failed):
                    raise BenchError(f"the model cannot speak its texts: {event.error.message}")
                if isinstance(event, Finished) and event.request_id in lengths:
                    seconds = event.frames / self.info.frame_rate
                    found.append(_Spoken(lengths.pop(event.request_id), seconds))
        return found

    def _endless(self) -> Iterator[str]:
        while True:
            yield from reversed(self._texts)

    def _timed(self, open_requests: set[str] | None = None) -> _Timed:
        speaking = self.engine.scheduler.speaking()
        positions = sum(sequence.length for sequence in speaking)
        began = time.perf_counter()
        output = self.engine.step()
        pickle.dumps(output)  # as sending it to the server does
        seconds = time.perf_counter() - began
        for event in output.events:
            if isinstance(event, Failed):
                raise BenchError(f"the model cannot speak its texts: {event.error.message}")
            if isinstance(event, Finished) and open_requests is not None:
                open_requests.discard(event.request_id)
        phases: dict[str, float] = defaultdict(float, output.stats.phase_seconds)
        rest = max(0.0, seconds - sum(phases.values()))
        stats = output.stats
        return _Timed(stats.batch_size, positions, stats.prefilled, phases, rest)


def _sizes(slots: int) -> list[int]:
    """1, 2, 4 ... and the number of slots."""
    return sorted({*(2**n for n in range(slots.bit_length()) if 2**n < slots), slots})


def _slope(sizes: Rows[float], seconds: Rows[float]) -> float:
    """The slope between the medians of the smaller and the larger half; robust to outliers."""
    order = np.argsort(sizes)
    halves = np.array_split(order, 2)
    x = [float(np.median(np.asarray(sizes)[half])) for half in halves]
    y = [float(np.median(np.asarray(seconds)[half])) for half in halves]
    return max(0.0, (y[1] - y[0]) / (x[1] - x[0])) if x[1] > x[0] else 0.0


def _fit(sizes: Rows[float], values: Rows[float]) -> Line:
    """The least-squares line with neither coefficient below 0."""
    x, y = np.asarray(sizes, dtype=float), np.asarray(values, dtype=float)
    if np.ptp(x) == 0:
        return Line(float(y.mean()), 0.0)
    each, base = (float(number) for number in np.polyfit(x, y, 1))
    if base < 0 or each < 0:
        return Line(0.0, float((x @ y) / (x @ x))) if base < 0 else Line(float(y.mean()), 0.0)
    return Line(base, each)
