"""The Llama stack over slots, compared with transformers' LlamaModel."""

import attrs
import pytest
import torch
from transformers import LlamaConfig as ReferenceConfig
from transformers import LlamaModel, Qwen3Model
from transformers import Qwen3Config as ReferenceQwen3

from vox_serve.engine.kv_cache import SlotKVCache
from vox_serve.errors import CheckpointError
from vox_serve.nn import (
    FrameCache,
    Llama,
    LlamaConfig,
    RopeConfig,
    llama_sources,
    uninitialised,
)

SIZES = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
CPU = torch.device("cpu")


def rope_json(scaling: dict | None) -> dict:
    return {"rope_theta": 500.0, "rope_scaling": scaling}


@pytest.fixture(params=["plain", "llama3", "qwen3"])
def pair(request):
    """Our stack and transformers', with the same random weights."""
    torch.manual_seed(0)
    scaling = LLAMA3 if request.param == "llama3" else None
    qwen3 = request.param == "qwen3"
    rope = rope_json(scaling)
    kind, model = (ReferenceQwen3, Qwen3Model) if qwen3 else (ReferenceConfig, LlamaModel)
    reference_config = kind(**SIZES, **rope, vocab_size=8)
    if hasattr(reference_config, "rope_parameters"):  # the new name in transformers 5
        reference_config.rope_parameters = {"rope_theta": 500.0, **(scaling or {})}
        reference_config.rope_parameters.setdefault("rope_type", "default")
    reference = model(reference_config).eval()
    for parameter in reference.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    config = LlamaConfig.from_json(rope, SIZES, default_theta=10.0)
    config = attrs.evolve(config, head_norms=qwen3)
    ours = Llama(config).requires_grad_(False)
    tensors = reference.state_dict()
    for name, sources in llama_sources("", config.num_hidden_layers, qwen3).items():
        ours.get_parameter(name).copy_(torch.cat([tensors[source] for source in sources]))
    ours.prepare(CPU, torch.float32)
    return ours, reference


def make_cache(llama: Llama, slots: int = 4) -> SlotKVCache:
    return SlotKVCache(llama.config.kv_layout, slots, 64, CPU, torch.float32)


def whole(reference, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return reference(inputs_embeds=x).last_hidden_state


def test_prefill_then_steps_equal_one_whole_pass(pair):
    llama, reference = pair
    x = torch.randn(1, 30, 48)
    cache, slot = make_cache(llama), torch.tensor([2])
    positions = torch.arange(20)[None]
    parts = [llama(x[:, :20], positions, cache.view(slot, positions))]
    for position in range(20, 30):
        at = torch.tensor([[position]])
        parts.append(llama(x[:, position : position + 1], at, cache.view(slot, at)))
    torch.testing.assert_close(torch.cat(parts, 1), whole(reference, x), atol=2e-5, rtol=1e-4)


def test_a_prompt_in_two_pieces_equals_one(pair):
    """A cached voice prefix needs a prefill that starts after position 0."""
    llama, reference = pair
    x = torch.randn(1, 25, 48)
    cache, slot = make_cache(llama), torch.tensor([1])
    for start, stop in ((0, 11), (11, 25)):
        positions = torch.arange(start, stop)[None]
        out = llama(x[:, start:stop], positions, cache.view(slot, positions))
    torch.testing.assert_close(out, whole(reference, x)[:, 11:], atol=2e-5, rtol=1e-4)


def test_padded_rows_in_dirty_slots_equal_single_rows(pair):
    llama, reference = pair
    lengths = [5, 17, 9]
    rows = [torch.randn(length, 48) for length in lengths]
    cache = make_cache(llama)
    cache.keys.normal_()  # as earlier sequences leave it, but finite
    cache.values.normal_()
    slots = torch.tensor([3, 0, 2])
    x = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    positions = torch.arange(17)[None].expand(3, -1)
    prefilled = llama(x, positions, cache.view(slots, positions))
    for row, length in enumerate(lengths):
        expected = whole(reference, rows[row][None])[0]
        torch.testing.assert_close(prefilled[row, :length], expected, atol=2e-5, rtol=1e-4)
    step = torch.randn(3, 1, 48)
    at = torch.tensor(lengths)[:, None]
    out = llama(step, at, cache.view(slots, at))
    for row in range(3):
        expected = whole(reference, torch.cat([rows[row], step[row]])[None])[0, -1]
        torch.testing.assert_close(out[row, 0], expected, atol=2e-5, rtol=1e-4)


def test_padding_beyond_the_context_changes_no_result(pair):
    llama, _ = pair
    cache, slots = make_cache(llama), torch.tensor([0])
    positions = torch.arange(60, 70)[None]
    out = llama(torch.randn(1, 10, 48), positions, cache.view(slots, positions))
    assert out.isfinite().all()


def test_the_frame_cache_equals_one_whole_pass(pair):
    llama, reference = pair
    x = torch.randn(3, 7, 48)
    cache = FrameCache(llama.config.kv_layout, 3, 7, CPU, torch.float32)
    parts = []
    for span in (range(0, 2), *(range(i, i + 1) for i in range(2, 7))):
        positions = torch.arange(span.start, span.stop)[None]
        parts.append(llama(x[:, span.start : span.stop], positions, cache.append(span)))
    torch.testing.assert_close(torch.cat(parts, 1), whole(reference, x), atol=2e-5, rtol=1e-4)


def test_both_spellings_of_rope_are_read():
    old = RopeConfig.from_json({"rope_theta": 5.0, "rope_scaling": LLAMA3}, 10.0)
    new = RopeConfig.from_json({"rope_parameters": {"rope_theta": 5.0, **LLAMA3}}, 10.0)
    assert old == new
    assert old.factor == 32.0
    assert RopeConfig.from_json({}, 10.0) == RopeConfig(10.0)
    with pytest.raises(CheckpointError, match="'yarn' is not supported"):
        RopeConfig.from_json({"rope_scaling": {"rope_type": "yarn"}}, 10.0)


def test_sizes_that_are_not_numbers_are_named():
    with pytest.raises(CheckpointError, match="hidden_size is 'many'; it must be a positive"):
        LlamaConfig.from_json({"hidden_size": "many"}, SIZES, 10.0)
    with pytest.raises(CheckpointError, match="needs a number for factor, low_freq_factor"):
        RopeConfig.from_json({"rope_scaling": {"rope_type": "llama3"}}, 10.0)


def test_uninitialised_modules_hold_no_values():
    with uninitialised():
        module = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Embedding(3, 2))
    assert all(p.device.type == "meta" for p in module.parameters())
    before = torch.nn.Linear(4, 4).weight
    assert before.device.type == "cpu"  # the context does not outlive its block
    assert before.abs().sum() > 0


def test_settings_that_are_not_implemented_are_refused():
    with pytest.raises(CheckpointError, match="hidden_act 'gelu' is not supported"):
        LlamaConfig.from_json({"hidden_act": "gelu"}, SIZES, 10.0)
