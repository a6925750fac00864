"""The columns of the CPU benchmark, which are measured in turn."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import attrs
import torch

from benchmarks import ours
from benchmarks.machine import ALL_THREADS
from benchmarks.peers import Transformers
from benchmarks.spread import spread, spreads
from vox_serve.config import EngineConfig
from vox_serve.engine.engine import Engine
from vox_serve.engine.load import load_engine
from vox_serve.nn.linear import fast_bfloat16
from vox_serve.plugins import load_plugins

FRAME_SECONDS = 0.08
COMPILE_SECONDS = 120
FORMS: Mapping[str, dict[str, str]] = {
    "float16": {},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"quantize": "int8"},
}
"""The forms of vox_serve's weights, with their settings."""


@attrs.frozen
class Setting:
    """A model and how much of it is spoken.

    Args:
        key: its name in the results.
        model: alias or directory, as `--model` takes it.
        directory: the checkpoint.
        frames: how many, by batch; None: until the model ends the utterance.
        most_rounds: the most rounds, by batch, for batches that take long.
        groups: the forms that are in memory together for batches with many slots.  A form in
            several groups keeps the figures of the first, in which the peers take part.
        float32_from: the smallest batch in which transformers computes in float32 on a processor
            without bfloat16 instructions; larger than 1 if memory is short before.
    """

    key: str
    model: str
    directory: Path
    frames: Mapping[int, int | None]
    most_rounds: Mapping[int, int] = attrs.field(factory=dict)
    groups: tuple[tuple[str, ...], ...] = (tuple(FORMS),)
    float32_from: int = 1

    def rounds(self, batch: int, asked: int) -> int:
        """The number of rounds for a batch."""
        return min(asked, self.most_rounds.get(batch, asked))

    def peer_dtype(self, batch: int) -> torch.dtype:
        """The type in which transformers is faster."""
        fast = fast_bfloat16() or batch < self.float32_from
        return torch.bfloat16 if fast else torch.float32

    def engine_config(self, form: str, slots: int) -> EngineConfig:
        """The configuration of vox_serve on a CPU with weights in this form."""
        return EngineConfig(model=self.model, device="cpu", max_batch_size=slots, **FORMS[form])


@attrs.frozen(eq=False)
class Column:
    """One engine in one form.

    Args:
        key: its name in the results.
        speak: takes a batch and its frames; returns figures in seconds, including `frame` and
            `first_audio`.
        threads: the number of threads, by batch.
        batches: the batches in which it takes part.
        seconds: the time limit of its first run.
    """

    key: str
    speak: Callable[[int, int | None], dict[str, float]]
    threads: dict[int, int]
    batches: tuple[int, ...]
    seconds: int | None = None

    def run(self, batch: int, frames: int | None) -> dict[str, float]:
        torch.set_num_threads(self.threads[batch])
        return self.speak(batch, frames) | {"threads": float(self.threads[batch])}


def our_engines(setting: Setting, slots: int, forms: Iterable[str] = FORMS) -> dict[str, Engine]:
    """A warmed-up engine for each form."""
    return {
        form: load_engine(setting.engine_config(form, slots), load_plugins())[0] for form in forms
    }


def our_columns(engines: Mapping[str, Engine], setting: Setting) -> list[Column]:
    """vox_serve in each form, with the number of threads that it chooses."""
    chosen = torch.get_num_threads()
    columns = []
    for form, engine in engines.items():

        def speak(batch: int, frames: int | None, engine: Engine = engine) -> dict[str, float]:
            seconds = None if frames is None else frames * FRAME_SECONDS
            return ours.speak(engine, [ours.TEXT] * batch, seconds)

        key = f"vox_serve_{form}"
        columns.append(
            Column(key, speak, dict.fromkeys(setting.frames, chosen), (*setting.frames,))
        )
    return columns


