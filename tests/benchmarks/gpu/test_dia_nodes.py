"""How many nodes a frame of Dia has, held to what was reached."""

from __future__ import annotations

import pytest

from tests.triton_device import HAS_TRITON

if not HAS_TRITON:
    pytest.skip("Triton is not installed; Linux has it", allow_module_level=True)

from benchmarks.gpu import full_size
from benchmarks.gpu.nodes import steps

BUDGET = {
    1: {"advance": 335, "emit": 60, "take": 17, "codec": 260},
    64: {"advance": 407, "emit": 60, "take": 17, "codec": 260},
}


@pytest.fixture(scope="module")
def model():
    return full_size.dia()


@pytest.mark.parametrize("batch", BUDGET)
def test_a_frame_has_no_more_nodes_than_it_had(batch: int, model):
    found = {step: nodes.count for step, nodes in steps(model, batch).items()}
    assert found == BUDGET[batch], "fewer are welcome: write them down"
