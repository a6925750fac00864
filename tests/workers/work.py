"""Work for other processes.  It does not import torch, which would exceed their memory limit."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from typing import Any

import numpy as np

from vox_serve.errors import NothingToSpeak


class Own(NothingToSpeak):
    """An error that a plugin may define."""


def double(x: Any) -> Any:
    return 2 * x


def process_id() -> int:
    return os.getpid()


def crash(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def leave() -> None:
    sys.exit(3)


def hang(*_: object) -> None:
    time.sleep(60)


def hold() -> None:
    """Hold the interpreter lock, as a call of a library can."""
    ctypes.PyDLL(None).sleep(60)


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def bomb(*_: object) -> None:
    np.ones(2**40, np.uint8)


def refuse() -> None:
    raise Own("nothing to say", "text")


def fail() -> None:
    raise KeyError("sec" + "ret")  # in two parts, because the log quotes this line


def unsendable() -> object:
    return lambda: None


def noise() -> str:
    print("noise" * 10_000)
    os.write(1, b"noise" * 10_000)
    os.write(2, b"noise" * 10_000)
    return "done"


def obey(text: str) -> str:
    """A front end's last step that obeys the text."""
    first, *_ = text.split()
    {"crash": crash, "hang": hang, "raise": fail}.get(first.strip("."), lambda: None)()
    return text
