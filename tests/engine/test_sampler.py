"""The sampler: its noise, its filters compared with transformers', and independent rows."""

import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from vox_serve.engine.sampler import SlotSampler, _mix, gumbel_noise
from vox_serve.sampling import SamplingParams

MASK = 2**64 - 1


def make_sampler(*params: SamplingParams, seeds: list[int] | None = None) -> SlotSampler:
    state = SlotSampler(len(params), torch.device("cpu"))
    for slot, each in enumerate(params):
        state.assign(slot, each, seeds[slot] if seeds else slot)
    return state


def rows(state: SlotSampler, *slots: int):
    return state.rows(list(slots), torch.tensor(slots))


def random_logits(count: int, size: int = 97) -> torch.Tensor:
    return 3 * torch.randn(count, size, generator=torch.Generator().manual_seed(1))


def test_mix_is_splitmix64():
    def reference(state: int) -> int:
        z = (state + 0x9E3779B97F4A7C15) & MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)

    for state in (0, 1, 1234567, 2**63 - 1):
        golden = torch.tensor(0x9E3779B97F4A7C15 - 2**64)
        ours = int(_mix(torch.tensor(state) + golden))
        assert ours & MASK == reference(state)
    assert reference(1234567) == 6457827717110365317  # published first output for this seed


def test_noise_has_a_gumbel_distribution():
    noise = gumbel_noise(_mix(torch.arange(200)), 2051)
    assert noise.isfinite().all()
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.01)
    assert noise.var().item() == pytest.approx(torch.pi**2 / 6, rel=0.01)
    columns, lines = noise[:, 7], noise[7]
    for series in (columns, lines):
        centred = series - series.mean()
        neighbours = (centred[1:] * centred[:-1]).mean() / centred.var()
        assert abs(neighbours.item()) < 0.2


def test_draws_follow_the_softmax():
    count = 20_000
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 0.5])
    params = SamplingParams(temperature=0.7, top_k=0)
    state = make_sampler(*[params] * count)
    drawn = rows(state, *range(count))(logits.expand(count, -1), 0)
    expected = (logits / 0.7).softmax(-1) * count
    observed = torch.bincount(drawn, minlength=5)
    chi_square = ((observed - expected) ** 2 / expected).sum().item()
    assert chi_square < 18.5  # 99.9 % of the distribution with four degrees of freedom


def test_seed_frame_and_codebook_each_change_the_draw():
    params = SamplingParams(temperature=1.0, top_k=0)
    state = make_sampler(params, params, seeds=[5, 5])
    flat = torch.zeros(2, 5000)
    first = rows(state, 0, 1)(flat, 0)
    assert first[0] == first[1]  # same seed, same frame, same codebook
    assert rows(state, 0, 1)(flat, 1)[0] != first[0]
    state.commit(torch.tensor([0]), first[:1])
    moved = rows(state, 0, 1)(flat, 0)
    assert moved[0] != first[0]
    assert moved[1] == first[1]
    state.assign(0, params, 6)
    assert rows(state, 0, 1)(flat, 0)[0] != first[0]


def test_a_row_draws_the_same_in_any_batch_and_slot():
    mixed = [
        SamplingParams(temperature=0.9, top_k=20),
        SamplingParams(temperature=0.0),
        SamplingParams(temperature=1.5, top_k=0, top_p=0.8, repetition_penalty=2.0),
        SamplingParams(temperature=1.0, top_k=0, min_p=0.1),
    ]
    seeds = [11, 12, 13, 14]
    logits = random_logits(4)
    together = rows(make_sampler(*mixed, seeds=seeds), 0, 1, 2, 3)(logits, 0)
    order = [2, 0, 3, 1]
    shuffled = make_sampler(*[mixed[i] for i in order], seeds=[seeds[i] for i in order])
    assert rows(shuffled, 0, 1, 2, 3)(logits[order], 0).tolist() == together[order].tolist()
    for i in range(4):
        alone = make_sampler(mixed[i], seeds=[seeds[i]])
        assert rows(alone, 0)(logits[i : i + 1], 0).item() == together[i].item()


@pytest.mark.parametrize(
    ("params", "warpers"),
    [
        (SamplingParams(temperature=1.0, top_k=1), [TopKLogitsWarper(1)]),
        (SamplingParams(temperature=1.0, top_k=7), [TopKLogitsWarper(7)]),
        (SamplingParams(temperature=1.0, top_k=0, top_p=0.6), [TopPLogitsWarper(0.6)]),
        (SamplingParams(temperature=1.0, top_k=0, top_p=0.01), [TopPLogitsWarper(0.01)]),
        (SamplingParams(temperature=1.0, top_k=0, min_p=0.2), [MinPLogitsWarper(0.2)]),
        (SamplingParams(temperature=1.0, top_k=0), []),
        (
            SamplingParams(temperature=1.0, top_k=12, top_p=0.7, min_p=0.05),
            [TopKLogitsWarper(12), TopPLogitsWarper(0.7), MinPLogitsWarper(0.05)],
        ),
    ],
)
def test_filters_keep_what_transformers_keeps(params, warpers):
    logits = random_logits(50)
    expected = logits
    for warper in warpers:
        expected = warper(None, expected)
    sampler = rows(make_sampler(*[params] * 50), *range(50))
    kept = logits >= sampler._threshold(logits)
    assert torch.equal(kept, expected.isfinite())


