"""The codec protocol: audio to frames and frames to audio, streaming.

A frame is K numbers: codes, or the coordinates of a latent.  A codec plugin implements `Codec`.
The core allocates one state row per slot and calls `step` once per frame for the slots that are
running.  This module contains nothing about models, requests or HTTP.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch


@runtime_checkable
class SlotState(Protocol):
    """State with a row per slot, which the core allocates and clears."""

    def allocate(self, num_slots: int) -> int:
        """Allocate state rows for slots 0 .. num_slots - 1, before any step; returns their bytes.

        The last one is the spare slot: it pads batches, and its content is ignored.
        """
        ...

    def clear(self, slot: int) -> None:
        """Restore a slot's state row to what `allocate` made, whatever it contains.

        Called when a sequence has failed: if its state holds NaN, overwriting it may not
        be enough, because 0 x NaN is NaN even under a mask.
        """
        ...


class Codec(SlotState, Protocol):
    """A streaming neural audio codec with a state row per slot."""

    sample_rate: int
    """Samples per second of the mono audio it reads and writes."""
    frame_rate: float
    """Frames per second of audio."""
    frame_size: int
    """N: the most samples that one `step` returns for a row."""
    frame_width: int
    """K: numbers per frame, of as many codebooks or dimensions."""
    frames_per_step: int
    """R: frames that one `step` takes; 1 unless one codec frame consists of several model frames.
    Fewer than R frames left over at the end of an utterance are not decoded."""

    @property
    def codebook_size(self) -> int | None:
        """Codes are int64, 0 .. codebook_size - 1; the core passes no others to `step`.
        None: the numbers are the coordinates of a latent, float32."""
        ...

    def step(
        self, codes: torch.Tensor, slots: torch.Tensor, reset: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Decode R frames for some slots; only their state rows change.

        Static shapes and no host read, so that it can be captured in a CUDA graph.  A step
        that raises has changed no state: the core tries its rows again one by one.

        Args:
            codes: codes or latents, `[B, K, R]`.
            slots: int64 `[B]`, distinct, except the spare last slot, which pads the batch: its
                output is ignored.
            reset: bool `[B]`; True where the row starts a new utterance.

        Returns:
            pcm: float32 `[B, N]` in -1 .. 1 (not clipped).
            valid: int64 `[B]`, how many leading samples of each row are audio.  0 is
                allowed: a codec may need several steps before it outputs audio.
        """
        ...


@runtime_checkable
class EncodingCodec(Codec, Protocol):
    """A codec that also encodes: a model with one learns voices from clips, and may take
    context."""

    def encode(self, pcm: torch.Tensor) -> torch.Tensor:
        """Encode a whole clip, without touching any slot.

        Args:
            pcm: float32 `[T]` at `sample_rate`.

        Returns:
            codes or latents `[K, F]` with F = ceil(T * frames_per_step / frame_size); one more or
            some fewer if the codec first changes how a clip ends.
        """
        ...


@runtime_checkable
class SpeakerCodec(EncodingCodec, Protocol):
    """A codec that also computes a vector of a clip's speaker, for prompts that use one."""

    def embed(self, pcm: torch.Tensor) -> torch.Tensor:
        """The speaker's vector of a clip `[T]`, float32 `[E]`."""
        ...
