"""Mimi compared with transformers' `MimiModel` with random weights, and with itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import MimiConfig, MimiModel

from plugins.csm.tests.checkpoints import encoded, mimi_window
from vox_serve import CheckpointError
from vox_serve.nn import Past, WeightFiles, WeightLoader, mimi_encoder
from vox_serve.nn.mimi import Mimi

CODEBOOKS = 4
WEIGHTS = "model.safetensors"
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
VARIANTS: list[dict[str, Any]] = [
    {},
    {"upsampling_ratios": [5, 3, 2], "sampling_rate": 6000, "num_filters": 2},
    {"num_residual_layers": 2, "dilation_growth_rate": 3, "compress": 1},
    {"kernel_size": 5, "last_kernel_size": 7, "residual_kernel_size": 5},
    {"use_conv_shortcut": True, "norm_eps": 0.3, "rope_theta": 30.0},
    {"codebook_dim": 32, "vector_quantization_hidden_dimension": 32},
    {"num_semantic_quantizers": 2, "num_attention_heads": 4, "num_key_value_heads": 4},
]
Make = Callable[..., tuple[MimiModel, Mimi]]


@pytest.fixture(autouse=True)
def _window() -> Iterator[None]:
    with mimi_window():
        yield


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
        reference.save_pretrained(tmp_path)
        return reference, load(tmp_path, config, num_codebooks)

    return make


def load(path: Path, config: dict[str, Any], num_codebooks: int = CODEBOOKS) -> Mimi:
    """Load a `save_pretrained` directory, and use every tensor."""
    loader = WeightLoader(WeightFiles(path / WEIGHTS))
    codec = Mimi(config, num_codebooks)
    codec.load(loader)
    loader.finish()
    codec.allocate(4)
    return codec


def random_codes(num_frames: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, SMALL["codebook_size"], (CODEBOOKS, num_frames), generator=generator)


def stream(codec: Mimi, codes: torch.Tensor, slot: int = 0) -> torch.Tensor:
    """Decode `[K, T]` codes in one slot, frame by frame, after a reset."""
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


def assert_same_sound(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert actual.shape == expected.shape
    assert expected.std() > 1e-3
    assert (actual - expected).abs().max() < 1e-5 * expected.abs().max()


@torch.no_grad()
def pieces(codec: Mimi, pcm: torch.Tensor, num_frames: int) -> torch.Tensor:
    """Make `encode` work in pieces of this many frames."""
    begun = codec._encoder.begin()
    parts = torch.split(pcm, num_frames * codec.frame_size)
    return torch.cat([codec._encoder(part, begun) for part in parts], dim=1)


def clip(num_samples: int) -> torch.Tensor:
    noise = torch.rand(num_samples, generator=torch.Generator().manual_seed(3)) - 0.5
    return noise + 0.5 * torch.sin(torch.arange(num_samples) / 7)


@pytest.mark.parametrize("changes", VARIANTS, ids=lambda changes: " ".join(changes) or "small")
def test_streams_and_encodes_like_transformers(make: Make, changes: dict[str, Any]) -> None:
    reference, codec = make(**changes)
    codes = random_codes(8)
    assert_same_sound(stream(codec, codes), whole(reference, codes))
    pcm = clip(8 * codec.frame_size)
    assert torch.equal(codec.encode(pcm), encoded(reference, pcm))


def test_sizes_come_from_the_configuration() -> None:
    codec = Mimi({}, num_codebooks=32)  # MimiConfig's defaults are CSM's codec
    assert (codec.sample_rate, codec.frame_rate, codec.frame_size) == (24000, 12.5, 1920)
    assert (codec.frame_width, codec.codebook_size) == (32, 2048)


def test_both_spellings_of_rope_theta_are_read(make: Make, tmp_path: Path) -> None:
    _, default = make()

    def sound(spelling: dict[str, Any]) -> torch.Tensor:
        return stream(load(tmp_path, SMALL | spelling), random_codes(4))

    old = sound({"rope_theta": 10.0, "rope_scaling": None})
    new = sound({"rope_parameters": {"rope_theta": 10.0, "rope_type": "default"}})
    assert torch.equal(old, new)
    assert not torch.equal(old, stream(default, random_codes(4)))


def test_a_full_window_still_sees_its_oldest_latent(make: Make) -> None:
    reference, codec = make()
    codes = random_codes(40)  # 80 latents, through a window of 6
    assert_same_sound(stream(codec, codes), whole(reference, codes))


def test_encoding_masks_by_the_window(make: Make) -> None:
    reference, codec = make()
    pcm = clip(40 * codec.frame_size)
    assert torch.equal(codec.encode(pcm), encoded(reference, pcm))


@pytest.mark.parametrize("piece", [1, 3, mimi_encoder.PIECE_FRAMES])
def test_encoding_in_pieces_equals_encoding_at_once(make: Make, piece: int) -> None:
    reference, codec = make()
    pcm = clip((2 * mimi_encoder.PIECE_FRAMES + 5) * codec.frame_size)
    expected = encoded(reference, pcm)
    assert torch.equal(pieces(codec, pcm, piece), expected)
    assert torch.equal(codec.encode(pcm), expected)


def test_clips_encoded_at_the_same_time_are_independent(make: Make) -> None:
    _, codec = make()
    clips = [clip(20 * codec.frame_size), clip(21 * codec.frame_size).flip(0)]
    begun = [codec._encoder.begin() for _ in clips]
    codes: list[list[torch.Tensor]] = [[], []]
    with torch.no_grad():
        for parts in zip(*(c.split(4 * codec.frame_size) for c in clips), strict=False):
            for i, part in enumerate(parts):
                codes[i].append(codec._encoder(part, begun[i]))
    for pcm, parts in zip(clips, codes, strict=True):
        together = torch.cat(parts, dim=1)
        assert torch.equal(together, codec.encode(pcm)[:, : together.shape[1]])


def test_encoding_a_longer_clip_takes_no_more_memory(make: Make) -> None:
    _, codec = make()
    short = mimi_encoder.PIECE_FRAMES * codec.frame_size

    def largest(num_samples: int) -> int:
        """The number of elements of the largest intermediate tensor."""
        with LargestTensor() as watch:
            codec.encode(clip(num_samples))
        return watch.elements

    assert largest(4 * short) == largest(short) > 4 * short


class LargestTensor(TorchDispatchMode):
    elements = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.elements = max(self.elements, made.numel())
        return made


def test_the_first_of_several_equally_near_vectors_is_chosen(make: Make, tmp_path: Path) -> None:
    make()
    half = SMALL["codebook_size"] // 2
    tensors = load_file(tmp_path / WEIGHTS)
    for name, tensor in tensors.items():
        if name.endswith(("embed_sum", "cluster_usage")):
            tensors[name] = torch.cat((tensor[:half], tensor[:half]))
    save_file(tensors, tmp_path / WEIGHTS, {"format": "pt"})
    reference = MimiModel.from_pretrained(tmp_path).eval()
    codec = load(tmp_path, SMALL)
    pcm = clip(40 * codec.frame_size)
    codes = codec.encode(pcm)
    assert codes.max() < half
    assert torch.equal(codes, encoded(reference, pcm))


def test_the_last_frame_is_padded_with_silence(make: Make) -> None:
    _, codec = make()
    pcm = clip(5 * codec.frame_size + 3)
    padded = torch.nn.functional.pad(pcm, (0, codec.frame_size - 3))
    codes = codec.encode(pcm)
    assert codes.shape == (CODEBOOKS, 6)
    assert torch.equal(codes, codec.encode(padded))
    assert codec.encode(pcm[:0]).shape == (CODEBOOKS, 0)


def test_fewer_codebooks_than_in_the_checkpoint_can_be_used(make: Make) -> None:
    reference, codec = make(num_codebooks=3)
    codes = random_codes(5)[:3]
    assert_same_sound(stream(codec, codes), whole(reference, codes))
    pcm = clip(3 * codec.frame_size)
    assert torch.equal(codec.encode(pcm), encoded(reference, pcm, 3))


def test_rows_may_join_leave_and_change_their_order(make: Make) -> None:
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
        codec.encode(clip(20))  # does not touch any slot
    for slot in lengths:
        assert_same_sound(torch.cat(sound[slot]), alone[slot])


def test_a_reset_clears_the_last_utterance(make: Make) -> None:
    _, codec = make()
    fresh = stream(codec, random_codes(5), slot=1)
    stream(codec, random_codes(11, seed=1), slot=2)
    assert torch.equal(stream(codec, random_codes(5), slot=2), fresh)


def test_a_step_that_raises_changes_nothing(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    _, codec = make()
    codes = random_codes(20)
    sound = stream(codec, codes)
    before = stream(codec, codes[:, :12])  # the window is full
    with monkeypatch.context() as patch:
        patch.setattr(Past, "after", lambda past: 1 / 0)  # fails after the convolutions
        with pytest.raises(ZeroDivisionError):
            codec.step(codes[None, :, :1], torch.tensor([0]), torch.tensor([False]))
    after = [
        codec.step(codes[None, :, [i]], torch.tensor([0]), torch.tensor([False]))[0][0]
        for i in range(12, 20)
    ]
    assert torch.equal(torch.cat([before, *after]), sound)


def test_a_missing_tensor_is_named(make: Make, tmp_path: Path) -> None:
    make()
    name = "decoder_transformer.layers.1.self_attn.k_proj.weight"
    with pytest.raises(CheckpointError, match=f"tensor {name} is missing"):
        reload(tmp_path, {name: None})


def test_an_extra_tensor_is_not_used(make: Make, tmp_path: Path) -> None:
    make()
    extra = {"decoder.extra.weight": torch.zeros(1)}
    assert reload(tmp_path, extra).unused == {"decoder.extra.weight"}


@pytest.mark.parametrize(
    "name",
    [
        "upsample.conv.weight",
        "encoder_transformer.layers.0.self_attn.v_proj.weight",
        "quantizer.acoustic_residual_vector_quantizer.layers.2.codebook.embed_sum",
    ],
)
def test_a_tensor_of_another_shape_is_named(make: Make, tmp_path: Path, name: str) -> None:
    make()
    tensor = load_file(tmp_path / WEIGHTS)[name]
    with pytest.raises(CheckpointError, match=f"tensor {name} has shape"):
        reload(tmp_path, {name: tensor[:-1]})


def reload(path: Path, changes: dict[str, torch.Tensor | None]) -> WeightLoader:
    """Load a saved checkpoint after replacing some tensors; None removes one."""
    tensors = load_file(path / WEIGHTS) | changes
    save_file({n: t for n, t in tensors.items() if t is not None}, path / "changed.safetensors")
    loader = WeightLoader(WeightFiles(path / "changed.safetensors"))
    Mimi(SMALL, CODEBOOKS).load(loader)
    return loader


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
def test_unsupported_settings_are_refused(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^codec_config: {key} is "):
        Mimi(SMALL | {key: value}, CODEBOOKS)


def test_scaled_rope_is_refused() -> None:
    with pytest.raises(ValueError, match="rope_type is 'yarn'"):
        Mimi(SMALL | {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, CODEBOOKS)


@pytest.mark.parametrize("changes", [{"num_quantizers": 3}, {"num_semantic_quantizers": 4}])
def test_more_codebooks_than_in_the_checkpoint_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="cannot use 4 codebooks"):
        Mimi(SMALL | changes, CODEBOOKS)
