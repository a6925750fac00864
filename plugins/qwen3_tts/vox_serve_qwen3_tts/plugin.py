"""Declares what the plugin offers, without importing a tensor library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import attrs

from vox_serve import (
    CheckpointSpec,
    Choice,
    FrontEnd,
    LoadOptions,
    Model,
    ModelSpec,
    Range,
    SamplingParams,
    Words,
    hookimpl,
    parameter,
)

REPOSITORY = "Qwen/Qwen3-TTS-12Hz-"
MAX_POSITIONS = 2048
"""Prompt and frames of one piece of text; 164 s if it were all sound.  The model was trained for
more, but memory for that many positions is allocated for every slot."""
MAX_CHARACTERS = 300
MAX_INSTRUCTION = 1000
TAGS = {
    "chinese": "zh",
    "english": "en",
    "japanese": "ja",
    "korean": "ko",
    "german": "de",
    "french": "fr",
    "russian": "ru",
    "portuguese": "pt",
    "spanish": "es",
    "italian": "it",
}
"""Languages as a checkpoint names them."""
LANGUAGE_HELP = "of the text; auto: the model finds out"
FILES = ("*.json", "*.safetensors", "merges.txt", "speech_tokenizer/*.json")


@attrs.frozen
class QwenParameters(SamplingParams):
    """Parameters of every checkpoint; its languages may be others."""

    repetition_window: ClassVar[int] = MAX_POSITIONS

    repetition_penalty: float = parameter(
        1.05, Range(float, 0.1, 10.0, "divides logits of codes that were there before; 1 is off")
    )
    language: str = parameter("auto", Choice(("auto", *TAGS.values()), LANGUAGE_HELP))


@attrs.frozen
class InstructedParameters(QwenParameters):
    """Parameters of a checkpoint that follows instructions."""

    instructions: str = parameter(
        "", Words(MAX_INSTRUCTION, "how to speak, or who speaks, in plain words")
    )


def _matches(config: Mapping[str, Any]) -> bool:
    return config.get("model_type") == "qwen3_tts"


def _load(options: LoadOptions) -> Model:
    from vox_serve_qwen3_tts.checkpoint import load_model

    return load_model(options)


CHECKPOINTS = {
    "qwen3-tts": ("0.6B-CustomVoice", "nine voices, ten languages"),
    "qwen3-tts-1.7b": ("1.7B-CustomVoice", "nine voices, ten languages, follows instructions"),
    "qwen3-tts-design": ("1.7B-VoiceDesign", "speaks with a voice that `instructions` describe"),
    "qwen3-tts-clone": ("0.6B-Base", "speaks with voices from clips"),
    "qwen3-tts-clone-1.7b": ("1.7B-Base", "speaks with voices from clips"),
}


@hookimpl
def vox_serve_models() -> Sequence[ModelSpec]:
    return [
        ModelSpec(
            name="qwen3-tts",
            summary="Qwen3-TTS: ten languages, 24 kHz; voices by name, by description or from a "
            "clip (weights Apache-2.0)",
            hub_ids=tuple(f"{REPOSITORY}{name}" for name, _ in CHECKPOINTS.values()),
            matches=_matches,
            files=(*FILES, "speech_tokenizer/*.safetensors"),
            load=_load,
            front_end=FrontEnd(language=None),
            parameters=InstructedParameters,
            languages=tuple(TAGS.values()),
            max_characters=MAX_CHARACTERS,
        )
    ]


@hookimpl
def vox_serve_checkpoints() -> Sequence[CheckpointSpec]:
    return [
        CheckpointSpec(
            alias,
            f"{REPOSITORY}{name}",
            f"Qwen3-TTS {name}: {what} (weights Apache-2.0)",
            max_characters=MAX_CHARACTERS,
        )
        for alias, (name, what) in CHECKPOINTS.items()
    ]
