"""The sampling kernel picks the same codes as `RowSampler` on the CPU, its oracle."""

from __future__ import annotations

import random

import pytest
import torch

from tests.triton_device import (
    HAS_TRITON,
    INTERPRETED,
    INTERPRETER_WARNINGS,
    needs_triton,
    on_device,
    run_interpreted,
)
from vox_serve.engine.sampler import SlotSampler
from vox_serve.sampling import SamplingParams

if HAS_TRITON:
    from vox_serve.nn import triton_sampler, triton_wide_sampler

pytestmark = INTERPRETER_WARNINGS

CPU = torch.device("cpu")
MANY = 1 if INTERPRETED else 50
"""How many times more rows a GPU tests than the slow interpreter."""


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="this is the process that it starts")
@pytest.mark.timeout(300)
def test_the_tests_pass_in_the_interpreter():
    run_interpreted("tests/nn/test_triton_sampler.py")


class Rows:
    """A row per set of parameters, each after some frames; slots are shuffled."""

    def __init__(self, params: list[SamplingParams], size: int, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        count = len(params)
        self.slots = torch.randperm(count, generator=self.generator)
        self.state = SlotSampler(count, CPU)
        for slot, each in enumerate(params):
            self.state.assign(slot, each, int(self.integers(2**62, 1)))
        for _ in range(int(self.integers(40, 1))):
            self.state.commit(torch.arange(count), self.integers(size, count))

    def integers(self, high: int, count: int) -> torch.Tensor:
        return torch.randint(high, (count,), generator=self.generator)

    def logits(self, size: int, scale: float = 3.0) -> torch.Tensor:
        return scale * torch.randn(len(self.slots), size, generator=self.generator)

    def plain(self, logits: torch.Tensor, codebook: int) -> tuple[torch.Tensor, torch.Tensor]:
        sampler = self.state.rows(self.slots.tolist(), self.slots)
        return sampler(logits, codebook), sampler.finite

    def kernel(
        self,
        logits: torch.Tensor,
        codebook: int,
        device: torch.device,
        finite: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        finite = torch.ones(len(logits), dtype=torch.bool) if finite is None else finite
        finite = finite.clone().to(device)  # the kernel changes it in place
        state = self.state.values | {"recent": self.state.recent, "frame": self.state.frame}
        state = {name: values.to(device) for name, values in state.items()}
        slots = self.slots[: len(logits)].to(device)
        picked = triton_sampler.pick(logits.to(device), slots, codebook, **state, finite=finite)
        assert picked.dtype == torch.int64
        return picked.cpu(), finite.cpu()

    def near_the_edge(self, row: int, logits: torch.Tensor) -> bool:
        """Whether a cumulative probability of the row is within 1e-5 of its top_p."""
        slot = self.slots[row]
        scaled = logits[row].float() / self.state.values["temperature"][slot]
        ordered = scaled.sort(descending=True).values
        k = int(self.state.values["top_k"][slot]) or len(ordered)
        sums = ordered.masked_fill(ordered < ordered[min(k, len(ordered)) - 1], -torch.inf)
        sums = sums.softmax(-1).cumsum(-1)
        return bool(((sums - self.state.values["top_p"][slot]).abs() < 1e-5).any())


def mixed(count: int, seed: int) -> list[SamplingParams]:
    chance = random.Random(seed)
    return [
        SamplingParams(
            temperature=chance.choice([0.0, 0.3, 0.9, 0.9, 2.0]),
            top_k=chance.choice([0, 1, 5, 50, 50, 2**31 - 1]),
            top_p=chance.choice([1.0, 1.0, 0.95, 0.5, 0.01]),
            min_p=chance.choice([0.0, 0.0, 0.02, 0.3, 1.0]),
            repetition_penalty=chance.choice([1.0, 1.0, 1.3, 0.5]),
        )
        for _ in range(count)
    ]


@pytest.fixture(params=[False, True], ids=["narrow", "wide"])
def wide(request, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Run with the kernel for one block per row, and with that for wider rows in many blocks."""
    if request.param:
        monkeypatch.setattr(triton_sampler, "MAX_CODES", 0)
        monkeypatch.setattr(triton_wide_sampler, "BLOCK", 512)
    return request.param


@on_device
@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("codebook", [0, 7])
@pytest.mark.parametrize(
    ("count", "size", "dtype"),
    [
        (24 * MANY, 97, torch.float32),
        (24 * MANY, 64, torch.bfloat16),  # many ties
        (12 * MANY, 2051, torch.float32),
        (12 * MANY, 2051, torch.bfloat16),
        (12, 1, torch.float16),
    ],
    ids=str,
)
def test_picks_equal_the_plain_ones(
    device: torch.device, codebook: int, count: int, size: int, dtype: torch.dtype
):
    rows = Rows(mixed(count, codebook), size, seed=size + codebook)
    logits = rows.logits(size).to(dtype)
    expected, _ = rows.plain(logits, codebook)
    picked, finite = rows.kernel(logits, codebook, device)
    assert finite.all()
    differing = (picked != expected).nonzero()[:, 0].tolist()
    assert len(differing) <= count // 20
    for row in differing:
        top_p = rows.state.values["top_p"][rows.slots[row]]
        assert top_p < 1, f"row {row}"
        assert codebook != 0 or rows.state.penalty[rows.slots[row]] == 1, f"row {row}"
        assert rows.near_the_edge(row, logits), f"row {row}"


@on_device
@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0.0),
        SamplingParams(temperature=1.0, top_k=0),
        SamplingParams(temperature=0.9, top_k=50),
        SamplingParams(temperature=1.0, top_k=0, top_p=0.8),
        SamplingParams(temperature=1.0, top_k=0, min_p=0.1),
        SamplingParams(temperature=0.0, repetition_penalty=2.0),
    ],
    ids=str,
)
def test_each_filter_alone_equals_the_plain_one_on_flat_logits(
    device: torch.device, params: SamplingParams
):
    """Many codes are equally likely, so any error in the noise or a threshold shows."""
    rows = Rows([params] * 10 * MANY, 300)
    logits = rows.logits(300, scale=0.2)
    assert torch.equal(rows.kernel(logits, 0, device)[0], rows.plain(logits, 0)[0])


@on_device
def test_a_negative_logit_is_lowered_too(device: torch.device):
    rows = Rows([SamplingParams(temperature=0.0, repetition_penalty=2.0)] * 8, 40)
    logits = rows.logits(40) - 20
    assert torch.equal(rows.kernel(logits, 0, device)[0], rows.plain(logits, 0)[0])


@on_device
@pytest.mark.parametrize("size", [8192, 8193])
def test_rows_at_both_sides_of_the_largest_block_equal_the_plain_ones(
    device: torch.device, size: int
):
    rows = Rows(mixed(6, 1), size)
    logits = rows.logits(size)
    assert torch.equal(rows.kernel(logits, 1, device)[0], rows.plain(logits, 1)[0])


@on_device
def test_rows_may_have_gaps_between_them(device: torch.device):
    rows = Rows(mixed(8, 2), 50)
    logits = rows.logits(60).to(device)
    for part in (logits[:, :50], logits[:, 4:54], rows.logits(50).to(device).T.contiguous().T):
        assert torch.equal(rows.kernel(part, 0, device)[0], rows.plain(part.cpu(), 0)[0])


@on_device
@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_ties_go_to_the_lowest_code_and_zeros_have_no_sign(
    device: torch.device, temperature: float
):
    rows = Rows([SamplingParams(temperature=temperature, top_k=3, top_p=0.9)] * 20, 33)
    logits = torch.where(rows.logits(33) > 0, 0.0, -0.0)
    logits[10:, 5:] = -1.0
    expected = rows.plain(logits, 1)[0]
    assert torch.equal(rows.kernel(logits, 1, device)[0], expected)
    if temperature == 0:
        assert not expected.any()


@on_device
@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("size", [97, 128])
def test_a_bad_row_is_flagged_and_does_not_change_the_others(
    device: torch.device, bad: float, size: int
):
    rows = Rows(mixed(8, 3), size)
    logits = rows.logits(size)
    logits[:, 3] = -torch.inf  # a code that the model rules out is not an error
    expected = rows.plain(logits, 0)[0]
    spoiled = logits.clone()
    if bad == -torch.inf:
        spoiled[::3] = bad
    else:
        spoiled[::3, size // 2] = bad
    before = torch.ones(8, dtype=torch.bool)
    before[1] = False  # an earlier flag stays
    picked, finite = rows.kernel(spoiled, 0, device, before)
    good = torch.ones(8, dtype=torch.bool)
    good[::3] = False
    assert torch.equal(finite, good & before)
    assert torch.equal(rows.plain(spoiled, 0)[1], good)
    assert torch.equal(picked[good], expected[good])
    assert ((picked >= 0) & (picked < size)).all()


@on_device
def test_a_row_depends_on_no_other(device: torch.device):
    rows = Rows(mixed(8, 4), 97)
    logits = rows.logits(97)
    together = rows.kernel(logits, 0, device)[0]
    slots = rows.slots
    for row in range(8):
        rows.slots = slots[row : row + 1]
        assert rows.kernel(logits[row : row + 1], 0, device)[0] == together[row]


@on_device
def test_an_empty_batch_is_allowed(device: torch.device):
    rows = Rows(mixed(1, 5), 10)
    assert rows.kernel(torch.zeros(0, 10), 0, device)[0].shape == (0,)


class LongParams(SamplingParams):
    repetition_window = 100


@on_device
def test_a_long_window_is_applied_before_the_kernel(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
):
    params = LongParams(temperature=0.0, repetition_penalty=3.0)
    state, slots = SlotSampler(2, device, LongParams), torch.tensor([0, 1], device=device)
    for slot in (0, 1):
        state.assign(slot, params, 0)
    for code in range(60):  # a window of 32 forgets about half of them
        state.commit(slots, torch.tensor([code, 0], device=device))
    logits = torch.linspace(2.0, 1.0, 80, device=device).repeat(2, 1)
    monkeypatch.setattr("vox_serve.nn.kernels.DEVICES", ("cpu", "cuda"))
    picked = state.rows(None, slots)(logits, 0)
    assert picked.tolist() == [60, 1]
