"""Runs a model over a batch of slots: prefill, advance, emit, codec step.

A step's whole state of a slot is in device tensors with a row per slot: hidden state,
codes, cache length, sampling state, results.  So a step depends only on slot numbers, and can be a
CUDA graph.  (Constants are written with `fill_`, because an assignment copies them from the host,
which a graph cannot capture.)  The runner moves data between host and device; it decides nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as Rows
from contextlib import AbstractContextManager

import torch

from vox_serve.engine.cuda_graph import (
    PromptFunction,
    SlotNumbers,
    Step,
    StepFunction,
    Stream,
    bucket_sizes,
)
from vox_serve.engine.device import slot_states
from vox_serve.engine.frames import FrameReader, frame_dtype
from vox_serve.engine.kv_cache import SlotKVCache
from vox_serve.engine.prefix_cache import PrefixCache
from vox_serve.engine.sampler import SlotSampler
from vox_serve.engine.scheduler import PIECE_POSITIONS, PREFILL_BUCKET
from vox_serve.engine.sequence import Sequence
from vox_serve.errors import EngineError
from vox_serve.model import Inputs, Model, StepwiseText
from vox_serve.nn.adapter import rows_with

log = logging.getLogger("vox_serve.runner")
EXTENT_STEP = 64
"""Attention reads a multiple of this many positions, so that few shapes occur."""


class ModelRunner:
    """Runs one model.

    There is one more row than slots: the spare, which pads batches; its results are ignored.

    Args:
        num_slots: S.
        prefix_bytes: for cached prefixes.
        deterministic: all batches have one size.
        adapted: the model has adapters that are not merged (`vox_serve.nn.adapter`).
    """

    def __init__(
        self,
        model: Model,
        num_slots: int,
        prefix_bytes: int = 0,
        deterministic: bool = False,
        adapted: bool = False,
    ) -> None:
        self.model = model
        self.num_slots = num_slots
        self.deterministic = deterministic
        codec, device, rows = model.codec, model.device, num_slots + 1
        self.kv = SlotKVCache(model.kv_layout, rows, model.max_positions, device, model.dtype)
        self.prefixes = PrefixCache(prefix_bytes)
        self.sampler = SlotSampler(rows, device, type(model.default_sampling))

        def zeros(dtype: torch.dtype, *shape: int) -> torch.Tensor:
            return torch.zeros(rows, *shape, dtype=dtype, device=device)

        width, span, numbers = codec.frame_width, codec.frames_per_step, frame_dtype(codec)
        self.hidden = zeros(model.dtype, model.hidden_size)
        self.picked = zeros(numbers, width + 3)
        """Results of `emit`: the frame, the code that the sampler remembers, end, finite."""
        self.taken = zeros(numbers, width + 3)
        """Results to copy to the host: the frame, end, finite, reserved codes."""
        self.pending = zeros(numbers, width, span)
        self.fresh = zeros(torch.bool).fill_(True)
        self._adapters = zeros(torch.int64) if adapted else None
        self._adapter_of = [0] * rows
        """The same numbers on the host."""
        self.pcm = zeros(torch.int16, codec.frame_size)
        self.sound = zeros(torch.int64, 2)
        """For each row of `pcm`: valid samples, finite."""
        self._states = slot_states(model)
        self.cache_bytes = self.kv.num_bytes + sum(s.allocate(rows) for s in self._states)
        """Memory of the slots: keys, values, state of the codec and the model."""
        sizes = bucket_sizes(num_slots, device, deterministic)
        self._main, self._side = Stream(device, main=True), Stream(device)
        """The codec's stream: it decodes, from copies, while the next frame is computed."""
        self._ones = torch.ones(rows, dtype=torch.int64, device=device)
        captured = device.type == "cuda"

        def step(run: Step, stream: Stream) -> StepFunction:
            return StepFunction(run, sizes, num_slots, device, stream if captured else None)

        self._prompt_step = PromptFunction(
            self._prompt, num_slots, device, self._main if captured else None
        )
        self._advance_step = step(self._advance, self._main)
        self._emit_step = step(self._emit, self._main)
        self._take_step = step(self._take, self._side)
        self._sound_step = step(self._sound, self._side)
        self._collected = SlotNumbers(device)
        self.frames_behind = 1 if captured else 0
        """Steps until the host reads a frame: 0 on a CPU, 1 on a GPU, which computes meanwhile."""

    def assign(self, sequence: Sequence) -> None:
        """Prepare the sequence's slot: parameters, and a prompt at position 0."""
        slot = sequence.slot
        self._side.join()  # the codec may still be decoding a frame of the slot's last owner
        self.sampler.assign(slot, sequence.sampling, sequence.seed)
        if self._adapters is not None:
            self._adapters[slot].fill_(sequence.adapter)
            self._adapter_of[slot] = sequence.adapter
        self.put_text(sequence, 0)
        self.kv.lengths[slot].fill_(0)
        self.fresh[slot].fill_(True)

    def put_text(self, sequence: Sequence, start: int) -> None:
        """Give the model the text tokens for the frames from `start` on."""
        later = sequence.prompt.later
        if later is not None and isinstance(self.model, StepwiseText):
            self.model.put_text(sequence.slot, start, later[start:])

    def clear(self, sequence: Sequence) -> None:
        """Clear the slot of a failed sequence, because non-finite numbers must not remain."""
        self._side.join()
        self.kv.clear(sequence.slot)
        self.hidden[sequence.slot] = 0
        for state in self._states:
            state.clear(sequence.slot)

    @torch.inference_mode()
    def warm_up(self, prompt: Inputs) -> None:
        """Capture the CUDA graphs; those of prompts for inputs like these, `[P, ...]`."""
        self.kv.extent = self.kv.max_positions
        lengths = range(PREFILL_BUCKET, PIECE_POSITIONS + 1, PREFILL_BUCKET)
        self._prompt_step.warm_up(prompt, lengths)
        self._advance_step.warm_up()
        self._emit_step.warm_up()
        with self._side.beside():
            self._take_step.warm_up()
            self._sound_step.warm_up()
        self._side.join()

    @torch.inference_mode()
    def restore(self, sequence: Sequence) -> None:
        """Copy the prompt's cached prefix, and keys and values given with it, to the slot."""
        prompt, slot = sequence.prompt, sequence.slot
        sequence.restored = self.prefixes.restore(prompt.inputs, slot, self.kv, sequence.adapter)
        sequence.prefilled = sequence.restored
        if prompt.given is not None:
            sequence.prefilled = max(sequence.restored, self.kv.fill(slot, *prompt.given))
        self.kv.lengths[slot].fill_(sequence.prefilled)

    @torch.inference_mode()
    def prefill(self, sequences: Rows[Sequence], most: int) -> None:
        """Run the prompts, or their next `most` positions.

        Each slot then has the hidden state of the last position that was run.
        """
        ends = [min(len(s.prompt), s.prefilled + most) for s in sequences]
        pieces = [range(s.prefilled, end) for s, end in zip(sequences, ends, strict=True)]
        self._reach(ends)
        size = max(map(len, pieces))
        if self.frames_behind:  # on a GPU, few shapes matter more than a few extra positions
            size = -(-size // PREFILL_BUCKET) * PREFILL_BUCKET
        inputs = {
            name: _padded([s.prompt.inputs[name] for s in sequences], pieces, size)
            for name in sequences[0].prompt.inputs
        }
        self._prompt_step(inputs, [len(piece) for piece in pieces], [s.slot for s in sequences])
        for sequence, end in zip(sequences, ends, strict=True):
            sequence.prefilled = end

    @torch.inference_mode()
    def keep(self, sequence: Sequence, inputs: Mapping[str, torch.Tensor], length: int) -> None:
        """Cache the keys and values of the slot's first positions, which these inputs produced.

        Best effort: if it fails, usually for lack of memory, nothing is cached.
        """
        try:
            inputs = {name: tensor[:length] for name, tensor in inputs.items()}
            self.prefixes.keep(inputs, sequence.slot, self.kv, sequence.adapter)
        except Exception:
            log.exception("the prompt could not be cached", extra={"request_id": sequence.id})

    @torch.inference_mode()
    def advance(self, sequences: Rows[Sequence]) -> None:
        """Feed each slot's last frame back, which gives the next hidden state."""
        self._reach(s.length for s in sequences)
        self._advance_step([s.slot for s in sequences])

    @torch.inference_mode()
    def emit(self, sequences: Rows[Sequence]) -> None:
        """Pick each slot's next frame of codes.  If it raises, it may be run again."""
        slots = [s.slot for s in sequences]
        self._side.join_mark()  # the codec must have copied what is overwritten here
        self._emit_step(slots)
        with self._side.beside():
            self._take_step(slots)
            self._side.mark()

    @torch.inference_mode()
    def decode(self, sequences: Rows[Sequence]) -> None:
        """Decode the picked codes of the slots that have all frames of a codec step."""
        due = [s.slot for s in sequences if self._due(s)]
        if due:
            with self._side.beside():
                self._sound_step(due)

    @torch.inference_mode()
    def collect(self, sequences: Rows[Sequence]) -> FrameReader:
        """Start to copy each slot's frame to the host."""
        due = [self._due(s) for s in sequences]
        with self._side.beside():
            slots = self._collected([s.slot for s in sequences])
            rows = [self.taken[slots], self.sound[slots]]
            return FrameReader(torch.cat(rows, 1), self.pcm[slots] if any(due) else None, due)

    def _prompt(
        self,
        inputs: Inputs,
        lengths: torch.Tensor,
        slots: torch.Tensor,
        numbers: Rows[int] | None,
    ) -> None:
        self.kv.span = _side_by_side(numbers)
        with self._adapting(slots, numbers):
            self.hidden[slots] = self.model.prefill(inputs, lengths, slots, self.kv)
        self.kv.lengths.index_add_(0, slots, lengths)
        self.kv.lengths[self.num_slots].zero_()

    def _advance(self, slots: torch.Tensor, numbers: Rows[int] | None) -> None:
        self.kv.span = _side_by_side(numbers)
        rows = slots if self.kv.span is None else self.kv.span
        codes = self.picked[rows][:, : self.model.codec.frame_width]
        with self._adapting(slots, numbers):
            self.hidden[rows] = self.model.advance(codes, slots, self.kv)
        self.kv.lengths.index_add_(0, slots, self._ones[: len(slots)])
        self.kv.lengths[self.num_slots].zero_()  # the spare row must not grow

    def _emit(self, slots: torch.Tensor, numbers: Rows[int] | None) -> None:
        sampler = self.sampler.rows(numbers, slots)
        span = _side_by_side(numbers)
        rows = slots if span is None else span
        with self._adapting(slots, numbers):
            codes, end = self.model.emit(self.hidden[rows], sampler)
        finite = sampler.finite
        if codes.is_floating_point():
            finite = finite & codes.isfinite().all(1)
        facts = [sampler.picked[:, None], end[:, None], finite[:, None]]
        self.picked[rows] = torch.cat([codes, *facts], 1)

    def _adapting(
        self, slots: torch.Tensor, numbers: Rows[int] | None
    ) -> AbstractContextManager[None]:
        """Within the block, the model runs with the adapters of these slots."""
        unused = numbers is not None and not any(self._adapter_of[n] for n in numbers)
        return rows_with(None if self._adapters is None or unused else self._adapters[slots])

    def _take(self, slots: torch.Tensor, numbers: Rows[int] | None) -> None:
        picked, codec = self.picked[slots], self.model.codec
        codes, facts = picked[:, : codec.frame_width], picked[:, codec.frame_width :]
        if codec.codebook_size is None:
            heard, reserved = codes, torch.zeros_like(facts[:, :1])
        else:
            # Reserved ids may be sampled, as in the reference, but have no sound: code 0 is used.
            beyond = (codes < 0) | (codes >= codec.codebook_size)
            heard, reserved = torch.where(beyond, 0, codes), beyond.sum(1, keepdim=True)
        place = self.sampler.frame[slots] % self.pending.shape[2]
        self.pending[slots, :, place] = heard
        self.taken[slots] = torch.cat([codes, facts[:, 1:], reserved], 1)
        self.sampler.commit(slots, facts[:, 0].to(torch.int64))

    def _sound(self, slots: torch.Tensor, numbers: Rows[int] | None) -> None:
        pcm, valid = self.model.codec.step(self.pending[slots], slots, self.fresh[slots])
        self.fresh.index_fill_(0, slots, False)
        self.sound[slots] = torch.stack([valid, pcm.isfinite().all(dim=1)], 1)
        samples = (pcm.nan_to_num().clamp(-1.0, 1.0) * 32767.0).round()
        self.pcm[slots] = samples.to(torch.int16)

    def _due(self, sequence: Sequence) -> bool:
        span = self.model.codec.frames_per_step
        return sequence.launched % span == span - 1

    def _reach(self, lengths: Iterable[int]) -> None:
        """The number of positions that attention reads: all of them in a captured step."""
        if self.frames_behind or self.deterministic:
            self.kv.extent = self.kv.max_positions
            return
        extent = -(-max(lengths) // EXTENT_STEP) * EXTENT_STEP
        self.kv.extent = min(extent, self.kv.max_positions)


def _padded(rows: Rows[torch.Tensor], pieces: Rows[range], size: int) -> torch.Tensor:
    """The pieces `[T, ...]`, padded with zeros and stacked, `[B, size, ...]`."""
    widest = [max(sizes) for sizes in zip(*(row.shape[1:] for row in rows), strict=True)]
    stacked = rows[0].new_zeros(len(rows), size, *widest)
    for number, (row, piece) in enumerate(zip(rows, pieces, strict=True)):
        filled = (slice(len(piece)), *map(slice, row.shape[1:]))
        stacked[number][filled] = row[piece.start : piece.stop]
    return stacked


def _side_by_side(numbers: Rows[int] | None) -> slice | None:
    """Consecutive slots as a slice, which is read and written without a copy.

    None if they are not consecutive, and in a captured step, whose slots differ at each replay.
    """
    if numbers is None or list(numbers) != list(range(numbers[0], numbers[0] + len(numbers))):
        return None
    return slice(numbers[0], numbers[0] + len(numbers))


def run_isolated(
    run: Callable[[Rows[Sequence]], object], rows: Rows[Sequence]
) -> dict[Sequence, BaseException]:
    """Run a step function over rows; if it raises, run it for each row separately.

    So an exception affects only the rows that cause it.  The function must be able to run again
    over the same rows.  Returns the rows that failed, with their exceptions.

    Raises:
        EngineError: the device is in an unknown state, so no step can continue.
    """
    error = _attempt(run, rows) if rows else None
    if error is None:
        return {}
    if len(rows) == 1:
        return {rows[0]: error}
    alone = {row: _attempt(run, [row]) for row in rows}
    return {row: reason for row, reason in alone.items() if reason is not None}


def _attempt(run: Callable[[Rows[Sequence]], object], rows: Rows[Sequence]) -> BaseException | None:
    try:
        run(rows)
    except (EngineError, KeyboardInterrupt):
        raise
    except BaseException as error:  # noqa: BLE001  # a plugin may raise anything, SystemExit too
        return error
    return None
