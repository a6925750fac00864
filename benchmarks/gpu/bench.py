"""What the sections of the GPU suite share: sizes, time, results, the model and running sequences.

A section runs in a separate process (see `suite.py`) and fills a result, which is written after
each of its parts, so that an interrupted run keeps its results.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import torch
from transformers import CsmConfig

from benchmarks.checkpoint import TOKENIZER, write_full_size
from vox_serve.config import EngineConfig
from vox_serve.engine.device import choose
from vox_serve.engine.engine import Engine
from vox_serve.engine.load import number_formats
from vox_serve.engine.pacing import Pacing
from vox_serve.engine.sequence import Sequence
from vox_serve.messages import SpeechRequest
from vox_serve.model import LoadOptions, Prompt
from vox_serve.voice import Segment
from vox_serve_csm.checkpoint import load_model
from vox_serve_csm.model import CsmModel

TEXT = "the past is just a story we tell ourselves."
FRAME_SECONDS = 0.08


class Skipped(Exception):
    """A part cannot run here; the message says why."""


@attrs.frozen
class Scale:
    """All sizes: full size for a GPU, or small ones that run in seconds on a CPU."""

    device: str
    dtype: str
    full_size: bool
    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    frames: int
    """Frames measured per cell of the frame table."""
    warm_seconds: float
    buffer_bytes: int
    """Bytes of each of the two buffers with which bandwidth is measured."""
    parity_frames: int
    voice_positions: int
    first_audio_rounds: int
    most_streams: int
    stream_context: int
    stream_frames: int
    http: tuple[str, ...]
    """Load of `vox-serve bench`."""
    http_slots: int
    peer_batches: tuple[int, ...]
    peer_frames: int
    peer_rounds: int
    profile_batches: tuple[int, ...]
    profile_frames: int


FULL = Scale(
    device="cuda",
    dtype="bfloat16",
    full_size=True,
    batches=(1, 8, 32, 64, 128, 256),
    contexts=(500, 2000),
    frames=40,
    warm_seconds=1.5,
    buffer_bytes=2**31,
    parity_frames=40,
    voice_positions=400,
    first_audio_rounds=50,
    most_streams=1024,
    stream_context=500,
    stream_frames=60,
    http=("--rate", "10", "--duration", "15"),
    http_slots=64,
    peer_batches=(1, 8),
    peer_frames=25,
    peer_rounds=3,
    profile_batches=(1, 64),
    profile_frames=5,
)
SMOKE = Scale(
    device="cpu",
    dtype="float32",
    full_size=False,
    batches=(1, 2),
    contexts=(5, 20),
    frames=3,
    warm_seconds=0.01,
    buffer_bytes=2**20,
    parity_frames=6,
    voice_positions=12,
    first_audio_rounds=3,
    most_streams=4,
    stream_context=5,
    stream_frames=4,
    http=("--rate", "4", "--requests", "3"),
    http_slots=2,
    peer_batches=(1, 2),
    peer_frames=3,
    peer_rounds=1,
    profile_batches=(1, 2),
    profile_frames=2,
)


@attrs.define
class Bench:
    """One section's run.

    Args:
        scratch: a folder for checkpoints and the files of the parts.
        output: the file of the result, as JSON.
        seconds: the section's time limit.
    """

    scale: Scale
    scratch: Path
    output: Path
    seconds: float
    result: dict[str, Any] = attrs.Factory(dict)
    began: float = attrs.field(factory=time.monotonic)

    @property
    def device(self) -> torch.device:
        return choose(self.scale.device)

    @property
    def left(self) -> float:
        """Seconds until the section's time limit."""
        return self.began + self.seconds - time.monotonic()

    def part(self, name: str, run: Callable[[], Any], needs: float = 0.0) -> Any:
        """Run a part and write what it returns; None if it failed or was skipped.

        Args:
            needs: the part is skipped if fewer seconds (at full size) are left.
        """
        needs *= self.scale.full_size
        start = time.monotonic()
        found = None
        try:
            if self.left < needs:
                raise Skipped(f"needs some {needs:.0f} s, {max(0.0, self.left):.0f} s are left")
            found = run()
            self.result[name] = found
        except Skipped as skipped:
            self.result[name] = {"skipped": str(skipped)}
        except Exception as error:  # noqa: BLE001  # whatever it is, the next part may still run
            self.result[name] = {"failed": one_line(error)}
            self.result.setdefault("failures", []).append(f"{name}: {one_line(error)}")
        self.write()
        log(f"{name}: {time.monotonic() - start:.1f} s {_outcome(self.result[name])}")
        return found

    def write(self) -> None:
        self.output.write_text(json.dumps(self.result, indent=1) + "\n")

    def checkpoint(self) -> Path:
        """The random checkpoint in bfloat16, generated on the device unless it exists."""
        directory = self.scratch / ("full-size-bf16" if self.scale.full_size else "tiny")
        config = None if self.scale.full_size else tiny_config()
        dtype = torch.get_default_dtype()
        torch.set_default_dtype(getattr(torch, self.scale.dtype))
        try:
            # Generate weights on the default device in the default dtype: seconds instead of
            # minutes.
            with torch.device(self.device):
                return write_full_size(directory, config)
        finally:
            torch.set_default_dtype(dtype)

    def model(self, quantize: str = "none", dtype: str | None = None) -> CsmModel:
        """The checkpoint, loaded as a server loads it; by default in the scale's dtype."""
        asked = "auto" if quantize != "none" else dtype or self.scale.dtype
        config = EngineConfig("", dtype=asked, quantize=quantize)
        computed, weights = number_formats(config, self.scale.device)
        return load_model(LoadOptions(self.checkpoint(), self.scale.device, computed, weights))


