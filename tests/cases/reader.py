"""A plugin: the tone model with the text front end of the demo voice."""

from __future__ import annotations

from collections.abc import Sequence

from tests.tone import CHECKPOINT
from vox_serve import CheckpointSpec, hookimpl
from vox_serve_demo_voice.text import FRONT_END


@hookimpl
def vox_serve_checkpoints() -> Sequence[CheckpointSpec]:
    return [
        CheckpointSpec("reader", str(CHECKPOINT), "hums what it reads", front_end=FRONT_END),
    ]
