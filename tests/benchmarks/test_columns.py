"""How the columns of the CPU benchmark are run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import columns, csm
from benchmarks.checkpoint import TOKENIZER
from benchmarks.columns import Setting
from benchmarks.peers import Transformers


@pytest.mark.parametrize("fast", [True, False])
def test_transformers_speaks_in_the_faster_type_of_each_batch(
    fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "fast_bfloat16", lambda: fast)
    setting = Setting("demo", "demo", TOKENIZER, {1: 2, 2: 2}, float32_from=2)
    model = Transformers(TOKENIZER, "cpu", setting.peer_dtype(1))
    prompt, threads = torch.tensor([[1, 2, 3]]), {1: 1, 2: 1}
    column = columns._transformers("peer", model, setting, prompt, threads, (1, 2), None)
    held = []
    for batch in (1, 2, 1):
        assert column.run(batch, 2)["frame"] > 0
        held.append(model._model.dtype)
    many = torch.bfloat16 if fast else torch.float32
    assert held == [torch.bfloat16, many, torch.bfloat16]


def test_float32_is_for_processors_that_lack_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    demo, full = (Setting("", "", Path(), {}, float32_from=least) for least in (1, 16))
    monkeypatch.setattr(columns, "fast_bfloat16", lambda: False)
    assert [demo.peer_dtype(b) for b in (1, 4, 16)] == [torch.float32] * 3
    assert [full.peer_dtype(b) for b in (1, 4)] == [torch.bfloat16] * 2
    assert full.peer_dtype(16) == torch.float32
    monkeypatch.setattr(columns, "fast_bfloat16", lambda: True)
    assert full.peer_dtype(16) == demo.peer_dtype(1) == torch.bfloat16


@pytest.mark.parametrize("part", ["demo", "full"])
def test_the_parts_of_make_bench_are_set_up(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to the measuring, with a checkpoint that is not written: batches, rounds, columns."""
    monkeypatch.setattr(csm, "write_full_size", lambda directory: None)
    found: list[tuple[Setting, int]] = []
    monkeypatch.setattr(
        csm, "run", lambda setting, rounds, **sizes: found.append((setting, rounds))
    )
    csm.demo(3) if part == "demo" else csm.full(tmp_path, 3)
    [(setting, rounds)] = found
    assert [setting.rounds(batch, rounds) for batch in setting.frames] == (
        [3, 3, 3] if part == "demo" else [3, 3, 2]
    )
    assert {form for group in setting.groups for form in group} == set(columns.FORMS)
    assert setting.engine_config("int8", 4).quantize == "int8"
