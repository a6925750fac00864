"""The compiled step of Mimi's transformer, compared with the same stack in plain torch."""

from copy import deepcopy

import pytest
import torch

from vox_serve.nn.compiled import c_compiler
from vox_serve.nn.mimi_transformer import StreamingTransformer
from vox_serve.nn.mimi_transformer_step import transformer_step
from vox_serve.testing.replay import recorded

SIZES = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_attention_heads": 3,
    "head_dim": 16,
    "num_hidden_layers": 2,
    "sliding_window": 5,
    "norm_eps": 1e-5,
    "rope": {"rope_theta": 10_000.0},
}
SLOTS = 6

pytestmark = pytest.mark.skipif(c_compiler() is None, reason="needs a C compiler")


def made(**sizes):
    generator = torch.Generator().manual_seed(0)

    def read(name, *shape):
        return torch.randn(shape, generator=generator) / shape[-1] ** 0.5

    return StreamingTransformer(SIZES | sizes, read, "", rows=8)


def spoken(run, rings, latents, slots):
    """The outputs of frames `[F, B, 2, C]`, run one after another."""
    first = torch.zeros(len(slots), dtype=torch.int64)
    return torch.stack([run(x, rings, slots, first + 2 * n) for n, x in enumerate(latents)])


@pytest.mark.parametrize("rows", [1, 2, 3, 6])
@torch.inference_mode()
def test_frames_beyond_the_window_equal_plain_torch(rows):
    stack = made()
    step = transformer_step(stack)
    assert step is not None
    ours, theirs = stack.rings(SLOTS, 2), stack.rings(SLOTS, 2)
    latents, slots = torch.randn(7, rows, 2, 48), torch.randperm(SLOTS)[:rows]
    got, wanted = spoken(step, ours, latents, slots), spoken(stack, theirs, latents, slots)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    for one, other in zip(ours.layers, theirs.layers, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_a_late_position_is_turned_as_in_plain_torch():
    stack = made()
    step, slots, first = transformer_step(stack), torch.tensor([2]), torch.tensor([24_998])
    x = torch.randn(1, 2, 48)
    rings = stack.rings(SLOTS, 2)
    for ring in rings.layers:
        ring.normal_()
    wanted = stack(x, deepcopy(rings), slots, first)
    torch.testing.assert_close(step(x, rings, slots, first), wanted, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_the_bits_of_a_row_do_not_depend_on_other_rows():
    stack = made()
    step, latents = transformer_step(stack), torch.randn(5, SLOTS, 2, 48)
    together = spoken(step, stack.rings(SLOTS, 2), latents, torch.arange(SLOTS))
    for row in range(SLOTS):
        alone = spoken(step, stack.rings(SLOTS, 2), latents[:, [row]], torch.tensor([row]))
        assert torch.equal(alone[:, 0], together[:, row])


@torch.inference_mode()
def test_non_finite_numbers_stay_in_their_row():
    stack = made()
    step, latents = transformer_step(stack), torch.randn(5, 3, 2, 48)
    latents[1, 1, 0, 7] = torch.nan
    finite = spoken(step, stack.rings(SLOTS, 2), latents, torch.arange(3)).isfinite()
    assert finite[:, [0, 2]].all()
    assert not finite[1:, 1].all()


@torch.inference_mode()
def test_gelu_is_near_torchs_everywhere():
    stack = made(num_hidden_layers=1)
    step, slots, first = transformer_step(stack), torch.tensor([0]), torch.tensor([0])
    for scale in (1e-3, 1.0, 30.0):
        stack.layers[0].norm2.weight.data.fill_(scale)
        x = torch.randn(1, 2, 48)
        wanted = stack(x, stack.rings(SLOTS, 2), slots, first)
        got = step(x, stack.rings(SLOTS, 2), slots, first)
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_a_replay_of_torchs_operations_includes_the_step():
    stack = made()
    step, slots, first = transformer_step(stack), torch.arange(2), torch.zeros(2, dtype=torch.int64)
    x, rings = torch.randn(2, 2, 48), stack.rings(SLOTS, 2)
    replay = recorded(lambda: (step(x, rings, slots, first),))
    x.normal_()
    assert torch.equal(replay()[0], step(x, rings, slots, first))


def test_torch_runs_stacks_that_the_c_code_does_not_know():
    assert transformer_step(made(hidden_act="gelu_pytorch_tanh")) is None
    assert transformer_step(made(head_dim=8)) is None
    assert transformer_step(made(hidden_size=40)) is None
    assert transformer_step(made(intermediate_size=80_000)) is None  # large
