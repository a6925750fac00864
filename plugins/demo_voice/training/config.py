"""All numbers of the recipe, in two sizes and two smaller ones for trials.

`cpu` is for two cores and some hours, `gpu` for one GPU and about ten minutes; `quick` gives a
first impression after an hour and a half on two cores; `tiny` shows that every stage runs.
"""

from __future__ import annotations

from typing import Any

import attrs
import numpy.typing as npt

from plugins.demo_voice.training.words import words

Array = npt.NDArray[Any]

SAMPLE_RATE = 24000
FRAME_SIZE = 1920
LABELS_PER_FRAME = 4
"""Phoneme labels are 20 ms apart, frames 80 ms."""
PITCHES_PER_FRAME, PITCH_PERIOD_MS = 8, 10.0
TEACHERS = ("hts", "rms")
"""The teachers of speakers 0 and 1, from `teacher.py`."""
PHONES = words(
    "pau aa ae ah ao aw ax axr ay b ch d dh dx eh el em en er ey f g hh hv ih iy jh k l m n ng nx "
    "ow oy p r s sh t th uh uw v w y z zh"
)
"""The phonemes; all teachers use the same names."""


@attrs.frozen
class DataConfig:
    """Args: sentences (1,000 are over an hour), held-out ones included, which are skipped;
    sentences of one shard; one sentence in this many is held out."""

    sentences: int = 22600
    shard_sentences: int = 200
    held_out_one_in: int = 40
    seed: int = 1


@attrs.frozen
class CodecConfig:
    """Mimi's sizes and its training.

    Args:
        rate_nats: information that a frame's acoustic latent may carry before it is quantised,
            slightly below the capacity of the acoustic codebooks (nine bits each, 6.2 nats).
        phone_weight: of the phonemes' cross entropy relative to the mel distance.
        pitch_weight: of the pitch distance in half octaves relative to the mel distance.
        quantise_at: share of the encoder's steps after which the codebooks are made.
        adversarial_at: share of the decoder's steps after which judges are used;
            1 means never.
        head_steps: of the heads of a restored encoder.
        heard_weight: of the differences that the encoder hears, relative to the spectral
            distance of the waveform decoder.
        period_weight: of the distance of autocorrelations, likewise.
        decoder_fall: the decoder's learning rate falls in this last share of its steps.
    """

    num_filters: int = 16
    hidden_size: int = 192
    intermediate_size: int = 576
    num_layers: int = 2
    num_heads: int = 4
    window: int = 50
    num_codebooks: int = 5
    codebook_size: int = 512
    codebook_dim: int = 64
    crop_frames: int = 24
    batch: int = 8
    encoder_steps: int = 18000
    decoder_steps: int = 32900
    head_steps: int = 1000
    decoder_crop_frames: int = 16
    learning_rate: float = 1e-3
    rate_nats: float = 23.0
    phone_weight: float = 1.0
    pitch_weight: float = 1.0
    quantise_at: float = 0.1
    adversarial_at: float = 0.6
    decoder_fall: float = 0.3
    heard_weight: float = 0.5
    period_weight: float = 0.75
    judge_channels: int = 8
    seed: int = 2

    def mimi(self) -> dict[str, Any]:
        """Keys of transformers' `MimiConfig`."""
        return {
            "sampling_rate": SAMPLE_RATE,
            "num_filters": self.num_filters,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_heads,
            "head_dim": self.hidden_size // self.num_heads,
            "upsample_groups": self.hidden_size,
            "sliding_window": self.window,
            "layer_scale_initial_scale": 0.1,
            "num_quantizers": self.num_codebooks,
            "num_semantic_quantizers": 1,
            "codebook_size": self.codebook_size,
            "codebook_dim": self.codebook_dim,
            "vector_quantization_hidden_dimension": self.codebook_dim,
            "max_position_embeddings": 2048,
            "use_cache": False,
            "rope_theta": 10000.0,
        }


@attrs.frozen
class Stack:
    """Sizes of a Llama stack."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    feed_forward: int

    def llama(self, positions: int) -> dict[str, Any]:
        """Keys of a transformers configuration."""
        return {
            "num_hidden_layers": self.layers,
            "hidden_size": self.width,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.width // self.heads,
            "intermediate_size": self.feed_forward,
            "max_position_embeddings": positions,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
        }


@attrs.frozen
class LmConfig:
    """CSM's sizes and its training.

    Args:
        tokens: positions of one step, padding included.
        depth_share: share of the frames from which the depth decoder learns in a step.
        context_share: share of the sequences with one to three turns before the last.
        frame_dropout: at most this share of a sequence's input frames is blanked.
        grow: the longest turn allowed grows from `first_frames` to no limit in this share
            of the steps.
    """

    backbone: Stack = Stack(layers=6, width=256, heads=4, kv_heads=2, feed_forward=768)
    depth: Stack = Stack(layers=2, width=192, heads=3, kv_heads=1, feed_forward=512)
    positions: int = 2048
    steps: int = 8300
    tokens: int = 2500
    muon_rate: float = 4e-3
    adam_rate: float = 2e-3
    warmup: int = 50
    depth_share: float = 0.3
    context_share: float = 0.4
    frame_dropout: float = 0.3
    phoneme_weight: float = 0.3
    first_frames: int = 35
    grow: float = 0.2
    seed: int = 3


@attrs.frozen
class Recipe:
    """One size of the recipe."""

    name: str
    data: DataConfig = DataConfig()
    codec: CodecConfig = CodecConfig()
    lm: LmConfig = LmConfig()
    save_every: int = 100


RECIPES = {
    "cpu": Recipe("cpu"),
    "quick": Recipe(
        "quick",
        data=DataConfig(sentences=11000),
        codec=CodecConfig(encoder_steps=2000, decoder_steps=2000, adversarial_at=1),
        lm=LmConfig(steps=1500),
        save_every=50,
    ),
    "gpu": Recipe(
        "gpu",
        data=DataConfig(sentences=48000),
        codec=CodecConfig(
            crop_frames=25,
            decoder_crop_frames=25,
            batch=64,
            encoder_steps=8000,
            decoder_steps=12000,
            judge_channels=32,
        ),
        lm=LmConfig(
            backbone=Stack(layers=6, width=256, heads=4, kv_heads=2, feed_forward=1024),
            steps=15000,
            tokens=24000,
        ),
        save_every=500,
    ),
    "tiny": Recipe(
        "tiny",
        data=DataConfig(sentences=40, shard_sentences=20),
        codec=CodecConfig(
            num_filters=4,
            hidden_size=32,
            intermediate_size=64,
            num_layers=1,
            num_heads=2,
            codebook_size=64,
            codebook_dim=16,
            crop_frames=12,
            batch=4,
            encoder_steps=20,
            decoder_steps=10,
            head_steps=5,
            decoder_crop_frames=8,
            adversarial_at=0.5,
            judge_channels=4,
        ),
        lm=LmConfig(
            backbone=Stack(layers=2, width=64, heads=2, kv_heads=1, feed_forward=128),
            depth=Stack(layers=1, width=32, heads=2, kv_heads=1, feed_forward=64),
            steps=10,
            tokens=600,
            warmup=2,
        ),
        save_every=5,
    ),
}
