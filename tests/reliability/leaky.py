"""Faults of an engine, as the negative control of a promise: a plugin that spoils the tone.

LEAKY_KIB are kept of each request; LEAKY_SPAWN has each life of the worker leave a process behind.
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
