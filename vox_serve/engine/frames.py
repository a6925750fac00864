"""The results of a step, on their way from the device to the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import torch

from vox_serve.codec import Codec


def frame_dtype(codec: Codec) -> torch.dtype:
    """The dtype of a frame's numbers: int64 for codes, float32 for latents."""
    return torch.float32 if codec.codebook_size is None else torch.int64


@attrs.frozen
class Frame:
    """One row's result of one step, on the host.

    Args:
        pcm: signed 16-bit samples, as bytes.
        end: the model ended the utterance; `pcm` is undefined.
        finite: False if the row's logits, latent or samples were not finite; `pcm` is undefined.
        reserved: the number of codes outside the codec's codebooks.
        codes: the K codes or coordinates, for conversations and tests.
    """

    pcm: bytes
    end: bool
    finite: bool
    reserved: int
    codes: tuple[float, ...]


class FrameReader:
    """Frames on their way to the host.

    Args:
        rows: `[B, K + 5]`: codes, end, finite, reserved codes, valid samples, sound finite.
        pcm: int16 `[B, N]`, or None if no row has sound.
        due: for each row, whether it has sound.
    """

    def __init__(self, rows: torch.Tensor, pcm: torch.Tensor | None, due: Sequence[bool]) -> None:
        # Both are copies, so later writes to the slots do not change them.
        self._rows = _to_host(rows)
        self._pcm = None if pcm is None else _to_host(pcm)
        self._due = due
        self._done: Any = None
        if rows.is_cuda:
            self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch ships no types for it
            self._done.record()

    def frames(self) -> list[Frame]:
        """Wait for the copies; returns a frame per row."""
        if self._done:
            self._done.synchronize()
        sounds = self._pcm.numpy() if self._pcm is not None else None
        frames = []
        for number, row in enumerate(self._rows.tolist()):
            *codes, end, finite, reserved, valid, sounding = row
            heard = sounds if self._due[number] else None
            frames.append(
                Frame(
                    b"" if heard is None else heard[number, : int(valid)].astype("<i2").tobytes(),
                    bool(end),
                    # The frame with the end is not played, so its samples may be non-finite.
                    bool(finite) and bool(end or sounding or heard is None),
                    int(reserved),
                    tuple(codes),
                )
            )
        return frames


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    """Start a copy to pinned memory without waiting for it; a CPU tensor is returned as it is."""
    if not tensor.is_cuda:
        return tensor
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return pinned.copy_(tensor, non_blocking=True)
