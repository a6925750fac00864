"""The checkpoint's `config.json`, for both transformers 4 and 5."""

from __future__ import annotations

from typing import Any

from plugins.demo_voice.training.config import Recipe, Stack
from plugins.demo_voice.training.tokenizer import AUDIO, AUDIO_END, BEGIN, PAD, VOCABULARY

RESERVED = 3
"""Ids that each codebook has in addition to its codes, as in CSM."""


def csm_json(recipe: Recipe) -> dict[str, Any]:
    """`config.json` for a recipe."""
    lm, codec = recipe.lm, recipe.codec
    books, vocab = codec.num_codebooks, codec.codebook_size + RESERVED
    depth = _stack(lm.depth, books + 1) | {
        "model_type": "csm_depth_decoder_model",
        "backbone_hidden_size": lm.backbone.width,
        "num_codebooks": books,
        "vocab_size": vocab,
    }
    return _stack(lm.backbone, lm.positions) | {
        "architectures": ["CsmForConditionalGeneration"],
        "model_type": "csm",
        "dtype": "bfloat16",
        "num_codebooks": books,
        "vocab_size": vocab,
        "text_vocab_size": len(VOCABULARY),
        "audio_token_id": AUDIO,
        "audio_eos_token_id": AUDIO_END,
        "bos_token_id": BEGIN,
        "eos_token_id": None,
        "pad_token_id": PAD,
        "codebook_eos_token_id": 0,
        "codebook_pad_token_id": vocab - 1,
        "tie_codebooks_embeddings": True,
        "tie_word_embeddings": False,
        "depth_decoder_config": depth,
        "codec_config": {"model_type": "mimi", **_rope(), **codec.mimi()},
    }


def _stack(stack: Stack, positions: int) -> dict[str, Any]:
    return {**stack.llama(positions), **_rope(), "hidden_act": "silu", "use_cache": True} | {
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
    }


def _rope() -> dict[str, Any]:
    return {
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    }
