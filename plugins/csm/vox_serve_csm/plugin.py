"""Declares what the plugin offers, without importing a tensor library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vox_serve import CheckpointSpec, FrontEnd, LoadOptions, Model, ModelSpec, hookimpl

HUB_ID = "sesame/csm-1b"


def _matches(config: Mapping[str, Any]) -> bool:
    return config.get("model_type") == "csm"


def _files(config: Mapping[str, Any]) -> Sequence[str]:
    """Only the transformers layout, because the original layout in the repository is as large."""
    prefix = "transformers" if config.get("transformers_weights") else "model"
    return ["*.json", f"{prefix}*.safetensors*", "prompts/*.wav"]


def _load(options: LoadOptions) -> Model:
    from vox_serve_csm.checkpoint import load_model

    return load_model(options)


@hookimpl
def vox_serve_models() -> Sequence[ModelSpec]:
    return [
        ModelSpec(
            name="csm",
            summary="CSM: conversational speech, 24 kHz, 2 speakers, follows earlier turns",
            hub_ids=(HUB_ID, "unsloth/csm-1b"),
            matches=_matches,
            files=_files,
            load=_load,
            # Trained on transcripts, so it reads capitals, accents and everyday signs itself.
            front_end=FrontEnd(language="en"),
            languages=("en",),
        )
    ]


@hookimpl
def vox_serve_checkpoints() -> Sequence[CheckpointSpec]:
    return [CheckpointSpec("csm-1b", HUB_ID, "Sesame's CSM-1B (gated: accept its licence first)")]
