"""How many nodes a frame of Pocket TTS has, held to what was reached."""

from __future__ import annotations

import pytest

from tests.triton_device import HAS_TRITON

if not HAS_TRITON:
    pytest.skip("Triton is not installed; Linux has it", allow_module_level=True)

from benchmarks.gpu import full_size
from benchmarks.gpu.nodes import steps

BUDGET = {"advance": 74, "emit": 381, "take": 10, "codec": 119}


@pytest.mark.parametrize("batch", [1, 64])
def test_a_frame_has_no_more_nodes_than_it_had(batch: int):
    """`emit` holds all four flow steps: the host does not know which rows a captured step has."""
    found = {step: nodes.count for step, nodes in steps(full_size.pocket(), batch).items()}
    assert found == BUDGET, "fewer are welcome: write them down"
