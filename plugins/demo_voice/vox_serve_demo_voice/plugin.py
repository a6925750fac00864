"""Names the checkpoint that lies beside this file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vox_serve import CheckpointSpec, hookimpl

CHECKPOINT = Path(__file__).parent / "checkpoint"


@hookimpl
def vox_serve_checkpoints() -> Sequence[CheckpointSpec]:
    return [
        CheckpointSpec(
            alias="demo",
            source=str(CHECKPOINT),
            summary=(
                "a small voice of ours, trained from scratch on synthetic speech: made to try "
                "vox_serve out, not to please the ear; English, short sentences"
            ),
            max_characters=80,
            max_words=12,
            takes_context=False,
        )
    ]
