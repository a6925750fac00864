"""What `make dist` builds works where nothing else is installed, as in the container.

It takes minutes and gigabytes, so only `make test-slow` runs it.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import soundfile

from tests.deploy.tools import DEPLOY, passes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
ROOT = DEPLOY.parent
LOCKS = DEPLOY / "container"
PROJECTS = {
    "vox_serve_core": ROOT,
    "vox_serve_csm": ROOT / "plugins/csm",
    "vox_serve_demo_voice": ROOT / "plugins/demo_voice",
    "vox_serve_dia": ROOT / "plugins/dia",
    "vox_serve_orpheus": ROOT / "plugins/orpheus",
    "vox_serve_pocket_tts": ROOT / "plugins/pocket_tts",
    "vox_serve_qwen3_tts": ROOT / "plugins/qwen3_tts",
}
AS_LOCKED = sys.version_info[:2] == (3, 11) and platform.machine() == "x86_64"
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sdists, and wheels that were built from them."""
    folder = tmp_path_factory.mktemp("dist")
    for project in PROJECTS.values():
        done = [sys.executable, "-m", "build", "--outdir", folder, project]
        subprocess.run(done, check=True, env=ENVIRONMENT, stdout=subprocess.DEVNULL, timeout=300)
    return folder


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with only the wheels and the locked packages."""
    folder = tmp_path_factory.mktemp("empty")
    venv.create(folder / "env", with_pip=True)
    programs = folder / "env" / "bin"
    pip = [programs / "python", "-m", "pip", "install", "--quiet"]
    wheels = sorted(built.glob("*.whl"))
    if AS_LOCKED:
        locks = ["-r", LOCKS / "lock.txt", "-r", LOCKS / "lock-cuda.txt"]
        subprocess.run([*pip, "--require-hashes", "--no-deps", *locks], check=True, env=ENVIRONMENT)
        subprocess.run([*pip, "--no-index", "--no-deps", *wheels], check=True, env=ENVIRONMENT)
    else:
        subprocess.run([*pip, *wheels], check=True, env=ENVIRONMENT)
    return programs


@pytest.mark.parametrize("name", PROJECTS)
def test_each_project_has_an_sdist_and_a_wheel_with_its_licence(built: Path, name: str) -> None:
    (sdist,) = built.glob(f"{name}-*.tar.gz")
    (wheel,) = built.glob(f"{name}-*-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = archive.namelist()
    assert any(re.search(r"\.dist-info/licenses/LICENSE$", path) for path in inside)
    assert not [path for path in inside if "tests" in Path(path).parts]
    with tarfile.open(sdist) as archive:
        held = {path.partition("/")[2] for path in archive.getnames()}
    assert {"LICENSE", "README.md", "pyproject.toml"} <= held


def test_pip_finds_nothing_missing(installed: Path) -> None:
    passes(installed / "python", "-m", "pip", "check")


def test_the_wheels_are_imported(installed: Path, tmp_path: Path) -> None:
    show = "import vox_serve, vox_serve_csm as c; print(vox_serve.__file__, c.__file__)"
    command = [installed / "python", "-c", show]
    said = subprocess.run(
        command, cwd=tmp_path, env=ENVIRONMENT, check=True, capture_output=True, text=True
    ).stdout
    assert all("site-packages" in path for path in said.split())
    assert str(ROOT) not in said


def test_it_speaks_a_text_without_a_server(installed: Path, tmp_path: Path) -> None:
    command = [installed / "vox-serve", "say", "Hello there!", "-o", "hello.wav"]
    subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, check=True, timeout=120)
    audio, rate = soundfile.read(tmp_path / "hello.wav")
    assert len(audio) > rate / 2


@pytest.fixture
def address(installed: Path, tmp_path: Path) -> Iterator[str]:
    command = [installed / "vox-serve", "launch", "--port", "0"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            for line in server.stdout:
                if found := re.search(r"address +(http://\S+)", line):
                    yield found[1]
                    break
        finally:
            server.terminate()


def test_it_serves_the_demo_voice_and_knows_the_other_plugins(address: str) -> None:
    with httpx.Client(base_url=address, timeout=60) as http:
        plugins = {one["name"]: one for one in http.get("/plugins").json()["plugins"]}
        assert {"csm", "demo_voice", "dia", "orpheus", "pocket_tts", "qwen3_tts"} <= set(plugins)
        assert not [one for one in plugins.values() if one.get("error")]
        answer = http.post("/generate", json={"text": "Hello there!"})
        assert answer.status_code == 200
        assert len(answer.content) > 24000
