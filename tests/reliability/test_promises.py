"""Each promise of docs/operations.md, tested on the server and on one broken on purpose."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import pytest

from tests.launched import Start
from tests.reliability import crowds, ends, inputs, rows
from tests.reliability.conftest import Promises


@attrs.frozen
class Case:
    """A promise, its check, a fault from `faults.py`, and how the check fails with that fault."""

    promise: str
    check: Callable[[Start, Promises], None]
    fault: str
    failure: str


CASES = [
    Case("overload", crowds.overload, "admits_everybody", "0 were refused"),
    Case("a client leaves", crowds.a_client_leaves, "forgets_who_left", "slots are not free"),
    Case("SIGTERM", ends.sigterm, "ends_without_limit", "the long stream was not cut"),
    Case("worker killed", ends.killed, "misses_a_death", "nothing was noticed within 1 s"),
    Case("worker hung", ends.hung, "misses_a_hang", "nothing was noticed within 2.5 s"),
    Case("a request that fails", rows.a_request_that_fails, "fails_the_batch", "others are whole"),
    Case("slow reader", crowds.slow_reader, "waits_for_readers", "0 of 20 were dropped"),
    Case(
        "slow headers, slow body, silence", crowds.slow_sender, "waits_for_requests",
        "connections stay open",
    ),
    Case("fuzz", inputs.fuzzing, "fails_on_names", r"found failures[\s\S]*Server error"),
    Case("names and keys", inputs.names_and_keys, "shares_everything", "another key's things"),
    Case("uploads", inputs.uploads, "decodes_everything", "memory grew by"),
    Case("determinism", rows.determinism, "ignores_deterministic", "are the same"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.promise)
def test_a_promise_is_kept(case: Case, start: Start, promises: Promises) -> None:
    case.check(start, promises)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.promise}, {case.fault}")
def test_a_broken_server_is_detected(
    case: Case, broken: Callable[[str], Start], promises: Promises
) -> None:
    with promises.fails(case.promise, case.fault, case.failure):
        case.check(broken(case.fault), promises)
