"""Every kernel compiled for sm_90 as the full-size models launch it: registers, memory, spills.

`-s` prints the table.
"""

from __future__ import annotations

import re

import pytest
import torch

from tests.triton_device import HAS_TRITON

if not HAS_TRITON:
    pytest.skip("Triton is not installed; Linux has it", allow_module_level=True)

import triton

from benchmarks.gpu import full_size
from tests.hopper import Compiled, Launches, hopper
from vox_serve.engine.runner import ModelRunner
from vox_serve.nn import kernels, triton_kernels

META = torch.device("meta")
REGISTERS = {
    "_add_rms_norm": 80,
    "_combine_splits": 40,
    "_decode_attention": 168,
    "_fp8_rows": 64,
    "_frame_attention": 144,
    "_linear": 144,
    "_pair_attention": 48,
    "_pick": 128,
    "_pick_wide": 64,
    "_ring_attention": 160,
    "_rms_norm": 40,
    "_silu_mul": 40,
}
"""The most registers per thread.  Two blocks must fit on a multiprocessor, or none starts early."""
if triton.__version__.startswith("3.5."):  # of torch 2.9
    REGISTERS |= {"_frame_attention": 152, "_ring_attention": 216}
SHARED = {"_decode_attention": 48, "_frame_attention": 32, "_linear": 80, "_pick_wide": 8}
"""The most shared memory per block, in KiB; 4 for kernels not listed."""
STACK = {"_decode_attention": 8, "_pick_wide": 24}
"""Bytes that the compiler itself needs; more would be spilled registers."""
FETCHES = ("_frame_attention", "_linear")
READ_OR_WRITTEN = re.compile(r"\b(ld|st|red|atom)\.global|cp\.async\.c[ag]")


def launched(*models) -> Launches:
    found = Launches()
    for model in models:
        for batch in (1, 64):
            runner = ModelRunner(model, batch)
            slots = torch.zeros(batch, dtype=torch.int64, device=META)
            with hopper() as launches, torch.inference_mode():
                for step in (runner._advance, runner._emit, runner._take, runner._sound):
                    step(slots, None)
            found.extend(launches)
    return found


def float32() -> Launches:
    """Launch the kernels that only float32 and odd sizes need, as the tests on a GPU do."""
    with hopper() as launches:
        x, residual = torch.empty(2, 3, 1030, device=META), torch.empty(2, 3, 1030, device=META)
        weight = torch.empty(1030, device=META)
        kernels.add_rms_norm(x, residual, weight, 1e-5)
        kernels.rms_norm(x, weight, 1e-5)
        kernels.silu_mul(x)
        kernels.fp8_rows(x[0])
        triton_kernels.add_rms_norm(torch.empty(2, 2, 3, 1030, device=META), residual, weight, 1e-5)
    return launches


@pytest.fixture(scope="module")
def compiled() -> list[Compiled]:
    models = [make(fp8) for make in (full_size.csm, full_size.orpheus) for fp8 in (False, True)]
    found = {str(each): each for each in [*launched(*models), *float32()]}
    return [found[name] for name in sorted(found)]


@pytest.mark.timeout(600)
def test_nothing_spills_and_two_blocks_fit(compiled: list[Compiled]):
    print(*["", *compiled], sep="\n")
    assert {each.name for each in compiled} == set(REGISTERS)
    for each in compiled:
        assert each.local <= STACK.get(each.name, 0), each
        assert each.registers <= REGISTERS[each.name], each
        assert each.shared <= 1024 * SHARED.get(each.name, 4), each
        assert 2 * each.registers * 32 * each.warps <= 65536, each


@pytest.mark.timeout(600)
def test_global_memory_is_not_touched_before_the_previous_kernel_has_ended(
    compiled: list[Compiled],
):
    for each in compiled:
        before, _, after = each.ptx.partition("griddepcontrol.wait")
        assert after, each
        assert "griddepcontrol.launch_dependents" in before, each
        assert not READ_OR_WRITTEN.search(before), each
        assert READ_OR_WRITTEN.search(after), each
        assert ("prefetch.global.L2" in before) == (each.name in FETCHES), each


@pytest.mark.timeout(600)
def test_weights_are_copied_sixteen_bytes_at_a_time(compiled: list[Compiled]):
    for each in compiled:
        if each.name == "_linear":
            sizes = re.findall(r"cp\.async\.\w+\.shared\.global.*?, (0x\w+),", each.ptx)
            assert sizes, each
            assert set(sizes) == {"0x10"}, each


@pytest.mark.timeout(600)
def test_no_prompt_length_compiles_more_kernels():
    """Prompts of every length launch the kernels that the first one compiled."""
    model = full_size.csm()
    runner = ModelRunner(model, 4)

    def kinds(rows: int, time: int) -> set[int]:
        with hopper() as launches, torch.inference_mode():
            tokens = torch.zeros(rows, time, 33, dtype=torch.int64, device=META)
            numbers = torch.ones(rows, dtype=torch.int64, device=META)
            model.prefill({"tokens": tokens}, numbers, numbers, runner.kv)
        return {str(each) for each in launches}

    first = kinds(1, 64)
    assert first
    for rows, time in ((1, 128), (2, 64), (3, 448), (4, 1984)):
        assert kinds(rows, time) == first
