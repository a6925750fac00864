"""Declares what the plugin offers, without importing a tensor library."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import attrs

from vox_serve import (
    CheckpointSpec,
    FrontEnd,
    LoadOptions,
    Model,
    ModelSpec,
    Parameters,
    Range,
    hookimpl,
    parameter,
)
from vox_serve_pocket_tts.languages import DIFFERENCES

OPEN = "kyutai/pocket-tts-without-voice-cloning"
CLONING = "kyutai/pocket-tts"
MAX_CHARACTERS = 160
"""About as long as the reference's pieces of 50 tokens."""
FILES = (
    "model.safetensors",
    "*.yaml",
    "tokenizer.json",
    "tokenizer.model",
    "embeddings/*.safetensors",
    # The default of a whole repository.
    "languages/english/model.safetensors",
    "languages/english/tokenizer.json",
    "languages/english/embeddings/*.safetensors",
)
LANGUAGES = {
    "dutch": "nl",
    "french": "fr",
    "german": "de",
    "italian": "it",
    "portuguese": "pt",
    "spanish": "es",
}


@attrs.frozen
class OneStepParameters(Parameters):
    """Parameters for a flow head that takes one step."""

    noise_temperature: float = parameter(
        0.3, Range(float, 0.0, 2.0, "variance of the noise that a frame is made from; 0: none")
    )


@attrs.frozen
class FlowParameters(OneStepParameters):
    """Parameters for a flow head that may take several steps."""

    flow_steps: int = parameter(
        1,
        Range(
            int, 1, 4, "steps from noise to frame; more take longer, and the model is made for one"
        ),
    )


def _holds(directory: Path) -> bool:
    if (directory / "languages").is_dir():
        return True
    described = directory.resolve().name in DIFFERENCES or any(directory.glob("*.yaml"))
    return described and (directory / "model.safetensors").is_file()


def _load(options: LoadOptions) -> Model:
    from vox_serve_pocket_tts.checkpoint import load_model

    return load_model(options)


@hookimpl
def vox_serve_models() -> Sequence[ModelSpec]:
    return [
        ModelSpec(
            name="pocket-tts",
            summary="Pocket TTS: 100 M weights for a CPU, 24 kHz, seven languages, many voices "
            "(weights CC-BY-4.0, each voice under its own licence)",
            hub_ids=(OPEN, CLONING),
            matches=lambda config: False,
            files=FILES,
            load=_load,
            parameters=FlowParameters,
            holds=_holds,
            max_characters=MAX_CHARACTERS,
        )
    ]


@hookimpl
def vox_serve_checkpoints() -> Sequence[CheckpointSpec]:
    def spec(alias: str, folder: str, front_end: FrontEnd) -> CheckpointSpec:
        return CheckpointSpec(
            alias,
            f"{OPEN}/languages/{folder}",
            f"Kyutai's Pocket TTS, {folder.capitalize()} (weights CC-BY-4.0; no account needed)",
            max_characters=MAX_CHARACTERS,
            front_end=front_end,
            languages=(LANGUAGES.get(folder, "en"),),
        )

    others = [spec(f"pocket-tts-{n}", n, FrontEnd(language=None)) for n in LANGUAGES]
    return [spec("pocket-tts", "english", FrontEnd(language="en")), *others]
