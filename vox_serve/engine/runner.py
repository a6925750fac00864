"""Runs a model over a batch of slots: prefill, advance, emit, codec step.

The runner remembers per slot what the next step needs (hidden state, codes, cache length,
sampling state) and moves data between host and device; it decides nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as Rows

import attrs
import torch

from vox_serve.engine.kv_cache import SlotKVCache
from vox_serve.engine.prefix_cache import PrefixCache
from vox_serve.engine.sampler import SlotSampler
from vox_serve.engine.sequence import Sequence
from vox_serve.model import Model

log = logging.getLogger("vox_serve.runner")
EXTENT_STEP = 64
"""Attention reaches over a multiple of this many positions, so that few shapes occur."""


@attrs.frozen
class Frame:
    """One row's result of one step, on the host.

    Args:
        pcm: signed 16-bit samples, as bytes.
        end: the model ended the utterance; `pcm` means nothing.
        finite: False if the row's logits were not finite; `pcm` means nothing.
        reserved: codes that lie outside the codec's codebooks.
        codes: the K codes, for tests and traces.
    """

    pcm: bytes
    end: bool
    finite: bool
    reserved: int
    codes: tuple[int, ...]


class ModelRunner:
    """Args: model, the number of slots S that it may use, bytes for kept prefixes."""

    def __init__(self, model: Model, num_slots: int, prefix_bytes: int = 0) -> None:
        self.model = model
        self.num_slots = num_slots
        device = model.device
        self.kv = SlotKVCache(model.kv_layout, num_slots, model.max_positions, device, model.dtype)
        self.prefixes = PrefixCache(prefix_bytes)
        self.sampler = SlotSampler(num_slots, device)
        self.hidden = torch.zeros(num_slots, model.hidden_size, dtype=model.dtype, device=device)
        self.codes = torch.zeros(num_slots, model.num_codebooks, dtype=torch.int64, device=device)
        self.pending = torch.zeros(
            num_slots,
            model.num_codebooks,
            model.codec.frames_per_step,
            dtype=torch.int64,
            device=device,
        )
        self.fresh = torch.ones(num_slots, dtype=torch.bool, device=device)
        self.cache_bytes = self.kv.num_bytes + model.codec.allocate(num_slots)
        """Memory that the slots take: keys, values and codec state."""

    def assign(self, sequence: Sequence) -> None:
        """Give the sequence's slot its parameters; the prompt starts at position 0."""
        slot = sequence.slot
        self.sampler.assign(slot, sequence.sampling, sequence.seed)
        self.kv.lengths[slot] = 0
        self.fresh[slot] = True

    def clear(self, sequence: Sequence) -> None:
        """Wipe the slot of a sequence that failed: non-finite numbers must not outlive it."""
        self.kv.clear(sequence.slot)
        self.hidden[sequence.slot] = 0

    @torch.inference_mode()
    def prefill(self, sequences: Rows[Sequence]) -> None:
        """Run the prompts; each slot then holds the hidden state at its prompt's end.

        What a kept prefix holds of a prompt is copied instead.
        """
        device = self.model.device
        for s in sequences:
            s.restored = self.prefixes.restore(s.prompt.inputs, s.slot, self.kv)
        slots = self._slots(sequences)
        self.kv.lengths[slots] = torch.tensor([s.restored for s in sequences], device=device)
        lengths = torch.tensor([len(s.prompt) - s.restored for s in sequences], device=device)
        self._reach(len(s.prompt) for s in sequences)
        inputs = {
            name: torch.nn.utils.rnn.pad_sequence(
                [s.prompt.inputs[name][s.restored :] for s in sequences], batch_first=True
            ).to(device)
            for name in sequences[0].prompt.inputs
        }
        self.hidden[slots] = self.model.prefill(inputs, lengths, slots, self.kv)
        self.kv.lengths[slots] += lengths

    @torch.inference_mode()
    def keep(self, sequence: Sequence, inputs: Mapping[str, torch.Tensor], length: int) -> None:
        """Keep the keys and values of the slot's first positions, which these inputs made.

        It is a help, no need: if it fails, for want of memory above all, nothing is kept.
        """
        try:
            inputs = {name: tensor[:length] for name, tensor in inputs.items()}
            self.prefixes.keep(inputs, sequence.slot, self.kv)
        except Exception:
            log.exception("the prompt of %s is not kept", sequence.id)

    @torch.inference_mode()
    def advance(self, sequences: Rows[Sequence]) -> None:
        """Feed each slot's last frame back; the hidden state moves on by one position."""
        slots = self._slots(sequences)
        self._reach(s.length for s in sequences)
        self.hidden[slots] = self.model.advance(self.codes[slots], slots, self.kv)
        self.kv.lengths[slots] += 1

    @torch.inference_mode()
    def emit(self, sequences: Rows[Sequence]) -> EmittedFrames:
        """Pick the next frame of codes of each slot.  Changes nothing until `decode`."""
        slots = self._slots(sequences)
        sampler = self.sampler.rows([s.slot for s in sequences], slots)
        codes, end = self.model.emit(self.hidden[slots], sampler)
        return EmittedFrames(codes, end, sampler.finite, sampler.picked)

    @torch.inference_mode()
    def decode(self, sequences: Rows[Sequence], frames: EmittedFrames) -> list[Frame]:
        """Keep the emitted codes, turn them into sound and bring the result to the host."""
        slots = self._slots(sequences)
        size, span = self.model.codec.codebook_size, self.model.codec.frames_per_step
        self.codes[slots] = frames.codes
        # Reserved ids may be sampled, as in the reference, but are no sounds: code 0 is heard.
        reserved = (frames.codes < 0) | (frames.codes >= size)
        place = torch.tensor([s.frames % span for s in sequences], device=self.model.device)
        self.pending[slots, :, place] = torch.where(reserved, 0, frames.codes)
        due = [row for row, s in enumerate(sequences) if s.frames % span == span - 1]
        sounds = dict(zip(due, self._sound([sequences[row] for row in due]), strict=True))
        # Last, so that a codec that raises has changed nothing and its rows can be tried alone.
        self.sampler.commit(slots, frames.picked)
        flags = torch.stack([frames.end.long(), frames.finite.long(), reserved.sum(1)])
        ends, finites, reserveds = flags.tolist()
        return [
            Frame(
                sounds.get(row) or b"",
                bool(ends[row]),
                # What comes with the end is not sounded, so it need not be finite.
                bool(finites[row]) and (bool(ends[row]) or sounds.get(row, b"") is not None),
                reserveds[row],
                tuple(codes),
            )
            for row, codes in enumerate(frames.codes.tolist())
        ]

    def _sound(self, sequences: Rows[Sequence]) -> list[bytes | None]:
        """A codec step for slots whose frames are complete; None where it is not finite."""
        if not sequences:
            return []
        slots = self._slots(sequences)
        pcm, valid = self.model.codec.step(self.pending[slots], slots, self.fresh[slots])
        self.fresh[slots] = False
        finite = pcm.isfinite().all(dim=1).tolist()
        samples = (
            (pcm.nan_to_num().clamp(-1.0, 1.0) * 32767.0).round().to(torch.int16).cpu().numpy()
        )
        return [
            row[:count].astype("<i2").tobytes() if sounds else None
            for row, count, sounds in zip(samples, valid.tolist(), finite, strict=True)
        ]

    def _slots(self, sequences: Rows[Sequence]) -> torch.Tensor:
        return torch.tensor([s.slot for s in sequences], device=self.model.device)

    def _reach(self, lengths: Iterable[int]) -> None:
        extent = -(-max(lengths) // EXTENT_STEP) * EXTENT_STEP
        self.kv.extent = min(extent, self.kv.max_positions)


@attrs.frozen(eq=False)
class EmittedFrames:
    """codes int64 `[B, K]`; end, finite bool `[B]`; picked int64 `[B]`; all on the device."""

    codes: torch.Tensor
    end: torch.Tensor
    finite: torch.Tensor
    picked: torch.Tensor

    def row(self, index: int) -> EmittedFrames:
        """One row by itself."""
        one = slice(index, index + 1)
        return EmittedFrames(self.codes[one], self.end[one], self.finite[one], self.picked[one])

    @classmethod
    def joined(cls, parts: Rows[EmittedFrames]) -> EmittedFrames:
        """The rows of all parts, in order."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            torch.cat([part.codes for part in parts]),
            torch.cat([part.end for part in parts]),
            torch.cat([part.finite for part in parts]),
            torch.cat([part.picked for part in parts]),
        )


def run_isolated(
    run: Callable[[Rows[Sequence]], object], rows: Rows[Sequence]
) -> dict[Sequence, Exception]:
    """Run a step function over rows; if it raises, over each row alone.

    So an exception ends the guilty rows, and the others have their step all the same.  Needs
    a function that may be run again over the same rows.  Returns the rows that failed.
    """
    error = _attempt(run, rows) if rows else None
    if error is None:
        return {}
    if len(rows) == 1:
        return {rows[0]: error}
    alone = {row: _attempt(run, [row]) for row in rows}
    return {row: reason for row, reason in alone.items() if reason is not None}


def _attempt(run: Callable[[Rows[Sequence]], object], rows: Rows[Sequence]) -> Exception | None:
    try:
        run(rows)
    except Exception as error:  # noqa: BLE001  # the model is a plugin: it may raise anything
        return error
    return None
