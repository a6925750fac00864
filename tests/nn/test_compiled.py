"""The C files, compiled for processors with narrower vectors than this machine's."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vox_serve.nn import compiled

TESTS = ("test_decode_step.py", "test_mimi_transformer_step.py", "test_seanet_step.py")


@pytest.mark.skipif(not compiled.c_compiler(), reason="needs a C compiler")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="compiles for other x86-64 processors")
@pytest.mark.parametrize("processor", ["x86-64-v3", "x86-64-v2"])
def test_steps_are_right_with_narrower_vectors(processor: str, tmp_path: Path) -> None:
    if processor == "x86-64-v3" and not torch.cpu._is_avx2_supported():
        pytest.skip("this CPU has no AVX2")
    compiler = tmp_path / "cc"
    command = " ".join(compiled.c_compiler() or ())
    compiler.write_text(f'#!/bin/sh\nexec {command} "$@" -march={processor}\n')
    compiler.chmod(0o755)
    tests = [str(Path(__file__).parent / name) for name in TESTS]
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    folder = {"CC": str(compiler), "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(
        run, check=False, capture_output=True, text=True, env={**os.environ, **folder}
    )
    assert done.returncode == 0, done.stdout
    assert list((tmp_path / "vox_serve").glob("steps-*.so"))
