"""The kernel of a codec's attention over rings, compared with the plain version.

`test_kernels.py` runs these in the interpreter.
"""

from __future__ import annotations

import pytest
import torch

from tests.triton_device import HAS_TRITON, INTERPRETER_WARNINGS, on_device
from vox_serve.nn import mimi_transformer
from vox_serve.nn.mimi_transformer import StreamingTransformer

if HAS_TRITON:
    from vox_serve.nn.triton_ring import ring_attention

pytestmark = INTERPRETER_WARNINGS
SLOTS, HEADS, HEAD_DIM, WINDOW = 5, 2, 32, 34
SIZES = {
    "hidden_size": HEADS * HEAD_DIM,
    "intermediate_size": 16,
    "num_attention_heads": HEADS,
    "num_hidden_layers": 1,
    "sliding_window": WINDOW,
    "norm_eps": 1e-5,
    "rope": {"rope_theta": 10_000.0},
}


def noise(*shape: int, device: torch.device, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(device)


class Steps:
    """Steps of `time` latents through both versions, each with its own ring."""

    def __init__(self, device: torch.device, time: int) -> None:
        self.stack = StreamingTransformer(
            SIZES, lambda name, *shape: torch.zeros(shape, device=device), "", rows=1
        )
        self.device, self.time = device, time
        self.ours, self.theirs = (self.stack.rings(SLOTS, time) for _ in range(2))

    def __call__(
        self, qkv: torch.Tensor, slots: torch.Tensor, first: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The kernel's and the plain version's result for `qkv` `[B * T, 3 * heads * D]`."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mimi_transformer, "use_triton", lambda x: False)
            step = self.stack._step_inputs(self.theirs, slots, first, self.time)
        assert step.ring is not None
        ours = ring_attention(
            qkv, step.rotations, self.ours.layers[0], slots, first, self.stack.window
        )
        batch = self.theirs.batch[: len(slots)]
        theirs = mimi_transformer._attend(
            qkv.clone(), step.rotations, self.theirs.layers[0], slots, step.ring, batch
        )
        return ours, theirs


@on_device
@pytest.mark.parametrize("time", [1, 2])
def test_a_stream_beyond_its_window_equals_the_plain_version(device: torch.device, time: int):
    steps = Steps(device, time)
    slots = torch.tensor([3, 0, 4], device=device)
    begun = torch.tensor([0, 31, 70], device=device)
    past = noise(*steps.ours.layers[0].shape, device=device, seed=99)
    for rings in (steps.ours, steps.theirs):
        rings.layers[0].copy_(past)
    for number in range(6):
        qkv = noise(3 * time, 3 * HEADS * HEAD_DIM, device=device, seed=number)
        ours, theirs = steps(qkv, slots, begun + number * time)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(steps.ours.layers[0], steps.theirs.layers[0], rtol=1e-5, atol=1e-5)


@on_device
def test_a_row_depends_on_no_other_and_on_nothing_that_it_does_not_see(device: torch.device):
    steps, alone = Steps(device, 2), Steps(device, 2)
    steps.ours.layers[0][1] = torch.nan  # another slot
    steps.ours.layers[0][2, :, :, 9:] = torch.nan  # an earlier utterance in this slot
    past = noise(2, HEADS, 9, HEAD_DIM, device=device, seed=5)
    for each in (steps, alone):
        each.ours.layers[0][2, :, :, :9] = past
    qkv = noise(6, 3 * HEADS * HEAD_DIM, device=device)
    qkv[0] = torch.nan
    slots = torch.tensor([1, 2, 3], device=device)
    together, _ = steps(qkv, slots, torch.tensor([4, 9, 0], device=device))
    single, _ = alone(qkv[2:4], slots[1:2], torch.tensor([9], device=device))
    assert torch.equal(together[2:4], single)
    assert together[2:].isfinite().all()
    assert not together[:2].isfinite().all()
