"""Mimi for training: transformers' modules with our quantiser and attention window."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import MimiConfig, MimiModel

from plugins.demo_voice.training.config import (
    FRAME_SIZE,
    LABELS_PER_FRAME,
    PHONES,
    PITCHES_PER_FRAME,
    CodecConfig,
)
from plugins.demo_voice.training.quantise import Codebook, quantise

MEL_BANDS, MEL_HOPS = 80, 8
"""What the encoder's auxiliary head predicts for a frame: 80 bands, every 10 ms."""
MIDDLE_HZ, OCTAVE_SHARE = 130.0, 0.5
"""Pitch is predicted as octaves over this, in units of half an octave."""


def window_mask(length: int, window: int, device: torch.device) -> torch.Tensor:
    """bool `[1, 1, T, T]`: a latent sees itself and the previous `window - 1`.

    Passed explicitly, because transformers' mask is only causal, while a stream has a window.
    """
    steps = torch.arange(length, device=device)
    back = steps[:, None] - steps[None]
    return ((back >= 0) & (back < window))[None, None]


class _Parts(nn.Module):
    """Transformers' modules under the names of a checkpoint, which version 5 has not in memory."""

    def __init__(self, mimi: Any) -> None:
        super().__init__()
        nested = hasattr(mimi.encoder, "encoder_seanet")
        first, last = (mimi.encoder, mimi.decoder) if nested else (mimi, mimi)
        self.encoder = first.encoder_seanet if nested else mimi.encoder
        self.encoder_transformer = first.encoder_transformer
        self.downsample = first.downsample
        self.upsample = last.upsample
        self.decoder_transformer = last.decoder_transformer
        self.decoder = last.decoder_seanet if nested else mimi.decoder
        self.quantizer = mimi.quantizer


