"""The configurations of the published checkpoints, which their repositories do not contain.

They come from the `pocket-tts` package 4.0.1 (MIT licence, Kyutai), stored as differences from the
default English one.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

Tree = dict[str, Any]

SEANET: Tree = {
    "dimension": 512,
    "channels": 1,
    "n_filters": 64,
    "n_residual_layers": 1,
    "ratios": [6, 5, 4],
    "kernel_size": 7,
    "residual_kernel_size": 3,
    "last_kernel_size": 3,
    "dilation_base": 2,
    "pad_mode": "constant",
    "compress": 2,
}
ENGLISH: Tree = {
    "default_temperature": 0.3,
    "replace_characters": {"’": "'", "‘": "'"},
    "flow_lm": {
        "insert_bos_before_voice": True,
        "flow": {"depth": 6, "dim": 512},
        "transformer": {
            "d_model": 1024,
            "hidden_scale": 4,
            "max_period": 10000,
            "num_heads": 16,
            "num_layers": 6,
        },
        "lookup_table": {"dim": 1024, "n_bins": 4000, "tokenizer": "tokenizers"},
    },
    "mimi": {
        "sample_rate": 24000,
        "inner_dim": 32,
        "outer_dim": 512,
        "channels": 1,
        "frame_rate": 12.5,
        "seanet": SEANET,
        "transformer": {
            "d_model": 512,
            "num_heads": 8,
            "num_layers": 2,
            "layer_scale": 0.01,
            "context": 250,
            "dim_feedforward": 2048,
            "input_dimension": 512,
            "output_dimensions": [512],
        },
        "quantizer": {"dimension": 32, "output_dimension": 512},
    },
}
LARGE: Tree = {"flow_lm": {"transformer": {"num_layers": 24}}}
DRIFTING: Tree = {"flow_lm": {"flow": {"type": "drifting"}}}
OLDEST: Tree = {
    "pad_with_spaces_for_short_inputs": True,
    "flow_lm": {"insert_bos_before_voice": False},
    "mimi": {"inner_dim": 512},
}

_QUOTES = dict.fromkeys('"“”„«»()[]', "") | {"–": ","}
_DASHES = {"replace_characters": {"–": ",", "—": ","}}
_DUTCH = {"replace_characters": _QUOTES}
_FRENCH = {"replace_characters": _QUOTES | {":": ","}, "remove_semicolons": True}
_GERMAN = {"replace_characters": _QUOTES | {"—": ","}, "remove_semicolons": True}
_SPANISH = {"replace_characters": _QUOTES | {"¡": "", "¿": ""}}


def _small(
    flow: Tree, transformer: Tree, filters: int, layers: int, rank: int | None = None
) -> Tree:
    """An English model with its own decoder."""
    width = transformer["d_model"]
    return _DASHES | {
        "default_eos_threshold": -1.0,
        "flow_lm": {
            "flow": {"depth": 4, **flow},
            "transformer": {"hidden_scale": 1, "num_layers": 8, **transformer},
            "lookup_table": {"dim": width, "rank": rank, "tokenizer": "sentencepiece"},
            "z_dim": 64,
        },
        "mimi": {
            "outer_dim": 128,
            "quantizer": {"output_dimension": 128},
            "decoder_seanet": SEANET | {"dimension": 128, "n_filters": filters, "kernel_size": 3},
            "decoder_transformer": {
                "d_model": 128,
                "num_heads": 4,
                "num_layers": layers,
                "layer_scale": 0.01,
                "context": 50,
                "dim_feedforward": 384,
                "input_dimension": 128,
                "output_dimensions": [128],
            },
        },
    }


_18M = _small({"dim": 192, "type": "drifting"}, {"d_model": 512, "num_heads": 8}, 32, 12)
_7M = _small(
    {"dim": 192, "type": "drifting"},
    {"d_model": 224, "num_heads": 8, "attn_dim": 512, "num_kv_heads": 2},
    32,
    12,
    rank=64,
)
_2M = _small(
    {"dim": 64, "type": "pointwise"},
    {
        "d_model": 112,
        "num_heads": 3,
        "attn_dim": 192,
        "num_kv_heads": 1,
        "dim_feedforward": 96,
    },
    24,
    4,
    rank=32,
)
DIFFERENCES: Mapping[str, tuple[Tree, ...]] = {
    "english": (),
    "english_2026-01": (OLDEST,),
    "english_2026-04": (),
    "english_2026-04_24l": (LARGE,),
    "english_2026-09": (),
    "english_2026-09_2": (),
    "english_2026-09_24l": (LARGE,),
    "english_2026-10": (),
    "english_drifting_26-09": (DRIFTING,),
    "english_18m_2026-10": (_18M,),
    "english_18m_refl_2026-10": (_18M,),
    "english_7m_2026-10": (_7M,),
    "english_7m_refl_2026-10": (_7M,),
    "english_2m_2026-10": (_2M,),
    "english_2m_refl_2026-10": (_2M,),
    "dutch": (_DUTCH,),
    "dutch_24l": (_DUTCH, LARGE),
    "french": (_FRENCH,),
    "french_24l": (_FRENCH, LARGE),
    "german": (_GERMAN,),
    "german_24l": (_GERMAN, LARGE),
    "italian": (_DUTCH,),
    "italian_24l": (_DUTCH, LARGE),
    "portuguese": (_DUTCH,),
    "portuguese_24l": (_DUTCH, LARGE),
    "spanish": (_SPANISH,),
    "spanish_24l": (_SPANISH, LARGE),
}
"""By the name of the folder under `languages/`."""


def published(name: str) -> Tree:
    """The configuration of the checkpoint in this folder.  Raises KeyError."""
    config = copy.deepcopy(ENGLISH)
    for difference in DIFFERENCES[name]:
        _change(config, difference)
    return config


def _change(tree: Tree, difference: Mapping[str, Any]) -> None:
    for key, value in difference.items():
        if isinstance(value, dict) and isinstance(tree.get(key), dict):
            _change(tree[key], value)
        else:
            tree[key] = copy.deepcopy(value)
