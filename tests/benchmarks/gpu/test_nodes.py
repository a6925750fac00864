"""The number of graph nodes in a frame of the full-size models is exactly the recorded one."""

from __future__ import annotations

import pytest
import torch

from tests.triton_device import HAS_TRITON

if not HAS_TRITON:
    pytest.skip("Triton is not installed; Linux has it", allow_module_level=True)

from benchmarks.gpu import estimate, full_size
from benchmarks.gpu.nodes import Nodes, counting, prompt, steps

BUDGET = {
    ("csm", 1): {"advance": 105, "emit": 573, "take": 17, "codec": 164},
    ("csm", 16): {"advance": 105, "emit": 705, "take": 17, "codec": 164},
    ("csm", 64): {"advance": 153, "emit": 1126, "take": 17, "codec": 164},
    ("orpheus", 1): {"advance": 176, "emit": 8, "take": 17, "codec": 288},
    ("orpheus", 64): {"advance": 260, "emit": 8, "take": 17, "codec": 288},
    # Pocket TTS: `emit` holds all four flow steps, because the host does not know which rows a
    # captured step has.
    ("pocket", 1): {"advance": 74, "emit": 381, "take": 10, "codec": 119},
    ("pocket", 64): {"advance": 74, "emit": 381, "take": 10, "codec": 119},
    ("qwen", 1): {"advance": 217, "emit": 503, "take": 17, "codec": 337},
    ("qwen", 64): {"advance": 301, "emit": 757, "take": 17, "codec": 337},
    ("dia", 1): {"advance": 335, "emit": 60, "take": 17, "codec": 260},
    ("dia", 64): {"advance": 407, "emit": 60, "take": 17, "codec": 260},
}


@pytest.fixture(scope="module")
def models():
    names = dict.fromkeys(name for name, _ in BUDGET)
    return {name: getattr(full_size, name)() for name in names}


@pytest.mark.parametrize(("name", "batch"), BUDGET)
def test_a_frame_has_the_recorded_number_of_nodes(name: str, batch: int, models):
    found = {step: nodes.count for step, nodes in steps(models[name], batch).items()}
    assert found == BUDGET[name, batch], "if it has fewer now, update BUDGET"


@pytest.mark.parametrize(("name", "widths", "budget"), [("csm", (33,), 347), ("orpheus", (), 577)])
def test_a_prompt_has_the_recorded_number_of_nodes(name, widths, budget, models):
    found = [prompt(models[name], {"tokens": widths}, length).count for length in (64, 256)]
    assert found == [budget, budget]


def test_fp8_adds_no_nodes_for_a_few_rows(models):
    of = steps(full_size.csm(fp8=True), 4)
    assert {step: nodes.count for step, nodes in of.items()} == BUDGET["csm", 1]
    assert "_scaled_mm" not in of["emit"].launches
    assert of["emit"].bytes < 0.6 * steps(models["csm"], 4)["emit"].bytes


def test_fp8_products_of_many_rows_are_not_counted_as_float32(models):
    fp8, whole = steps(full_size.csm(fp8=True), 64)["emit"], steps(models["csm"], 64)["emit"]
    assert fp8.launches["_scaled_mm"]
    assert fp8.float32_flops == 0
    assert fp8.flops == pytest.approx(whole.flops, rel=0.01)  # rows are padded differently


def test_launches_operations_and_bytes_are_counted():
    with torch.inference_mode(), counting(context=5) as nodes:
        x = torch.empty(2, 8, device="meta")
        (x.view(16).view(2, 8) + 1).t()
        torch.nn.functional.linear(x, torch.empty(4, 8, device="meta"))
        x.to(torch.bfloat16)
    assert nodes.launches == {"add": 1, "linear": 1, "to": 1}
    assert nodes.products == 1
    assert nodes.flops == nodes.float32_flops == 2 * 2 * 8 * 4
    assert nodes.bytes == (64 + 64) + (64 + 128 + 32) + (64 + 32)
    with torch.inference_mode(), counting(context=5) as nodes:
        torch.addmm(torch.empty(4), torch.empty(2, 8), torch.empty(8, 4))
    assert nodes.flops == 2 * 2 * 8 * 4


def test_the_estimate_adds_up(capsys: pytest.CaptureFixture[str]):
    nodes = Nodes(bytes=int(estimate.H200 * 0.78 * 7))
    nodes.launches["add"] = 10
    assert estimate.LIKELY.of(nodes) == pytest.approx(10 * 2.3 + 7)
    assert estimate.BEST.of(nodes) < estimate.LIKELY.of(nodes) < estimate.WORST.of(nodes)
    assert estimate.main(["--batches", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 + 1 + 5
    assert lines[2].startswith("| csm, bfloat16 | 1 | 105 + 573 + 17 + 164 |")
    assert lines[8].startswith("| csm, bfloat16 | 347 |")


def test_a_captured_prompt_costs_its_graph_and_others_their_launches():
    prefill, frame = Nodes(), Nodes()
    prefill.launches["add"] = 100
    of = {"emit": frame, "take": frame, "codec": frame}
    captured, plain = (
        estimate.first_audio(prefill, of, estimate.LIKELY, captured) for captured in (True, False)
    )
    assert captured == pytest.approx(estimate.HOST_MICROSECONDS + 100 * 2.3)
    assert plain == pytest.approx(estimate.HOST_MICROSECONDS + 100 * 8)
