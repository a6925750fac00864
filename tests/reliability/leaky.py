"""A plugin that adds faults to the tone model, as a negative control for the reliability tests.

Each request leaks LEAKY_KIB; with LEAKY_SPAWN, each worker leaves a process behind.
"""

from __future__ import annotations

import os
import subprocess
import sys

from tests.tone import ToneModel

KEPT: list[bytes] = []
_init, _prompt = ToneModel.__init__, ToneModel.prompt


def leaky_init(self: ToneModel) -> None:
    _init(self)
    if os.environ.get("LEAKY_SPAWN"):
        sleep = "import time; time.sleep(120)"
        subprocess.Popen([sys.executable, "-c", sleep], start_new_session=True)


def leaky_prompt(self: ToneModel, text, voice, context):
    KEPT.append(os.urandom(1024 * int(os.environ.get("LEAKY_KIB", "0"))))
    return _prompt(self, text, voice, context)


ToneModel.__init__, ToneModel.prompt = leaky_init, leaky_prompt
