"""How the columns of the CPU benchmark are run."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch

from benchmarks import columns
from benchmarks.peers import Timing


@pytest.mark.parametrize(("fast", "many"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_peer_is_not_slowed_by_a_type_that_the_processor_lacks(
    fast: bool, many: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[torch.dtype] = []

    class Peer:
        def hold(self, dtype: torch.dtype) -> None:
            held.append(dtype)

        def speak(self, ids: torch.Tensor, frames: int | None) -> Timing:
            return Timing(1.0, 1.0, 1.0)

    monkeypatch.setattr(columns, "fast_bfloat16", lambda: fast)
    prompt, threads = torch.zeros(1, 3), {1: 1, 4: 1, 16: 1}
    column = columns._transformers("peer", cast(Any, Peer()), prompt, threads, (1, 4, 16), None)
    for batch in threads:
        column.run(batch, 2)
    assert held == [torch.bfloat16, torch.bfloat16, many]
