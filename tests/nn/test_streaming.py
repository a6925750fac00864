"""Causal convolutions step by step, compared with torch's over the whole input."""

import pytest
import torch
from torch.nn import functional as F

from vox_serve.nn import CausalConv, Past, TransposedConv

BATCH, STEPS = 2, 12


def random(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) - 0.5


def streamed(layer, x, length):
    """The outputs `[B, T, C]` for an input in pieces of `length` time steps."""
    before, outputs = None, []
    for part in x.split(length, dim=1):
        past = Past(before)
        outputs.append(layer(part, past))
        if layer.width:
            before = past.after()
            assert before.shape == (len(x), layer.width)
    return torch.cat(outputs, dim=1)


@pytest.mark.parametrize("length", [4, 12])
@pytest.mark.parametrize(
    ("outputs", "kernel", "stride", "dilation"),
    [
        (20, 7, 1, 1),
        (20, 3, 1, 4),
        (20, 1, 1, 1),
        (20, 8, 4, 1),
        (20, 4, 4, 1),
        (3, 3, 1, 1),
        (1, 3, 1, 1),
    ],
)
def test_a_causal_convolution_equals_torchs(length, outputs, kernel, stride, dilation):
    x, weight, bias = (
        random(BATCH, STEPS, 5),
        random(outputs, 5, kernel, seed=1),
        random(outputs, seed=2),
    )
    layer = CausalConv(weight, bias, stride, dilation)
    silence = (kernel - 1) * dilation + 1 - stride
    before = F.pad(x.transpose(1, 2), (silence, 0))
    expected = F.conv1d(before, weight, bias, stride, dilation=dilation).transpose(1, 2)
    torch.testing.assert_close(streamed(layer, x, length), expected)


def test_a_stream_may_be_padded_with_its_first_input():
    x, weight = random(BATCH, STEPS, 5), random(20, 5, 4, seed=1)
    layer = CausalConv(weight, stride=2, repeat=True)
    before = F.pad(x.transpose(1, 2), (2, 0), mode="replicate")
    expected = F.conv1d(before, weight, stride=2).transpose(1, 2)
    torch.testing.assert_close(streamed(layer, x, 4), expected)


@pytest.mark.parametrize("length", [1, 12])
@pytest.mark.parametrize("stride", [1, 5])
def test_a_transposed_convolution_equals_torchs(length, stride):
    x, weight, bias = random(BATCH, STEPS, 5), random(5, 3, 2 * stride, seed=1), random(3, seed=2)
    layer = TransposedConv(weight, bias)
    expected = F.conv_transpose1d(x.transpose(1, 2), weight, bias, stride)
    expected = expected[..., : STEPS * stride].transpose(1, 2)
    torch.testing.assert_close(streamed(layer, x, length), expected)


def test_a_state_of_zeros_is_the_start_of_a_stream():
    x, layer = random(BATCH, STEPS, 5), CausalConv(random(20, 5, 3, seed=1))
    zeros = Past(torch.zeros(BATCH, layer.width))
    assert torch.equal(layer(x, zeros), layer(x, Past(None)))