@contextmanager
def an_engine(model: CsmModel, slots: int, **settings: Any) -> Iterator[Engine]:
    """An engine without captured graphs: each step captures the bucket that it needs.

    A codec holds the state of one engine's slots, so only one engine may exist at a time.
    """
    engine = Engine(model, EngineConfig("", max_batch_size=slots, **settings))
    try:
        yield engine
    finally:
        # Free the runner with its captured graphs and pools; it has reference cycles.
        engine.__dict__.clear()
        del engine
        free_memory()


def free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def speaking(engine: Engine, count: int, context: int, frames: int) -> list[Sequence]:
    """Sequences whose prompts count as run: `context` positions of random keys and values.

    They use slots 0 .. count - 1 of an idle engine.  The time of a step depends on the number of
    positions, not on their content.
    """
    runner, codec = engine.runner, engine.model.codec
    columns = engine.model.codec.frame_width + 1
    prompt = Prompt({"tokens": torch.zeros(context, columns, dtype=torch.int64)})
    for number in range(count):
        engine.enqueue(Sequence(str(number), prompt, engine.prompts.defaults, number, frames))
    rows = engine.scheduler.schedule()
    assert [row.slot for row in rows] == list(range(count)), "a sequence is already running"
    for row in rows:
        row.pacing = Pacing(1 / codec.frame_rate)
        runner.assign(row)
        row.prefilled = context
    for cache in (runner.kv.keys, runner.kv.values):
        for layer in cache:
            layer[:count, :context].normal_()
    runner.hidden[:count].normal_()
    rewind(engine, rows, context)
    return rows


def rewind(engine: Engine, rows: list[Sequence], context: int) -> None:
    """Reset the sequences to the end of their prompts."""
    engine.runner.kv.lengths[: len(rows)] = context
    for row in rows:
        row.launched = row.frames = 0


def stop(engine: Engine) -> None:
    """End all sequences."""
    for name in list(engine.scheduler.running):
        engine.abort(name)
    while engine.has_work:
        engine.step()


def request(name: str, text: str, frames: int, **fields: Any) -> SpeechRequest:
    """A request with this number of frames; random weights never end an utterance."""
    return SpeechRequest(name, text, max_seconds=frames * FRAME_SECONDS, **fields)


def random_context(model: CsmModel, positions: int, seed: int) -> tuple[Segment, ...]:
    """A segment of random codes that takes about `positions` positions of a prompt."""
    generator = torch.Generator().manual_seed(seed)
    shape = (model.codec.frame_width, positions)
    codes = torch.randint(0, model.codec.codebook_size, shape, generator=generator)
    return (Segment(0, "a", codes=codes),)


def tiny_config() -> CsmConfig:
    """A few layers; the text vocabulary is that of the tokenizer copied by `write_full_size`."""
    from plugins.csm.tests.checkpoints import small_config

    vocabulary = json.loads((TOKENIZER / "config.json").read_text())["text_vocab_size"]
    return CsmConfig(**small_config() | {"text_vocab_size": vocabulary})


def one_line(error: BaseException) -> str:
    """The kind of an error and the first line of its message."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


def log(line: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {line}", file=sys.stderr, flush=True)


def _outcome(found: Any) -> str:
    if not isinstance(found, dict):
        return ""
    return next((f"{key}: {found[key]}" for key in ("skipped", "failed") if key in found), "")
