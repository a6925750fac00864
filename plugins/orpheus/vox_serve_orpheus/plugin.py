"""Declares what the plugin offers, without importing a tensor library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vox_serve import CheckpointSpec, FrontEnd, LoadOptions, Model, ModelSpec, hookimpl

TAGS = frozenset(["laugh", "chuckle", "sigh", "cough", "sniffle", "groan", "yawn", "gasp"])
"""Tags for sounds that it was trained to make."""
HUB_ID = "canopylabs/orpheus-3b-0.1-ft"
MARK = "vox_serve_model"
"""A key of `config.json` that names the kind of model if the vocabulary's size does not."""

# Llama 3's 128256 ids, 10 markers and 7 x 4096 codes; published checkpoints have two spare ids
# (156940), and a fine-tune may have padded its table to a multiple of up to 256.
VOCABULARY = range(128256 + 10 + 7 * 4096, 157184 + 1)


def _matches(config: Mapping[str, Any]) -> bool:
    """Orpheus has the `model_type` "llama" like any Llama; it is identified by its vocabulary."""
    if config.get("model_type") != "llama":
        return False
    return config.get(MARK) == "orpheus" or config.get("vocab_size") in VOCABULARY


def _files(config: Mapping[str, Any]) -> Sequence[str]:
    return ["*.json", "model*.safetensors*", "snac.safetensors", "snac/*"]


def _load(options: LoadOptions) -> Model:
    from vox_serve_orpheus.checkpoint import load_model

    return load_model(options)


@hookimpl
def vox_serve_models() -> Sequence[ModelSpec]:
    return [
        ModelSpec(
            name="orpheus",
            summary="Orpheus: expressive English speech, 24 kHz, 8 voices, tags such as <laugh>",
            hub_ids=(HUB_ID, "unsloth/orpheus-3b-0.1-ft"),
            matches=_matches,
            files=_files,
            load=_load,
            # Trained on transcripts, so it reads capitals, accents and everyday signs itself.
            front_end=FrontEnd(language="en", kept_tags=TAGS),
        )
    ]


@hookimpl
def vox_serve_checkpoints() -> Sequence[CheckpointSpec]:
    return [CheckpointSpec("orpheus-3b", HUB_ID, "Orpheus 3B (gated: accept its licence first)")]