@pytest.mark.parametrize("top_k", [0, 1, 7, 96, 97, 500])
@pytest.mark.parametrize("min_p", [0.0, 0.1])
def test_skipping_work_that_no_row_needs_changes_nothing(top_k, min_p):
    """Without top-p, only the highest codes are sorted; a captured step sorts all."""
    other = SamplingParams(temperature=0.5, top_k=7)
    params = SamplingParams(temperature=0.8, top_k=top_k, min_p=min_p)
    logits = random_logits(20).round(decimals=1)  # so that there are ties
    state = make_sampler(*[params, other] * 10)
    some, every = rows(state, *range(20)), state.rows(None, torch.arange(20))
    assert torch.equal(some(logits, 0), every(logits, 0))
    kept = [logits >= sampler._threshold(logits) for sampler in (some, every)]
    assert torch.equal(*kept)


def test_filters_act_after_the_temperature():
    logits = random_logits(20)
    params = SamplingParams(temperature=0.5, top_k=0, top_p=0.6)
    allowed = TopPLogitsWarper(0.6)(None, logits / 0.5).isfinite()
    for seed in range(50):
        sampler = rows(make_sampler(*[params] * 20, seeds=[seed] * 20), *range(20))
        assert allowed.gather(1, sampler(logits, 0)[:, None]).all()


def test_a_temperature_of_zero_is_greedy_beside_rows_that_draw():
    logits = random_logits(2)
    state = make_sampler(SamplingParams(temperature=0.0), SamplingParams(temperature=3.0))
    assert rows(state, 0, 1)(logits, 0)[0] == logits[0].argmax()


def test_repetition_penalty_equals_that_of_transformers_on_codebook_0():
    logits = random_logits(1)
    params = SamplingParams(temperature=0.0, repetition_penalty=1.7)
    state = make_sampler(params)
    history = [4, 9, 4, 0]
    for code in history:
        state.commit(torch.tensor([0]), torch.tensor([code]))
    expected = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([history]), logits.clone())
    sampler = rows(state, 0)
    assert torch.equal(sampler._penalised(logits), expected)
    favourite = torch.zeros(1, 20)
    favourite[0, 4], favourite[0, 5] = 1.0, 0.9
    assert sampler(favourite, 0).item() == 5
    assert sampler(favourite, 1).item() == 4


class LongParams(SamplingParams):
    repetition_window = 70


@pytest.mark.parametrize("kind", [SamplingParams, LongParams])
def test_repetition_penalty_forgets_after_its_window(kind: type[SamplingParams]):
    state = SlotSampler(1, torch.device("cpu"), kind)
    state.assign(0, kind(temperature=0.0, repetition_penalty=2.0), 0)
    favourite = torch.zeros(1, 20)
    favourite[0, 4], favourite[0, 5] = 1.0, 0.9
    state.commit(torch.tensor([0]), torch.tensor([4]))
    for _ in range(kind.repetition_window - 1):
        assert rows(state, 0)(favourite, 0).item() == 5
        state.commit(torch.tensor([0]), torch.tensor([11]))
    assert rows(state, 0)(favourite, 0).item() == 5
    state.commit(torch.tensor([0]), torch.tensor([11]))
    assert rows(state, 0)(favourite, 0).item() == 4


def test_a_new_sequence_in_the_slot_has_no_history():
    params = SamplingParams(temperature=0.0, repetition_penalty=2.0)
    state = make_sampler(params)
    state.commit(torch.tensor([0]), torch.tensor([4]))
    state.assign(0, params, 0)
    favourite = torch.zeros(1, 20)
    favourite[0, 4], favourite[0, 5] = 1.0, 0.9
    assert rows(state, 0)(favourite, 0).item() == 4


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_bad_row_is_flagged_and_does_not_change_the_others(bad, temperature):
    params = SamplingParams(temperature=temperature, top_p=0.9)
    logits = random_logits(3)
    clean = rows(make_sampler(params, params, params), 0, 1, 2)(logits, 0)
    logits[1, 5] = bad
    sampler = rows(make_sampler(params, params, params), 0, 1, 2)
    picked = sampler(logits, 0)
    assert sampler.finite.tolist() == [True, False, True]
    assert picked[[0, 2]].tolist() == clean[[0, 2]].tolist()
    assert 0 <= picked[1] < logits.shape[1]


def test_codes_that_the_model_rules_out_are_not_an_error():
    logits = torch.full((1, 10), -torch.inf)
    logits[0, 3] = 0.0
    sampler = rows(make_sampler(SamplingParams(temperature=1.0)), 0)
    assert sampler(logits, 0).item() == 3
    assert sampler.finite.item()
