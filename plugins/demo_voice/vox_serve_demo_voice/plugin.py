"""Names the checkpoint in this directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vox_serve import CheckpointSpec, hookimpl
from vox_serve_demo_voice.text import FRONT_END

CHECKPOINT = Path(__file__).parent / "checkpoint"


@hookimpl
def vox_serve_checkpoints() -> Sequence[CheckpointSpec]:
    return [
        CheckpointSpec(
            alias="demo",
            source=str(CHECKPOINT),
            summary=(
                "a small voice of ours, trained from scratch on a synthesizer's speech; English"
            ),
            max_characters=160,
            max_words=25,
            front_end=FRONT_END,
        )
    ]
