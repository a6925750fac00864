"""A Dia `config.json` as typed sizes; missing keys get the defaults of transformers' DiaConfig."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from vox_serve import CheckpointError
from vox_serve.nn import LlamaConfig
from vox_serve.sizes import check_sizes

ENCODER_DEFAULTS: Mapping[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 128,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
}
DECODER_DEFAULTS: Mapping[str, Any] = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 18,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "max_position_embeddings": 3072,
    "rms_norm_eps": 1e-5,
}
DELAYS = (0, 8, 9, 10, 11, 12, 13, 14, 15)
TABLES = ("encoder_config", "decoder_config", "rope_parameters", "rope_scaling")
COUNTS: Mapping[str, tuple[int, int]] = {
    **dict.fromkeys(("cross_num_attention_heads", "cross_num_key_value_heads"), (1, 512)),
    **dict.fromkeys(("bos_token_id", "pad_token_id"), (0, 2**22)),
    **dict.fromkeys(
        ("cross_hidden_size", "encoder_hidden_size", "decoder_hidden_size"), (1, 2**16)
    ),
    **dict.fromkeys(("num_channels", "n_codebooks"), (1, 256)),
    "cross_head_dim": (2, 1024),
    "delay_pattern": (0, 256),
    "downsampling_ratios": (1, 64),
}
"""The limits of sizes that only these configurations have; see `vox_serve.sizes`."""


@attrs.frozen
class DiaConfig:
    """Sizes of one Dia.

    Args:
        encoder, decoder: the two stacks; `max_position_embeddings` of the encoder are bytes of
            text, those of the decoder frames.
        cross_heads, cross_kv_heads, cross_head_dim: of the decoder's attention to the text.
        text_vocab: ids of the encoder.
        vocab: ids per codebook, reserved ones included.
        delays: the delay of each codebook in frames.
        end, pad, begin: reserved ids, above all codes.
    """

    encoder: LlamaConfig
    decoder: LlamaConfig
    cross_heads: int
    cross_kv_heads: int
    cross_head_dim: int
    text_vocab: int
    vocab: int
    delays: tuple[int, ...]
    end: int
    pad: int
    begin: int

    @property
    def most_late(self) -> int:
        """The delay of the latest codebook."""
        return max(self.delays)

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> DiaConfig:
        """Raises CheckpointError if the sizes contradict each other or are not supported."""
        check_sizes("config.json", config, COUNTS, {}, TABLES)
        encoder = config.get("encoder_config") or {}
        decoder = config.get("decoder_config") or {}

        def reserved(name: str, default: int) -> int:
            # Published checkpoints have these ids outside `decoder_config`, newer ones inside it.
            beside = config.get(name)
            return int(decoder.get(name, default) if beside is None else beside)

        read = cls(
            encoder=_stack(encoder, ENCODER_DEFAULTS),
            decoder=_stack(decoder, DECODER_DEFAULTS),
            cross_heads=int(decoder.get("cross_num_attention_heads", 16)),
            cross_kv_heads=int(decoder.get("cross_num_key_value_heads", 16)),
            cross_head_dim=int(decoder.get("cross_head_dim", 128)),
            text_vocab=int(encoder.get("vocab_size", 256)),
            vocab=int(decoder.get("vocab_size", 1028)),
            delays=_delays(config.get("delay_pattern")),
            end=reserved("eos_token_id", 1024),
            pad=reserved("pad_token_id", 1025),
            begin=reserved("bos_token_id", 1026),
        )
        books = int(decoder.get("num_channels", 9))
        crossed = int(decoder.get("cross_hidden_size", 1024))
        wrong = (
            (
                books != len(read.delays),
                f"num_channels is {books}, but delay_pattern has not as many",
            ),
            (read.delays[0] != 0 or min(read.delays) < 0, "delay_pattern must begin with 0"),
            (crossed != read.encoder.hidden_size, "cross_hidden_size is not the encoder's width"),
            (read.text_vocab < 256, "the encoder's vocab_size must have all bytes"),
            (not 0 < read.end < read.pad < read.vocab, "pad_token_id must be above eos_token_id"),
            (not read.end < read.begin < read.vocab, "bos_token_id must be above eos_token_id"),
        )
        for is_wrong, reason in wrong:
            if is_wrong:
                raise CheckpointError(f"config.json: {reason}")
        return read


def _delays(stored: Any) -> tuple[int, ...]:
    return tuple(stored if isinstance(stored, list) else [stored]) if stored else DELAYS


def _stack(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> LlamaConfig:
    return LlamaConfig.from_json({**config, "rms_norm_eps": config.get("norm_eps")}, defaults)
