"""The requirements for a model's codec."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Rows

import torch

from vox_serve.codec import Codec
from vox_serve.model import Model
from vox_serve.testing.replay import Step, created


class CodecConformance:
    """The requirements for a codec, one test each."""

    def load(self, device: str) -> Model:
        """Load the model in float32 on a torch device: `cpu`, or `cuda` if available."""
        raise NotImplementedError("a conformance test must define how its model is loaded")

    def test_codes_decode_the_same_in_any_slot_and_company(self) -> None:
        """Each row has its own codec state, in any order of slots."""
        codec = self.load("cpu").codec
        generator = torch.Generator().manual_seed(0)
        shape = (3, codec.frame_width, codec.frames_per_step * 6)
        codes = random_frames(codec, shape, generator)

        def decode(rows: Rows[int], slots: Rows[int]) -> torch.Tensor:
            pieces = []
            for start in range(0, shape[2], codec.frames_per_step):
                part = codes[list(rows), :, start : start + codec.frames_per_step]
                reset = torch.full((len(rows),), start == 0)
                pcm, valid = codec.step(part, torch.tensor(slots), reset)
                assert pcm.shape == (len(rows), codec.frame_size)
                assert bool((valid <= codec.frame_size).all())
                pieces.append(torch.where(torch.arange(codec.frame_size) < valid[:, None], pcm, 0))
            return torch.cat(pieces, dim=1)

        with torch.inference_mode():
            codec.allocate(4)
            together = decode((0, 1, 2), (3, 0, 2))
            for row in range(3):
                alone = decode((row,), (1,))[0]
                torch.testing.assert_close(together[row], alone, atol=1e-4, rtol=1e-3)

    def test_a_cleared_slot_speaks_again(self) -> None:
        """Non-finite codec state does not affect the slot's next sequence."""
        codec = self.load("cpu").codec
        num_slots, slot = 13, 5  # a number of slots that is unlikely to equal any other size
        generator = torch.Generator().manual_seed(0)
        shape = (4, 1, codec.frame_width, codec.frames_per_step)
        codes = random_frames(codec, shape, generator)

        def decode() -> list[tuple[torch.Tensor, torch.Tensor]]:
            steps = []
            for number, part in enumerate(codes):
                pcm, valid = codec.step(part, torch.tensor([slot]), torch.tensor([number == 0]))
                steps.append((pcm * (torch.arange(codec.frame_size) < valid[:, None]), valid))
            return steps

        with torch.inference_mode():
            state = created(lambda: codec.allocate(num_slots))
            expected = decode()
            for tensor in state:
                for dim, size in enumerate(tensor.shape):
                    if tensor.is_floating_point() and size in (num_slots, num_slots + 1):
                        tensor.select(dim, slot).fill_(torch.nan)
            codec.clear(slot)
            for got, wanted in zip(decode(), expected, strict=True):
                assert torch.equal(got[1], wanted[1]), "a cleared slot sounds at other steps"
                torch.testing.assert_close(got[0], wanted[0], atol=1e-4, rtol=1e-3)

    def replayed_codec(self, device: str, capture: Callable[[Step], Step]) -> None:
        codec = self.load(device).codec
        generator = torch.Generator().manual_seed(0)
        shape = (6, 2, codec.frame_width, codec.frames_per_step)
        codes = random_frames(codec, shape, generator).to(device)
        slots = torch.arange(2, device=device)
        codec.allocate(2)
        expected = [
            codec.step(part, slots, torch.full((2,), number == 0, device=device))
            for number, part in enumerate(codes)
        ]
        expected = [(pcm.clone(), valid.clone()) for pcm, valid in expected]
        codec.allocate(2)
        given, reset = codes[0].clone(), torch.ones(2, dtype=torch.bool, device=device)
        step = capture(lambda: codec.step(given, slots, reset))
        for number, part in enumerate(codes):
            given.copy_(part)
            reset.fill_(number == 0)
            pcm, valid = step()
            assert torch.equal(valid, expected[number][1]), "codec: captured and eager differ"
            heard = torch.arange(codec.frame_size, device=device) < valid[:, None]
            pcm, wanted = pcm * heard, expected[number][0] * heard
            torch.testing.assert_close(pcm, wanted, atol=1e-4, rtol=1e-3)


def random_frames(codec: Codec, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    if codec.codebook_size is None:
        return torch.randn(shape, generator=generator)
    return torch.randint(codec.codebook_size, shape, generator=generator)