def peer_columns(
    setting: Setting, prompt: torch.Tensor, left_out: dict[str, str]
) -> Iterator[Column]:
    """The peers, loaded one by one when needed; `left_out` says why others cannot run.

    Args:
        prompt: token ids `[T]` of the text.
    """
    threads = dict.fromkeys(setting.frames, ALL_THREADS)
    eager = _attempt(
        "transformers",
        lambda: Transformers(setting.directory, "cpu", setting.peer_dtype(1)),
        left_out,
    )
    if eager is not None:
        batches = (*setting.frames,)
        yield _transformers("transformers", eager, setting, prompt, dict(threads), batches, None)
        twin = eager.compiled_twin()
        yield _transformers(
            "transformers_compiled", twin, setting, prompt, dict(threads), (1,), COMPILE_SECONDS
        )
    if None in setting.frames.values():
        left_out["moshi"] = "its weights are random: it cannot speak until a text ends"
        return
    config = json.loads((setting.directory / "config.json").read_text(encoding="utf-8"))

    def load_moshi() -> Any:
        from benchmarks.moshi_peer import Moshi  # may not be installed

        return Moshi(config, "cpu", torch.bfloat16)

    moshi = _attempt("moshi", load_moshi, left_out)
    if moshi is not None:

        def converse(batch: int, frames: int | None) -> dict[str, float]:
            assert frames is not None  # checked above
            return attrs.asdict(moshi.speak(batch, frames))

        yield Column("moshi", converse, dict(threads), (1, 4))


def _transformers(
    key: str,
    model: Transformers,
    setting: Setting,
    prompt: torch.Tensor,
    threads: dict[int, int],
    batches: tuple[int, ...],
    seconds: int | None,
) -> Column:
    def speak(batch: int, frames: int | None) -> dict[str, float]:
        model.hold(setting.peer_dtype(batch))
        return attrs.asdict(model.speak(prompt.repeat(batch, 1), frames))

    return Column(key, speak, threads, batches, seconds)


def in_turn(
    columns: list[Column], batch: int, frames: int | None, rounds: int, left_out: dict[str, str]
) -> dict[str, dict[str, list[float]]]:
    """Measure all columns of a batch in turn, for a number of rounds.

    Returns:
        The spread of each figure, by column.  The first round warms up and is not counted; if a
        column fails in it, `left_out` has the reason.
    """
    taking_part, runs, first_runs = [], dict[str, list[dict[str, float]]](), dict[str, float]()
    for column in columns:
        if batch not in column.batches:
            continue
        spent = _attempt(column.key, lambda c=column: _first(c, batch, frames), left_out)
        if spent is not None:
            taking_part.append(column)
            runs[column.key], first_runs[column.key] = [], spent
    for _ in range(rounds):
        for column in taking_part:
            runs[column.key].append(column.run(batch, frames))
    return {
        key: spreads(each) | {"first_run": spread([first_runs[key]])} for key, each in runs.items()
    }


def try_threads(column: Column, batch: int, frames: int | None) -> None:
    """Give a column one thread or all, whichever is faster: for small models, usually one."""
    found = {}
    for threads in (1, ALL_THREADS):
        column.threads[batch] = threads
        column.run(batch, frames)
        found[threads] = column.run(batch, frames)["frame"]
    column.threads[batch] = min(found, key=lambda threads: found[threads])


def _first(column: Column, batch: int, frames: int | None) -> float:
    """The duration of its first run in seconds."""
    start = time.perf_counter()
    with _limited(column.seconds):
        column.run(batch, frames)
    return time.perf_counter() - start


def _attempt(key: str, make: Callable[[], Any], left_out: dict[str, str]) -> Any:
    try:
        return make()
    except Exception as error:  # noqa: BLE001  # a peer may raise anything; the page says it
        lines = str(error).strip().splitlines()
        left_out[key] = f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
        return None


@contextmanager
def _limited(seconds: int | None) -> Iterator[None]:
    """Raise TimeoutError in the main thread after this many seconds."""

    def ring(signum: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"its first run, compiling included, took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds or 0)  # 0 is never
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
