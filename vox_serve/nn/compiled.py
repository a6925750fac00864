"""The C files beside this module, compiled by the machine's C compiler at the first start.

That takes about a second; later starts load the library from the user's cache.  In a small model,
dispatching torch's operations takes several times as long as their arithmetic, so one call of C
replaces many of them.  Without a compiler, plain torch does this work.  Products of 8-bit matrices
exist only in C.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakValueDictionary

import torch
from torch.nn import functional as F

log = logging.getLogger("vox_serve.nn")

FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
THREADS = "-fopenmp"
"""Some compilers lack it, Apple's for one; the C code then runs in one thread."""
FOLDER = Path(__file__).parent
SOURCES = ("decode_step.c", "int8_product.c", "mimi_transformer_step.c", "seanet_step.c")
HEADERS = ("wide.h",)
UNIT, BLOCK = 16, 64
"""As in the C files: sizes are multiples of the first; outputs of a block of a matrix."""


class Blocks(ctypes.Structure):
    """A matrix and its bias as `wide.h` reads them."""

    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("in_", ctypes.c_int64),
        ("out", ctypes.c_int64),
    )


def blocks(weight: torch.Tensor, bias: torch.Tensor | None, held: list[torch.Tensor]) -> Blocks:
    """Convert `weight` `[out, in]` and `bias` `[out]`; `held` keeps the tensors alive."""
    out, inputs = weight.shape
    parts = [
        F.pad(part, (0, 0, 0, -len(part) % UNIT)).t().flatten()
        for part in torch.split(weight.detach(), BLOCK)
    ]
    offsets = F.pad(weight.new_zeros(out) if bias is None else bias.detach(), (0, -out % UNIT))
    held += [torch.cat(parts), offsets]
    return Blocks(held[-2].data_ptr(), held[-1].data_ptr(), inputs, out)


class Step(Protocol):
    """An object that calls the library."""

    def run(self, *arguments: Any) -> torch.Tensor | tuple[torch.Tensor, ...]: ...


_steps: WeakValueDictionary[int, Step] = WeakValueDictionary()
"""By id, because torch's operators take numbers and tensors only."""
_kept: list[torch.library.Library] = []


def register(step: Step) -> int:
    """The number that an `operator` uses to find this object."""
    _steps[id(step)] = step
    return id(step)


@cache
def operator(name: str, schema: str) -> Callable[..., Any]:
    """Make `run` of registered objects a torch operator, so that recording tools see it.

    Args:
        schema: of the arguments after the object's number, and of the result: `a, b) -> c`.
    """

    def run(step: int, *arguments: Any) -> Any:
        return _steps[step].run(*arguments)

    library = torch.library.Library("vox_serve", "FRAGMENT")  # type: ignore[no-untyped-call]
    library.define(f"{name}(int step, {schema}")  # type: ignore[no-untyped-call]  # torch ships no types for it
    library.impl(name, run, "CPU")  # type: ignore[no-untyped-call]
    _kept.append(library)  # deleting it would remove its operators
    found: Callable[..., Any] = getattr(torch.ops.vox_serve, name).default
    return found


@cache
def library() -> ctypes.CDLL | None:
    """The compiled C files, built at the first call if the user's cache does not have them."""
    try:
        return ctypes.CDLL(str(_compiled()))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        said = str(getattr(error, "stderr", None) or error).strip().splitlines()[-1]
        log.warning(
            "a small model runs at half speed because its step cannot be compiled: %s", said
        )
        return None


def _compiled() -> Path:
    """Path of the library; builds it if it is missing.

    Raises:
        OSError, RuntimeError, subprocess.SubprocessError: there is no C compiler, it failed, or
            the cache folder cannot be written to.
    """
    compiler = c_compiler()
    if compiler is None:
        raise FileNotFoundError("no C compiler: install gcc, or set CC")
    # Several processors, for which -march=native differs, may share the folder.
    command = [*compiler, *FLAGS]
    texts = [(FOLDER / name).read_text(encoding="utf-8") for name in (*SOURCES, *HEADERS)]
    parts = [*texts, *command, _processor()]
    name = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vox_serve"
    built = folder / f"steps-{name}.so"
    if built.is_file():
        return built
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as unfinished:
        made = Path(unfinished) / built.name
        sources = [str(FOLDER / name) for name in SOURCES]
        for threads in ([THREADS], []):
            run = [*command, *threads, "-o", str(made), *sources, "-lm"]
            done = subprocess.run(run, check=False, capture_output=True, text=True, timeout=60)
            if done.returncode == 0:
                break
        done.check_returncode()
        made.replace(built)  # atomic: another process may be doing the same
    return built


def c_compiler() -> list[str] | None:
    """The command of this machine's C compiler: `$CC`, else cc, gcc or clang."""
    if os.environ.get("CC"):
        return shlex.split(os.environ["CC"])
    found = (shutil.which(name) for name in ("cc", "gcc", "clang"))
    return next(([path] for path in found if path), None)


def _processor() -> str:
    """A description of the processor, on which `-march=native` depends."""
    described = Path("/proc/cpuinfo")
    if not described.is_file():
        return f"{platform.machine()} {platform.processor()}"
    lines = described.read_text(encoding="utf-8").splitlines()
    kinds = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(kinds)}))
