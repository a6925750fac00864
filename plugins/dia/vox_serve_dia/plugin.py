"""Declares what the plugin offers, without importing a tensor library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from vox_serve import (
    CheckpointSpec,
    LoadOptions,
    Model,
    ModelSpec,
    Range,
    SamplingParams,
    hookimpl,
    parameter,
)

HUB_ID = "nari-labs/Dia-1.6B-0626"
MAX_CHARACTERS = 300
"""About 20 seconds, the longest that Nari Labs recommend."""


@attrs.frozen
class DiaParameters(SamplingParams):
    """The parameters of every model of codes, and the strength of guidance."""

    guidance_scale: float = parameter(
        3.0,
        Range(float, 1.0, 10.0, "strength of classifier-free guidance towards the text; 1: none"),
    )


def _matches(config: Mapping[str, Any]) -> bool:
    return config.get("model_type") == "dia" or original(config)


def original(config: Mapping[str, Any]) -> bool:
    """Whether this is the configuration of Nari Labs' own layout."""
    data = config.get("data")
    return isinstance(data, dict) and "delay_pattern" in data and "model" in config


def _load(options: LoadOptions) -> Model:
    from vox_serve_dia.checkpoint import load_model

    return load_model(options)


@hookimpl
def vox_serve_models() -> Sequence[ModelSpec]:
    return [
        ModelSpec(
            name="dia",
            summary="Dia: English dialogue of two speakers in one pass, 44.1 kHz, sounds such as "
            "(laughs), voices from a clip (weights Apache-2.0)",
            hub_ids=(HUB_ID,),
            matches=_matches,
            files=("*.json", "model*.safetensors*", "dac/*"),
            load=_load,
            parameters=DiaParameters,
            max_characters=MAX_CHARACTERS,
        )
    ]


@hookimpl
def vox_serve_checkpoints() -> Sequence[CheckpointSpec]:
    return [
        CheckpointSpec(
            "dia-1.6b",
            HUB_ID,
            "Nari Labs' Dia 1.6B (weights Apache-2.0; no account needed)",
            max_characters=MAX_CHARACTERS,
        )
    ]
