"""A CSM `config.json` as typed sizes; missing keys get the defaults of CsmConfig."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import attrs

from vox_serve import CheckpointError
from vox_serve.nn import LlamaConfig

MAX_SPEAKERS = 1000
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
ROPE_THETA = 500_000.0
BACKBONE_DEFAULTS: Mapping[str, Any] = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
}
DEPTH_DEFAULTS: Mapping[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 8192,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 33,
    "rms_norm_eps": 1e-5,
}


@attrs.frozen
class CsmConfig:
    """Sizes of one CSM.

    Args:
        backbone, depth: the two Llama stacks.
        num_codebooks: K.
        audio_vocab: ids per codebook, reserved ones included.
        text_vocab: ids of the text tokenizer.
        end_code: a frame that consists only of this code ends the utterance.
        codec: the Mimi configuration, unchanged.
        speakers: names of a fine-tune's speakers, in the order of their ids; empty: Sesame's.
    """

    backbone: LlamaConfig
    depth: LlamaConfig
    num_codebooks: int
    audio_vocab: int
    text_vocab: int
    end_code: int
    codec: Mapping[str, Any]
    speakers: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> CsmConfig:
        """Raises CheckpointError if the sizes contradict each other or are not supported."""
        if config.get("model_type") != "csm":
            raise CheckpointError(
                f"not a CSM checkpoint: config.json says model_type {config.get('model_type')!r}"
            )
        if not config.get("tie_codebooks_embeddings", True):
            raise CheckpointError("tie_codebooks_embeddings false is not supported")
        depth = config.get("depth_decoder_config") or {}
        read = cls(
            backbone=LlamaConfig.from_json(config, BACKBONE_DEFAULTS, ROPE_THETA),
            depth=LlamaConfig.from_json(depth, DEPTH_DEFAULTS, ROPE_THETA),
            num_codebooks=int(config.get("num_codebooks", 32)),
            audio_vocab=int(config.get("vocab_size", 2051)),
            text_vocab=int(config.get("text_vocab_size", 128256)),
            end_code=int(config.get("codebook_eos_token_id", 0)),
            codec=config.get("codec_config") or {},
            speakers=_speakers(config.get("speakers")),
        )
        expected = {
            "num_codebooks": read.num_codebooks,
            "vocab_size": read.audio_vocab,
            "backbone_hidden_size": read.backbone.hidden_size,
        }
        for key, value in expected.items():
            if depth.get(key, value) != value:
                raise CheckpointError(
                    f"depth_decoder_config.{key} is {depth[key]}, but the backbone has {value}"
                )
        if read.depth.max_position_embeddings <= read.num_codebooks - 1:
            raise CheckpointError("depth_decoder_config.max_position_embeddings is too small")
        return read


def _speakers(listed: Any) -> tuple[str, ...]:
    if listed is None:
        return ()
    names = listed if isinstance(listed, list) else []
    right = all(isinstance(name, str) and NAME.fullmatch(name) for name in names)
    if not right or not 1 <= len(names) <= MAX_SPEAKERS or len({*names}) < len(names):
        raise CheckpointError(
            f"speakers must be a list of 1 to {MAX_SPEAKERS} different names, each of 1 to 64 "
            "letters, digits, _, . or -, the first a letter or digit"
        )
    return tuple(names)
