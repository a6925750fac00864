"""SEANet's compiled step, compared with the same stages in plain torch."""

from math import prod

import pytest
import torch

from vox_serve.nn import Past
from vox_serve.nn.compiled import c_compiler
from vox_serve.nn.seanet import decoder_stages
from vox_serve.nn.seanet_step import seanet_step
from vox_serve.testing.replay import recorded

SIZES = {
    "num_filters": 8,
    "upsampling_ratios": [5, 3, 2],
    "hidden_size": 24,
    "kernel_size": 7,
    "last_kernel_size": 3,
    "residual_kernel_size": 3,
    "num_residual_layers": 1,
    "dilation_growth_rate": 2,
    "compress": 2,
    "use_conv_shortcut": False,
}
FRAMES = 3

pytestmark = pytest.mark.skipif(c_compiler() is None, reason="needs a C compiler")


def made(**sizes):
    generator = torch.Generator().manual_seed(0)

    def read(name, *shape):
        return torch.randn(shape, generator=generator) / prod(shape[1:]) ** 0.5

    return decoder_stages(SIZES | sizes, read, rows=8)


def plain(stages, x, past):
    for stage in stages:
        x = stage(x, past)
    return x


def spoken(run, latents, width):
    """The audio of frames `[F, B, T, C]`, run one after another, and the final state."""
    state, sound = torch.zeros(latents.shape[1], width), []
    for frame in latents:
        past = Past(state)
        sound.append(run(frame, past))
        state = past.after()
    return torch.cat(sound, 1), state


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 16])
@torch.inference_mode()
def test_frames_equal_plain_torch(rows):
    stages = made()
    step = seanet_step(stages, 2)
    assert step is not None
    latents = torch.randn(FRAMES, rows, 2, 24)
    ours, left = spoken(step, latents, step.width)
    theirs, kept = spoken(lambda x, past: plain(stages, x, past), latents, step.width)
    assert ours.shape == theirs.shape == (rows, FRAMES * 60, 1)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(left, kept, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_the_bits_of_a_row_do_not_depend_on_other_rows():
    step = seanet_step(made(), 2)
    latents = torch.randn(FRAMES, 5, 2, 24)
    together, _ = spoken(step, latents, step.width)
    for row in range(5):
        alone, _ = spoken(step, latents[:, row : row + 1], step.width)
        assert torch.equal(alone[0], together[row])


@torch.inference_mode()
def test_non_finite_numbers_stay_in_their_row():
    step = seanet_step(made(), 2)
    latents = torch.randn(FRAMES, 3, 2, 24)
    latents[0, 1, 0, 3] = torch.nan
    latents[1, 1, 0, 4] = torch.inf
    finite = spoken(step, latents, step.width)[0].isfinite()
    assert finite[[0, 2]].all()
    assert not finite[1].any()


@torch.inference_mode()
def test_a_replay_of_torchs_operations_includes_the_step():
    step, x = seanet_step(made(), 2), torch.randn(2, 2, 24)
    replay = recorded(lambda: (step(x, Past(torch.zeros(2, step.width))),))
    x.normal_()
    assert torch.equal(replay()[0], step(x, Past(torch.zeros(2, step.width))))


def test_torch_runs_stages_that_the_c_code_does_not_know():
    assert seanet_step(made(num_residual_layers=2), 2) is None  # dilated
    assert seanet_step(made(use_conv_shortcut=True), 2) is None
    assert seanet_step(made(num_filters=128), 2) is None  # large
    with torch.device("meta"):
        on_meta = made().to("meta")
    assert seanet_step(on_meta, 2) is None
