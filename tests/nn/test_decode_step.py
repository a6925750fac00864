"""The compiled step, compared with the same stack in plain torch."""

import logging
from pathlib import Path

import pytest
import torch

from vox_serve.engine.kv_cache import SlotKVCache
from vox_serve.nn import FrameCache, Linear, Llama, LlamaConfig, compiled
from vox_serve.testing.replay import recorded

SIZES = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}
CPU = torch.device("cpu")

pytestmark = pytest.mark.skipif(compiled.c_compiler() is None, reason="needs a C compiler")


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def stack(request):
    """A stack with random weights rounded to this dtype, and a head of 70 codes."""
    torch.manual_seed(0)
    stack = Llama(LlamaConfig.from_json({}, SIZES)).requires_grad_(False)
    stack.own_head = Linear(48, 70).requires_grad_(False)
    for parameter in stack.parameters():
        parameter.copy_(torch.randn(parameter.shape).mul_(0.2).to(request.param))
    stack.prepare(CPU, torch.float32, [stack.own_head])
    assert stack._decode_step is not None
    return stack


def plain(stack, run):
    """Run this without the compiled step."""
    compiled, stack._decode_step = stack._decode_step, None
    try:
        return run()
    finally:
        stack._decode_step = compiled


def filled(stack, slots=5, positions=40):
    cache = SlotKVCache(stack.config.kv_layout, slots, positions, CPU, torch.float32)
    cache.keys.normal_()
    cache.values.normal_()
    return cache


@torch.inference_mode()
def test_a_step_equals_plain_torch_at_every_number_of_rows(stack):
    for rows in range(1, 12):
        slots = torch.randperm(12)[:rows]
        cache = filled(stack, slots=12)
        cache.lengths.random_(0, 39)
        x, before = torch.randn(rows, 48), cache.keys.clone()
        ours = stack.advance(x, slots, cache)
        written = cache.keys.clone()
        cache.keys.copy_(before)
        reference = plain(stack, lambda x=x, s=slots, c=cache: stack.advance(x, s, c))
        torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(written, cache.keys, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_a_frame_equals_plain_torch_from_its_first_pair_of_positions_to_its_codes(stack):
    def frame():
        torch.manual_seed(1)
        cache = FrameCache(stack.config.kv_layout, 3, 4, CPU, torch.float32)
        passes = [range(2), range(2, 3), range(3, 4)]
        return [
            stack(
                torch.randn(3, len(span), 48),
                torch.tensor([list(span)]),
                cache.append(span),
                stack.own_head,
            )
            for span in passes
        ]

    for ours, reference in zip(frame(), plain(stack, frame), strict=True):
        assert ours.shape == (3, 70)
        torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_the_bits_of_a_row_do_not_depend_on_other_rows(stack):
    slots, x = torch.arange(5), torch.randn(5, 48)
    cache = filled(stack)
    cache.lengths.copy_(torch.tensor([3, 0, 17, 39, 8]))
    together = stack.advance(x, slots, cache)
    for row in range(5):
        alone = stack.advance(x[row : row + 1], slots[row : row + 1], cache)
        assert torch.equal(alone[0], together[row])


@torch.inference_mode()
def test_non_finite_numbers_stay_in_their_row(stack):
    slots, x = torch.arange(5), torch.randn(5, 48)
    cache = filled(stack)
    cache.lengths.fill_(7)
    x[1, 3] = torch.nan
    cache.keys[0, 3, 2] = torch.inf
    cache.values[1, 2, 30] = torch.nan  # not yet written
    finite = stack.advance(x, slots, cache).isfinite()
    assert finite.all(1).tolist() == [True, False, True, False, True]
    assert not finite[1].any()


@torch.inference_mode()
def test_large_scores_do_not_overflow(stack):
    slots, x = torch.arange(1), torch.randn(1, 48)
    cache = filled(stack)
    cache.keys.mul_(1e4)
    cache.lengths.fill_(30)
    reference = plain(stack, lambda: stack.advance(x, slots, cache))
    torch.testing.assert_close(stack.advance(x, slots, cache), reference, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_a_replay_of_torchs_operations_includes_the_step(stack):
    slots, x = torch.arange(5), torch.randn(5, 48)
    cache = filled(stack)
    replay = recorded(lambda: (stack.advance(x, slots, cache),))
    x.normal_()
    assert torch.equal(replay()[0], stack.advance(x, slots, cache))


def test_weights_that_bfloat16_holds_take_half_the_memory(stack, request):
    weights = sum(weight.numel() for weight in stack.parameters() if weight.dim() == 2)
    size = 2 if "bfloat16" in request.node.callspec.id else 4
    assert size * weights <= stack._decode_step.nbytes < 2 * size * weights  # blocks are padded


def test_torch_runs_stacks_that_are_large_trained_or_computed_in_bfloat16():
    wide = Llama(LlamaConfig.from_json({}, SIZES))
    wide.prepare(CPU, torch.float32)
    assert wide._decode_step is None  # its weights need gradients
    wide.requires_grad_(False).prepare(CPU, torch.bfloat16)
    assert wide._decode_step is None
    odd = Llama(LlamaConfig.from_json({}, SIZES | {"head_dim": 8})).requires_grad_(False)
    odd.prepare(CPU, torch.float32)
    assert odd._decode_step is None


@pytest.fixture
def no_library(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiled.library.cache_clear()
    yield tmp_path
    compiled.library.cache_clear()


def test_without_a_compiler_torch_runs_and_one_line_says_so(no_library, monkeypatch, caplog):
    monkeypatch.setenv("CC", "/no/such/compiler")
    stack = Llama(LlamaConfig.from_json({}, SIZES)).requires_grad_(False)
    with caplog.at_level(logging.WARNING):
        stack.prepare(CPU, torch.float32)
        stack.prepare(CPU, torch.float32)
    assert stack._decode_step is None
    assert len(caplog.messages) == 1
    assert "cannot be compiled" in caplog.text
    assert "/no/such/compiler" in caplog.text


def test_a_compiler_that_fails_is_quoted(no_library, monkeypatch, caplog):
    failing = no_library / "cc"
    failing.write_text("#!/bin/sh\necho no space left >&2\nexit 1\n")
    failing.chmod(0o755)
    monkeypatch.setenv("CC", str(failing))
    assert compiled.library() is None
    assert "no space left" in caplog.text


def test_it_is_compiled_once_and_kept(no_library, monkeypatch):
    assert compiled.library() is not None
    kept = list(Path(no_library).rglob("*.so"))
    assert len(kept) == 1
    compiled.library.cache_clear()
    monkeypatch.setattr(compiled.subprocess, "run", None)
    assert compiled.library() is not None
