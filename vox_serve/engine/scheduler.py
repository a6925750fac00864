"""Decides which sequences run: waiting -> running -> finished, and who owns which slot.

Knows nothing of tensors.  First come, first served; a sequence keeps its slot to its end.
"""

from __future__ import annotations

import heapq
from collections import deque

import attrs

from vox_serve.engine.messages import FinishReason
from vox_serve.engine.sequence import Sequence, SequenceStatus

PREFILL_TOKENS = 4096
"""Prompt positions, padding included, that join in one step (one prompt always may)."""


@attrs.frozen
class Batch:
    """One step's work: `running` were here before, `joining` come in new."""

    running: tuple[Sequence, ...]
    joining: tuple[Sequence, ...]


class Scheduler:
    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self.waiting: deque[Sequence] = deque()
        self.running: dict[str, Sequence] = {}
        self._free_slots = list(range(num_slots))

    def __contains__(self, sequence_id: str) -> bool:
        return sequence_id in self.running or any(s.id == sequence_id for s in self.waiting)

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        if sequence.continues:
            self.waiting.appendleft(sequence)
        else:
            self.waiting.append(sequence)

    def find(self, sequence_id: str) -> Sequence | None:
        waiting = (s for s in self.waiting if s.id == sequence_id)
        return self.running.get(sequence_id) or next(waiting, None)

    def schedule(self) -> Batch:
        """Give free slots to waiting sequences, in order, as far as the prefill budget goes."""
        running = tuple(self.running.values())
        joining: list[Sequence] = []
        longest = 0
        while self.waiting and self._free_slots:
            longest = max(longest, len(self.waiting[0].prompt))
            if joining and longest * (len(joining) + 1) > PREFILL_TOKENS:
                break
            sequence = self.waiting.popleft()
            sequence.slot = heapq.heappop(self._free_slots)
            self.running[sequence.id] = sequence
            joining.append(sequence)
        return Batch(running, tuple(joining))

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """End a sequence, waiting or running, and free its slot."""
        if sequence.status is SequenceStatus.RUNNING:
            del self.running[sequence.id]
            heapq.heappush(self._free_slots, sequence.slot)
        else:
            self.waiting.remove(sequence)
        sequence.finish_reason = reason
