"""Decides which sequences run, waiting -> running -> finished, and assigns slots.

Touches no tensors.  First come, first served; a sequence keeps its slot until it ends.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable

from vox_serve.engine.sequence import Sequence, SequenceStatus
from vox_serve.messages import KEPT_SECONDS, FinishReason

PREFILL_POSITIONS = 4096
"""The most prompt positions run in one step, padding included; one prompt is always allowed."""
PIECE_POSITIONS = 256
"""The same while others speak, so that a long prompt delays them only by a piece at a time."""
PREFILL_BUCKET = 64
"""Prompts run together only if their lengths, rounded up to this, are equal: less padding."""


class Scheduler:
    """Decides which sequence runs next.

    Args:
        num_slots: sequences that may run at once.
        alone: run each prompt by itself, always in the same pieces.
        clock: returns the time in seconds.
    """

    def __init__(
        self, num_slots: int, alone: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.num_slots = num_slots
        self._alone = alone
        self._clock = clock
        self.waiting: deque[Sequence] = deque()
        self.running: dict[str, Sequence] = {}
        self._free_slots = list(range(num_slots))
        self._kept: dict[str, float] = {}
        """Ids whose next part is expected, and the time until which a slot is reserved for it."""

    def __contains__(self, sequence_id: str) -> bool:
        return sequence_id in self.running or any(s.id == sequence_id for s in self.waiting)

    @property
    def has_work(self) -> bool:
        running = any(not s.waits_for_text for s in self.running.values())
        return running or any(map(self._may_start, self.waiting))

    def add(self, sequence: Sequence) -> None:
        if sequence.continues:
            self.waiting.appendleft(sequence)
        else:
            self.waiting.append(sequence)

    def release(self, sequence_id: str) -> None:
        """No longer expect a next part of this id."""
        self._kept.pop(sequence_id, None)

    def find(self, sequence_id: str) -> Sequence | None:
        waiting = (s for s in self.waiting if s.id == sequence_id)
        return self.running.get(sequence_id) or next(waiting, None)

    def schedule(self) -> list[Sequence]:
        """Give free slots to waiting sequences, in order; returns those that got one."""
        now = self._clock()
        self._kept = {name: until for name, until in self._kept.items() if until > now}
        admitted: list[Sequence] = []
        for sequence in list(self.waiting):
            if not self._free_slots:
                break
            if not self._may_start(sequence):
                continue
            self.waiting.remove(sequence)
            self.release(sequence.id)
            sequence.slot = heapq.heappop(self._free_slots)
            self.running[sequence.id] = sequence
            admitted.append(sequence)
        return admitted

    def speaking(self) -> list[Sequence]:
        """Sequences whose prompt has been run and that can begin a frame."""
        ready = [s for s in self.running.values() if s.ready and s.launched < s.max_frames]
        return [s for s in ready if not s.waits_for_text]

    def prefilling(self) -> tuple[list[Sequence], int]:
        """Sequences whose prompts run in this step, and the most positions of each."""
        rows = [s for s in self.running.values() if not s.ready]
        if self._alone:
            return rows[:1], PIECE_POSITIONS
        most = PIECE_POSITIONS if len(rows) < len(self.running) else PREFILL_POSITIONS
        sizes = {s: _bucket(min(most, len(s.prompt) - s.prefilled)) for s in rows}
        alike = [s for s in rows if sizes[s] == sizes[rows[0]]]  # others come in a later step
        return alike[: max(1, most // sizes[rows[0]]) if rows else 0], most

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """End a sequence, waiting or running, and free its slot."""
        if sequence.status is SequenceStatus.RUNNING:
            del self.running[sequence.id]
            heapq.heappush(self._free_slots, sequence.slot)
            if sequence.more and reason in (FinishReason.STOP, FinishReason.LENGTH):
                self._kept[sequence.id] = self._clock() + KEPT_SECONDS
        else:
            self.waiting.remove(sequence)
        sequence.finish_reason = reason

    def _may_start(self, sequence: Sequence) -> bool:
        """Whether it has a prompt, and a slot is not reserved for another sequence."""
        if not sequence.prompt.inputs:
            return False
        others = len(self._kept) - (sequence.id in self._kept)
        return len(self._free_slots) > others


def _bucket(positions: int) -> int:
    return -(-positions // PREFILL_BUCKET) * PREFILL_BUCKET
