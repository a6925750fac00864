"""The streaming codec compared with the snac package, and its refusals."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from plugins.orpheus.tests.checkpoints import CODES, FIRST, FRAME, SNAC_CONFIG, reference_sound
from plugins.orpheus.tests.conftest import Checkpoint, load
from vox_serve.nn import WeightFiles, WeightLoader
from vox_serve_orpheus.snac import SlotSnac

PLACES = torch.arange(7) * CODES


@pytest.fixture
def codec(checkpoint: Checkpoint) -> SlotSnac:
    codec = SlotSnac(SNAC_CONFIG)
    codec.load(WeightLoader(WeightFiles(checkpoint.directory / "snac" / "model.safetensors")))
    codec.allocate(4)
    return codec


def frames(count: int, seed: int = 0) -> torch.Tensor:
    """Random tokens `[count, 7]`, each in the range of its position, as the core passes them."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(CODES, (count, 7), generator=generator) + PLACES


def heard(codec: SlotSnac, tokens: torch.Tensor, slot: int, new: bool = True) -> torch.Tensor:
    return together(codec, [tokens], [slot], new)[0]


def together(
    codec: SlotSnac, tokens: Sequence[torch.Tensor], slots: Sequence[int], new: bool = True
) -> list[torch.Tensor]:
    sounds: list[list[torch.Tensor]] = [[] for _ in slots]
    for number, codes in enumerate(torch.stack(list(tokens), 1)):
        reset = torch.full((len(slots),), new and number == 0)
        pcm, valid = codec.step(codes[:, None], torch.tensor(slots), reset)
        assert pcm.shape == (len(slots), FRAME)
        assert valid.dtype == torch.int64
        for sound, row, count in zip(sounds, pcm, valid.tolist(), strict=True):
            sound.append(row[:count])
    return [torch.cat(sound) for sound in sounds]


def expected(checkpoint: Checkpoint, tokens: torch.Tensor, frame: int = 0) -> torch.Tensor:
    return reference_sound(checkpoint.codec, (tokens + FIRST).flatten().tolist(), frame)


def seed(tokens: torch.Tensor) -> int:
    return int((tokens[0] * torch.tensor((3, 5, 7, 11, 13, 17, 19))).sum())


def test_each_utterance_has_its_own_noise(codec: SlotSnac, checkpoint: Checkpoint) -> None:
    """If only their first frames differ, which are not played, only the noise differs."""
    one = frames(9)
    other = torch.cat([frames(1, 5), one[1:]])
    sounds = [heard(codec, tokens, slot=0)[2 * FRAME :] for tokens in (one, other)]
    assert (sounds[0] - sounds[1]).abs().max() > 0.01
    assert_close(sounds[1], expected(checkpoint, other)[2 * FRAME :])


def assert_close(sound: torch.Tensor, reference: torch.Tensor) -> None:
    assert reference.std() > 0.05
    torch.testing.assert_close(sound, reference, atol=1e-5, rtol=0)


def test_the_codec_has_the_published_sizes(codec: SlotSnac) -> None:
    assert codec.sample_rate == 24000
    assert codec.frame_size == FRAME
    assert codec.frames_per_step == 7
    assert codec.frame_rate == pytest.approx(7 * 24000 / 2048)
    assert codec.codebook_size == 7 * CODES


def test_windows_equal_those_of_the_package(codec: SlotSnac, checkpoint: Checkpoint) -> None:
    tokens = frames(9)
    sound = heard(codec, tokens, slot=2)
    assert len(sound) == 6 * FRAME
    assert_close(sound, expected(checkpoint, tokens))


def test_the_noise_has_an_effect_and_depends_on_the_frame(
    codec: SlotSnac, checkpoint: Checkpoint
) -> None:
    tokens = frames(5)
    sound = heard(codec, tokens, slot=0)
    assert (sound - expected(checkpoint, tokens, frame=1)).abs().max() > 0.01
    assert torch.equal(sound, heard(codec, tokens, slot=0))


def test_the_noise_repeats_after_its_table(codec: SlotSnac, checkpoint: Checkpoint) -> None:
    tokens = frames(8)
    codec._seen[0] = 252  # as if this many frames had been decoded
    codec._seed[0] = seed(tokens)
    sound = heard(codec, tokens, slot=0, new=False)
    assert_close(sound[-5 * FRAME :], expected(checkpoint, tokens, frame=252))


def test_rows_keep_their_own_state(codec: SlotSnac, checkpoint: Checkpoint) -> None:
    first, second, third = frames(8, 1), frames(5, 2), frames(6, 3)
    begun = heard(codec, first[:3], slot=3)
    assert len(begun) == 0
    heard(codec, second, slot=1)  # slot 1 is reused below
    heard(codec, third[:1], slot=0)
    rest, other = together(codec, [first[3:], third[1:]], [3, 0], new=False)
    assert_close(rest, expected(checkpoint, first))
    assert_close(other, expected(checkpoint, third))
    again, third_again = together(codec, [second, third[:5]], [1, 3])
    assert_close(again, expected(checkpoint, second))
    assert_close(third_again, expected(checkpoint, third[:5]))


def test_a_step_that_raises_changes_nothing(
    codec: SlotSnac, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = frames(6)
    heard(codec, tokens[:4], slot=0)

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(codec._snac, "decode", fail)
        with pytest.raises(RuntimeError, match="memory"):
            heard(codec, tokens[4:5], slot=0, new=False)
    rest = heard(codec, tokens[4:], slot=0, new=False)
    assert_close(rest, expected(checkpoint, tokens)[FRAME:])


def test_a_token_at_the_wrong_position_sounds_as_code_0(
    codec: SlotSnac, checkpoint: Checkpoint
) -> None:
    tokens = frames(5)
    zeroed = tokens.clone()
    for frame, place in ((1, 0), (2, 4), (3, 6)):
        tokens[frame, place] = PLACES[(place + 1) % 7] + 5
        zeroed[frame, place] = PLACES[place]
    sound = heard(codec, tokens, slot=0)
    assert torch.equal(sound, heard(codec, zeroed, slot=0))
    assert_close(sound, expected(checkpoint, tokens))


def test_the_encoder_is_not_loaded(checkpoint: Checkpoint) -> None:
    codec = load(checkpoint.directory).codec
    assert isinstance(codec, SlotSnac)
    assert all(p.device.type == "meta" for p in codec._snac.encoder.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vq_strides": [8, 4, 2, 1]}, r"vq_strides \[8, 4, 2, 1\] is not supported"),
        ({"attn_window_size": 32}, "attn_window_size must be null"),
        ({"colour": 1}, "cannot build it"),
        ({"decoder_rates": [8, 8, 4, 4]}, "must have the same product"),
    ],
)
def test_other_codecs_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SlotSnac({**SNAC_CONFIG, **changes})
