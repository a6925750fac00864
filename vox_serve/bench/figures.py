"""Computes the figures of a run from its recordings."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import attrs

from vox_serve.bench.recording import Outcome, Run


def percentile(values: Sequence[float], percent: float) -> float | None:
    """The least value that `percent` % of the values do not exceed (nearest rank).

    None if there are no values.
    """
    ordered = sorted(values)
    rank = max(1, math.ceil(percent / 100 * len(ordered)))
    return ordered[rank - 1] if ordered else None


@attrs.frozen
class Percentiles:
    """Percentiles of a figure over the requests that were ok; None if there were none."""

    p50: float | None
    p95: float | None
    p99: float | None

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Percentiles:
        known = [value for value in values if value is not None]
        return cls(*(percentile(known, percent) for percent in (50, 95, 99)))


@attrs.frozen
class Figures:
    """One run in numbers; docs/benchmarking.md says what each means.

    Times are in seconds.  `viable_share` is a share of all requests that ended, including refused
    and failed ones; `goodput` counts only viable ones.
    """

    load: float
    seconds: float
    requests: int
    ok: int
    refused: int
    failed: int
    unfinished: int
    first_audio: Percentiles
    real_time_factor: Percentiles
    gap: Percentiles
    underruns: int
    underrun_requests: int
    worst_underrun: float | None
    viable: int
    viable_share: float | None
    goodput_requests: float
    goodput_audio: float
    client_late: float
    errors: dict[str, int]
    details: dict[str, str]


def figures(run: Run) -> Figures:
    """The figures of a run that has ended."""
    assert run.ended is not None
    seconds = run.ended - run.began
    outcomes = Counter(recording.outcome for recording in run.recordings)
    ok = [recording for recording in run.recordings if recording.outcome is Outcome.OK]
    viable = [recording for recording in ok if recording.viable]
    faults = [(each.failure, each.detail) for each in run.recordings if each.failure is not None]
    finished = len(run.recordings) - outcomes[Outcome.UNFINISHED]
    sent = [each.late for each in run.recordings if each.started]
    return Figures(
        load=run.load,
        seconds=seconds,
        requests=len(run.recordings),
        ok=len(ok),
        refused=outcomes[Outcome.REFUSED],
        failed=outcomes[Outcome.FAILED],
        unfinished=outcomes[Outcome.UNFINISHED],
        first_audio=Percentiles.of(each.first_audio for each in ok),
        real_time_factor=Percentiles.of(each.real_time_factor for each in ok),
        gap=Percentiles.of(gap for each in ok for gap in each.gaps),
        underruns=sum(each.underruns for each in ok),
        underrun_requests=len(ok) - len(viable),
        worst_underrun=max((each.worst_underrun for each in ok), default=None),
        viable=len(viable),
        viable_share=len(viable) / finished if finished else None,
        goodput_requests=len(viable) / seconds,
        goodput_audio=sum(each.audio for each in viable) / seconds,
        client_late=max([run.stall, *sent]),
        errors=dict(Counter(failure for failure, _ in faults).most_common()),
        details={failure: detail for failure, detail in reversed(faults) if detail},
    )
