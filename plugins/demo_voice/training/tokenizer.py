"""The voice's tokenizer: a token per character, as `tokenizer.json` and as ids for training."""

from __future__ import annotations

from typing import Any

from vox_serve_demo_voice.text import ALPHABET

SPECIAL = (
    "<|pad|>",
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|unk|>",
    "<|AUDIO|>",
    "<|audio_eos|>",
)
PAD, BEGIN, END, UNKNOWN, AUDIO, AUDIO_END = range(len(SPECIAL))
VOCABULARY = {token: i for i, token in enumerate((*SPECIAL, *ALPHABET, "[", "]", "0", "1"))}
"""The digits are speaker ids; `normalise` writes all other digits out."""


def encode(text: str, speaker: int) -> list[int]:
    """Ids of a normalised text as in a prompt."""
    return [BEGIN, *(VOCABULARY[c] for c in f"[{speaker}]{text}"), END]


def tokenizer_json() -> dict[str, Any]:
    """The contents of `tokenizer.json`; it adds begin and end itself."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    ends = {
        SPECIAL[i]: {"id": SPECIAL[i], "ids": [i], "tokens": [SPECIAL[i]]} for i in (BEGIN, END)
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": token, **flags, "special": True} for i, token in enumerate(SPECIAL)
        ],
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": "."},
            "behavior": "Isolated",
            "invert": False,
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": SPECIAL[BEGIN], "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": SPECIAL[END], "type_id": 0}},
            ],
            "pair": [
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": ends,
        },
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": VOCABULARY, "unk_token": SPECIAL[UNKNOWN]},
    }


def tokenizer_config() -> dict[str, str]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL[BEGIN],
        "eos_token": SPECIAL[END],
        "pad_token": SPECIAL[PAD],
        "unk_token": SPECIAL[UNKNOWN],
    }
