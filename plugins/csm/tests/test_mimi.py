"""Mimi against transformers' `MimiModel` with random weights, and against itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import MimiConfig, MimiModel, masking_utils
from transformers.models.mimi import modeling_mimi

from vox_serve_csm.mimi import Mimi

CODEBOOKS = 4
SMALL: dict[str, Any] = {
    "sampling_rate": 400,
    "num_filters": 4,
    "hidden_size": 32,
    "upsampling_ratios": [4, 2],
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "num_quantizers": CODEBOOKS,
    "codebook_size": 32,
    "codebook_dim": 16,
    "vector_quantization_hidden_dimension": 16,
    "upsample_groups": 32,
    "sliding_window": 6,
}
Tensors = dict[str, torch.Tensor]
Make = Callable[..., tuple[MimiModel, Mimi]]


@pytest.fixture(autouse=True)
def _window_in_transformers_4(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers 4 reads `sliding_window` but masks nothing; transformers 5 masks by it."""
    if hasattr(modeling_mimi, "create_causal_mask"):
        sliding = masking_utils.create_sliding_window_causal_mask
        monkeypatch.setattr(modeling_mimi, "create_causal_mask", sliding)


def randomise(model: torch.nn.Module) -> None:
    """Make every tensor differ from every other and from its initial value."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        noise = torch.rand(tensor.shape, generator=generator)
        if name.endswith(("cluster_usage", "scale", "norm.weight")):
            tensor.copy_(0.5 + noise)
        elif not name.endswith("initialized"):
            fan_in = max(1, tensor[0].numel()) if tensor.dim() > 1 else 4
            tensor.copy_((noise - 0.5) * 4 * fan_in**-0.5)


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def make(num_codebooks: int = CODEBOOKS, **changes: Any) -> tuple[MimiModel, Mimi]:
        config = SMALL | changes
        reference = MimiModel(MimiConfig(**config)).eval()
        with torch.no_grad():
            randomise(reference)
        codec = Mimi(config, num_codebooks)
        tensors = saved(reference, tmp_path)
        codec.load(tensors.__getitem__, tensors)
        codec.allocate(4)
        return reference, codec

    return make


def saved(model: MimiModel, path: Path) -> Tensors:
    """The tensors by the names of a checkpoint, which are not always those of the modules."""
    model.save_pretrained(path)
    return load_file(path / "model.safetensors")


def random_codes(num_frames: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, SMALL["codebook_size"], (CODEBOOKS, num_frames), generator=generator)


def stream(codec: Mimi, codes: torch.Tensor, slot: int = 0) -> torch.Tensor:
    """Decode `[K, T]` codes in one slot, frame by frame, from a reset."""
    chunks = []
    for i, frame in enumerate(codes.unbind(1)):
        pcm, valid = codec.step(frame[None, :, None], torch.tensor([slot]), torch.tensor([i == 0]))
        assert valid.tolist() == [codec.frame_size]
        chunks.append(pcm[0])
    return torch.cat(chunks)


@torch.no_grad()
def whole(reference: Any, codes: torch.Tensor) -> torch.Tensor:
    pcm: torch.Tensor = reference.decode(codes[None]).audio_values
    return pcm[0, 0]


@torch.no_grad()
def encoded(reference: Any, pcm: torch.Tensor, num_codebooks: int = CODEBOOKS) -> torch.Tensor:
    codes: torch.Tensor = reference.encode(
        pcm[None, None], num_quantizers=num_codebooks
    ).audio_codes
    return codes[0]


def assert_same_sound(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert actual.shape == expected.shape
    assert expected.std() > 1e-3
    assert (actual - expected).abs().max() < 1e-5 * expected.abs().max()


def clip(num_samples: int) -> torch.Tensor:
    noise = torch.rand(num_samples, generator=torch.Generator().manual_seed(3)) - 0.5
    return noise + 0.5 * torch.sin(torch.arange(num_samples) / 7)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"upsampling_ratios": [5, 3, 2], "sampling_rate": 6000, "num_filters": 2},
        {"num_residual_layers": 2, "dilation_growth_rate": 3, "compress": 1},
        {"kernel_size": 5, "last_kernel_size": 7, "residual_kernel_size": 5},
        {"use_conv_shortcut": True, "norm_eps": 0.3, "rope_theta": 30.0},
        {"codebook_dim": 32, "vector_quantization_hidden_dimension": 32},
        {"num_semantic_quantizers": 2, "num_attention_heads": 4, "num_key_value_heads": 4},
    ],
    ids=lambda changes: " ".join(changes) or "small",
)
def test_streams_and_encodes_like_transformers(make: Make, changes: dict[str, Any]) -> None:
    reference, codec = make(**changes)
    codes = random_codes(8)
    assert_same_sound(stream(codec, codes), whole(reference, codes))
    pcm = clip(8 * codec.frame_size)
    assert torch.equal(codec.encode(pcm), encoded(reference, pcm))


def test_sizes_come_from_the_configuration() -> None:
    codec = Mimi({}, num_codebooks=32)  # MimiConfig's defaults are CSM's codec
    assert (codec.sample_rate, codec.frame_rate, codec.frame_size) == (24000, 12.5, 1920)
    assert (codec.num_codebooks, codec.codebook_size) == (32, 2048)


def test_rope_theta_in_both_spellings(make: Make, tmp_path: Path) -> None:
    reference, default = make()
    tensors = saved(reference, tmp_path)

    def sound(spelling: dict[str, Any]) -> torch.Tensor:
        codec = Mimi(SMALL | spelling, CODEBOOKS)
        codec.load(tensors.__getitem__, tensors)
        codec.allocate(1)
        return stream(codec, random_codes(4))

    old = sound({"rope_theta": 10.0, "rope_scaling": None})
    new = sound({"rope_parameters": {"rope_theta": 10.0, "rope_type": "default"}})
    assert torch.equal(old, new)
    assert not torch.equal(old, stream(default, random_codes(4)))


def test_a_full_window_still_sees_its_oldest_latent(make: Make) -> None:
    reference, codec = make()
    codes = random_codes(40)  # 80 latents, through a window of 6
    assert_same_sound(stream(codec, codes), whole(reference, codes))


def test_encode_masks_by_the_window(make: Make) -> None:
    reference, codec = make()
    pcm = clip(40 * codec.frame_size)
    assert torch.equal(codec.encode(pcm), encoded(reference, pcm))


def test_encode_fills_the_last_frame_with_silence(make: Make) -> None:
    _, codec = make()
    pcm = clip(5 * codec.frame_size + 3)
    padded = torch.nn.functional.pad(pcm, (0, codec.frame_size - 3))
    codes = codec.encode(pcm)
    assert codes.shape == (CODEBOOKS, 6)
    assert torch.equal(codes, codec.encode(padded))
    assert codec.encode(pcm[:0]).shape == (CODEBOOKS, 0)


def test_fewer_codebooks_than_the_checkpoint_holds(make: Make) -> None:
    reference, codec = make(num_codebooks=3)
    codes = random_codes(5)[:3]
    assert_same_sound(stream(codec, codes), whole(reference, codes))
    pcm = clip(3 * codec.frame_size)
    assert torch.equal(codec.encode(pcm), encoded(reference, pcm, num_codebooks=3))


def test_slots_join_leave_and_change_places(make: Make) -> None:
    _, codec = make()
    lengths = {0: 14, 1: 5, 2: 9, 3: 3}  # frames; slot s joins at step 2 s
    codes = {slot: random_codes(length, seed=slot) for slot, length in lengths.items()}
    alone = {slot: stream(codec, codes[slot], slot) for slot in lengths}
    sound: dict[int, list[torch.Tensor]] = {slot: [] for slot in lengths}
    shuffle = torch.Generator().manual_seed(1)
    for step in range(14):
        running = [s for s in lengths if 2 * s <= step < 2 * s + lengths[s]]
        order = torch.randperm(len(running), generator=shuffle).tolist()
        slots = [running[i] for i in order]
        frames = torch.stack([codes[s][:, step - 2 * s] for s in slots])
        reset = torch.tensor([step == 2 * s for s in slots])
        pcm, valid = codec.step(frames[:, :, None], torch.tensor(slots), reset)
        assert pcm.shape == (len(slots), codec.frame_size)
        assert valid.tolist() == [codec.frame_size] * len(slots)
        for slot, chunk in zip(slots, pcm, strict=True):
            sound[slot].append(chunk)
        codec.encode(clip(20))  # touches no slot
    for slot in lengths:
        assert_same_sound(torch.cat(sound[slot]), alone[slot])


def test_reset_leaves_nothing_of_the_last_utterance(make: Make) -> None:
    _, codec = make()
    fresh = stream(codec, random_codes(5), slot=1)
    stream(codec, random_codes(11, seed=1), slot=2)
    assert torch.equal(stream(codec, random_codes(5), slot=2), fresh)


def test_a_step_that_raises_has_changed_nothing(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, codec = make()
    codes = random_codes(20)
    sound = stream(codec, codes)
    before = stream(codec, codes[:, :12])  # the window is full
    with monkeypatch.context() as patch:
        patch.setattr(torch, "maximum", lambda *_, **__: 1 / 0)  # after the transformer
        with pytest.raises(ZeroDivisionError):
            codec.step(codes[None, :, :1], torch.tensor([0]), torch.tensor([False]))
    after = [
        codec.step(codes[None, :, [i]], torch.tensor([0]), torch.tensor([False]))[0][0]
        for i in range(12, 20)
    ]
    assert torch.equal(torch.cat([before, *after]), sound)


def test_a_missing_tensor_is_named(make: Make, tmp_path: Path) -> None:
    reference, codec = make()
    tensors = saved(reference, tmp_path)
    name = "decoder_transformer.layers.1.self_attn.k_proj.weight"
    del tensors[name]
    with pytest.raises(ValueError, match=f"{name} is missing"):
        codec.load(tensors.__getitem__, tensors)


def test_a_tensor_left_over_is_named(make: Make, tmp_path: Path) -> None:
    reference, codec = make()
    tensors = saved(reference, tmp_path) | {"decoder.extra.weight": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"no place in Mimi, such as decoder\.extra\.weight"):
        codec.load(tensors.__getitem__, tensors)


@pytest.mark.parametrize(
    "name",
    [
        "upsample.conv.weight",
        "encoder_transformer.layers.0.self_attn.v_proj.weight",
        "quantizer.acoustic_residual_vector_quantizer.layers.2.codebook.embed_sum",
    ],
)
def test_a_tensor_of_another_shape_is_named(make: Make, tmp_path: Path, name: str) -> None:
    reference, codec = make()
    tensors = saved(reference, tmp_path)
    tensors[name] = tensors[name][:-1]
    with pytest.raises(ValueError, match=f"{name} has shape"):
        codec.load(tensors.__getitem__, tensors)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("audio_channels", 2),
        ("use_causal_conv", False),
        ("pad_mode", "replicate"),
        ("trim_right_ratio", 0.5),
        ("hidden_act", "silu"),
        ("attention_bias", True),
        ("num_key_value_heads", 1),
        ("head_dim", 8),
        ("hidden_size", 33),
        ("upsample_groups", 1),
        ("codebook_dim", 8),
        ("frame_rate", 50),
        ("sliding_window", None),
    ],
)
def test_what_moshi_cannot_do_is_refused(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^codec_config: {key} is "):
        Mimi(SMALL | {key: value}, CODEBOOKS)


def test_scaled_rope_is_refused() -> None:
    with pytest.raises(ValueError, match="rope_type is 'yarn'"):
        Mimi(SMALL | {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, CODEBOOKS)


@pytest.mark.parametrize("changes", [{"num_quantizers": 3}, {"num_semantic_quantizers": 4}])
def test_codebooks_that_are_not_there_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="cannot use 4 codebooks"):
        Mimi(SMALL | changes, CODEBOOKS)
