"""Writes the container's packages to files for pip: versions, hashes and licences.

`python -m deploy.container.lock` asks pip what it would install today, on this platform and Python,
which must be the container's (Linux on x86_64, Python 3.11).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PROJECTS = [
    ".[otel]",
    "plugins/csm",
    "plugins/demo_voice",
    "plugins/dia",
    "plugins/orpheus",
    "plugins/pocket_tts",
    "plugins/qwen3_tts",
]
BUILD = ["hatchling"]
READ = {"snac": "MIT", "cuda-toolkit": "none stated: it holds no files, only requirements"}
"""Licences that are stated only in the distribution's LICENSE file."""
WHEELS = {"av": "BSD-3-Clause; its wheel holds FFmpeg with x264 and x265: GPL-2.0-or-later"}
"""Licences of wheels that contain more than the project that they are built from."""
HEADER = "# Made by: python -m deploy.container.lock\n"
CUDA = ("cuda-", "nvidia-", "torch", "triton")
"""Prefixes of the packages that differ between the targets: torch, and the requirements of its
CUDA build."""


def resolve(*requirements: str) -> list[dict[str, Any]]:
    """The packages that pip would install into an empty environment."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run"]
    command += ["--ignore-installed", "--report", "-", *requirements]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE)
    found: list[dict[str, Any]] = json.loads(done.stdout)["install"]
    return [package for package in found if "archive_info" in package["download_info"]]


def line(package: Mapping[str, Any]) -> str:
    """A line of a requirements file; the licence is its comment."""
    about = package["metadata"]
    digest = package["download_info"]["archive_info"]["hashes"]["sha256"]
    return f"{name(package)}=={about['version']} --hash=sha256:{digest}  # {licence(about)}"


def name(package: Mapping[str, Any]) -> str:
    return str(package["metadata"]["name"]).lower().replace("_", "-").replace(".", "-")


def licence(about: Mapping[str, Any]) -> str:
    """The licence in the metadata: an SPDX expression, else classifiers, else free text."""
    if about["name"] in WHEELS:
        return WHEELS[about["name"]]
    if about.get("license_expression"):
        return str(about["license_expression"])
    marks = [c.rpartition(" :: ")[2] for c in about.get("classifier", ()) if "License" in c]
    if marks:
        return ", ".join(marks)
    text = (about.get("license") or READ.get(about["name"], "")).strip()
    if not text:
        raise SystemExit(f"{about['name']} states no licence: read its own and add it to READ")
    return text.splitlines()[0][:80]


def write(file: str, packages: Iterable[Mapping[str, Any]]) -> None:
    lines = sorted(map(line, packages))
    (HERE / file).write_text(HEADER + "".join(f"{one}\n" for one in lines))


def main() -> None:
    packages = resolve(*PROJECTS)
    cuda = [package for package in packages if name(package).startswith(CUDA)]
    write("lock.txt", (package for package in packages if package not in cuda))
    write("lock-cuda.txt", cuda)
    write("lock-build.txt", resolve(*BUILD))


if __name__ == "__main__":
    main()