class _FastElu(nn.Module):
    """`exp` takes a quarter of the time of `expm1`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.maximum(x, x.clamp(max=0).exp_().sub_(1))


class CodecModel(nn.Module):
    """A Mimi to train; `mimi.state_dict()` is the checkpoint once `write_back` was called."""

    def __init__(self, config: CodecConfig, half: bool = False) -> None:
        super().__init__()
        self.config = config
        self._half = half
        sizes: Any = MimiConfig(**config.mimi(), attn_implementation="sdpa")  # type: ignore[no-untyped-call]
        self.mimi: Any = _Parts(MimiModel(sizes))
        dim, width = config.codebook_dim, config.hidden_size
        self.semantic = nn.ModuleList([Codebook(config.codebook_size, dim, reserved=1)])
        self.acoustic = nn.ModuleList(
            Codebook(config.codebook_size, dim) for _ in range(config.num_codebooks - 1)
        )
        # Auxiliary heads for training the encoder.
        self.mel_head = nn.Sequential(
            nn.Conv1d(width, 2 * width, 3), nn.GELU(), nn.Conv1d(2 * width, MEL_BANDS * MEL_HOPS, 1)
        )
        self.pitch_head = nn.Sequential(
            nn.Conv1d(width, width, 3), nn.GELU(), nn.Conv1d(width, 2 * PITCHES_PER_FRAME, 1)
        )
        self.phone_head = nn.Conv1d(width, len(PHONES) * LABELS_PER_FRAME, 1)
        self.all_phones_head = nn.Sequential(
            nn.Conv1d(width, width, 3),
            nn.GELU(),
            nn.Conv1d(width, len(PHONES) * LABELS_PER_FRAME, 1),
        )

    def head_parameters(self) -> list[nn.Parameter]:
        heads = (self.mel_head, self.pitch_head, self.phone_head, self.all_phones_head)
        return [p for head in heads for p in head.parameters()]

    def heard(self, sound: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the encoder and its heads make of sound `[B, N]`, without quantisation."""
        semantic, acoustic = self.latents(sound)
        s, a = self.project(semantic, acoustic)
        height, voicing = self.predict_pitch(s + a)
        phones = self.predict_all_phones(s + a).log_softmax(1)
        return {
            "semantic": semantic,
            "acoustic": acoustic,
            "height": height,
            "voicing": voicing,
            "phones": phones,
        }

    def _products(self, device: torch.device) -> torch.autocast:
        """Optionally use bfloat16 products while the encoder trains; results for use are exact."""
        wanted = self._half and self.training
        return torch.autocast(device.type, torch.bfloat16, enabled=wanted)

    def latents(self, sound: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Sound `[B, N]` to semantic and acoustic latents `[B, D, F]`."""
        with self._products(sound.device):
            x = self.mimi.encoder(sound[:, None])
            mask = window_mask(x.shape[2], self.config.window, x.device)
            x = self.mimi.encoder_transformer(x.transpose(1, 2), attention_mask=mask)[0]
            x = self.mimi.downsample(x.transpose(1, 2))
        x = x.float()
        books = self.mimi.quantizer
        return (
            books.semantic_residual_vector_quantizer.input_proj(x),
            books.acoustic_residual_vector_quantizer.input_proj(x),
        )

    def project(self, semantic: torch.Tensor, acoustic: torch.Tensor) -> tuple[Any, Any]:
        """Quantised latents to the decoder's summands, `[B, H, F]` each."""
        books = self.mimi.quantizer
        return (
            books.semantic_residual_vector_quantizer.output_proj(semantic),
            books.acoustic_residual_vector_quantizer.output_proj(acoustic),
        )

    def predict_mel(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, H, F]` to log-mel `[B, 80, F * 8]`; uses the frame and the two before it."""
        y: torch.Tensor = self.mel_head(nn.functional.pad(x, (2, 0)))
        bands = y.view(len(y), MEL_BANDS, MEL_HOPS, -1)
        return bands.transpose(2, 3).flatten(2)

    def predict_pitch(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`[B, H, F]` to scaled log F0 and logits of voicing, `[B, F * 8]` each."""
        y = self.pitch_head(nn.functional.pad(x, (2, 0)))
        values = y.view(len(y), 2, PITCHES_PER_FRAME, -1).transpose(2, 3).flatten(2)
        return values[:, 0], values[:, 1]

    def predict_phones(self, semantic: torch.Tensor) -> torch.Tensor:
        """`[B, H, F]` to logits `[B, phones, F, 4]`."""
        return _per_label(self.phone_head(semantic))

    def predict_all_phones(self, x: torch.Tensor) -> torch.Tensor:
        """The same from the sum of all codebooks, of the frame and the two before it."""
        return _per_label(self.all_phones_head(nn.functional.pad(x, (2, 0))))

    def hasten(self) -> None:
        """Replace torch's ELU, which takes half of the time of encoding, for use without gradients.

        The codes are the same.
        """
        for module in self.mimi.encoder.modules():
            for name, child in module.named_children():
                if isinstance(child, nn.ELU):
                    setattr(module, name, _FastElu())

    @torch.no_grad()
    def encode(self, sound: torch.Tensor) -> torch.Tensor:
        """Sound `[B, N]` to codes `[B, K, F]`; silence after the end changes nothing before."""
        semantic, acoustic = self.latents(sound)
        first = quantise(self.semantic, semantic, learn=False)[1]
        return torch.cat([first, quantise(self.acoustic, acoustic, learn=False)[1]], dim=1)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes `[B, K, F]` to sound `[B, N]`; gradients reach all but the quantiser."""
        with torch.no_grad():
            parts = [
                sum(
                    book.entries[codes[:, k]]
                    for k, book in enumerate(books, start)
                    if isinstance(book, Codebook)
                )
                for start, books in ((0, self.semantic), (1, self.acoustic))
            ]
            semantic, acoustic = (torch.as_tensor(p).transpose(1, 2) for p in parts)
            x = sum(self.project(semantic, acoustic))
        # Never in half precision: rounding in the phases of the last upsampling leaves a tone at a
        # quarter of the sample rate, audible in pauses.
        x = self.mimi.upsample(x)
        mask = window_mask(x.shape[2], self.config.window, x.device)
        x = self.mimi.decoder_transformer(x.transpose(1, 2), attention_mask=mask)[0]
        sound: torch.Tensor = self.mimi.decoder(x.transpose(1, 2))
        return sound[:, 0, : codes.shape[2] * FRAME_SIZE]

    @torch.no_grad()
    def even_upsampling(self) -> None:
        """Give all phases of the last two upsamplings the same gain for a constant input.

        Otherwise constant features, as in a pause, become lines at multiples of the features' rate
        (checkerboard artefacts, Aitken et al. 2017, 1707.02937).  The first two, whose features
        are slower than a voice's pitch or about as slow, make the pitch of a vowel with constant
        features from their different phases.
        """
        modules = self.mimi.decoder.modules()
        upsamplings = [m for m in modules if isinstance(m, nn.ConvTranspose1d)]
        for module in upsamplings[-2:]:
            taps = module.weight.unflatten(2, (-1, module.stride[0]))
            gain = taps.mean(2, keepdim=True)
            taps.sub_(gain - gain.mean(3, keepdim=True))

    @torch.no_grad()
    def freeze_encoder(self) -> None:
        """Round to bfloat16, as the checkpoint will be, and stop learning.

        From now on, codes equal those of the shipped encoder.
        """
        for part in (self.mimi.encoder, self.mimi.encoder_transformer, self.mimi.downsample):
            part.requires_grad_(False)
            for parameter in part.parameters():
                parameter.copy_(parameter.bfloat16().float())
        self.mimi.quantizer.requires_grad_(False)
        for parameter in self.mimi.quantizer.parameters():
            parameter.copy_(parameter.bfloat16().float())
        for book in (*self.semantic, *self.acoustic):
            assert isinstance(book, Codebook)
            book.entries.copy_(book.entries.bfloat16().float())

    @torch.no_grad()
    def write_back(self) -> None:
        """Write the codebooks to Mimi's buffers."""
        for book, theirs in self._books():
            theirs.embed_sum.copy_(book.entries)
            theirs.cluster_usage.fill_(1)
            theirs.initialized.fill_(1)

    @torch.no_grad()
    def read_back(self) -> None:
        """Read the codebooks from Mimi's buffers, as `write_back` wrote them."""
        for book, theirs in self._books():
            book.entries.copy_(theirs.embed_sum)

    def _books(self) -> list[tuple[Codebook, Any]]:
        """Each codebook and Mimi's module for it."""
        quantizer = self.mimi.quantizer
        pairs = (
            (self.semantic, quantizer.semantic_residual_vector_quantizer.layers),
            (self.acoustic, quantizer.acoustic_residual_vector_quantizer.layers),
        )
        found: list[tuple[Any, Any]] = []
        for ours, theirs in pairs:
            found += [(b, layer.codebook) for b, layer in zip(ours, theirs, strict=True)]
        return found


def _per_label(logits: torch.Tensor) -> torch.Tensor:
    """`[B, phones * 4, F]` to `[B, phones, F, 4]`."""
    return logits.view(len(logits), len(PHONES), LABELS_PER_FRAME, -1).transpose(2, 3)


def scaled_pitch(hertz: torch.Tensor) -> torch.Tensor:
    """The target of `predict_pitch` at voiced places."""
    return (hertz.clamp(min=1) / MIDDLE_HZ).log2() / OCTAVE_SHARE


def rate(latent: torch.Tensor) -> torch.Tensor:
    """Mean nats per frame that a Gaussian channel of unit noise carries for `[B, D, F]`."""
    return 0.5 * torch.log1p(latent.square()).sum(1).mean()


def trapezoid(step: int, steps: int, warmup: int = 100, fall: float = 0.3, cold: int = 0) -> float:
    """The learning rate's factor: linear warm-up, constant, linear decay to 0.02 at the end.

    The warm-up starts at step `cold`, the first one without optimizer state.

    It is constant for most of the run, so that steps may be added during the run (Hägele et al.
    2024, "Scaling laws and compute-optimal training beyond fixed training durations").
    """
    left = (steps - step) / (fall * steps)
    return min((step - cold + 1) / warmup, max(left, 0.02), 1.0)
