"""The documents tell the truth: examples run, lists are complete."""

import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import soundfile

import vox_serve.hookspecs
from tests.conftest import running_server
from vox_serve.audio.formats import FORMATS
from vox_serve.config import EngineConfig
from vox_serve.metrics import Metrics
from vox_serve.server.routes.generate import GenerateRequest
from vox_serve.server.routes.openai import SpeechBody
from vox_serve.server.speech import CommonFields
from vox_serve.server.voices.aliases import VOICES

ROOT = Path(__file__).parents[1]


def listings(document: str, language: str) -> list[str]:
    text = (ROOT / document).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def demo_server():
    with running_server(EngineConfig(model="demo", max_batch_size=2)) as server:
        yield server


@pytest.mark.parametrize("document", ["README.md", "docs/http-api.md"])
def test_the_requests_run_as_they_stand(document, demo_server, tmp_path):
    """Only the port is replaced: another server may hold 8000."""
    shell = [text for text in listings(document, "bash") if "localhost" in text]
    python = [text for text in listings(document, "python") if "localhost" in text]
    assert shell
    address = demo_server.url.removeprefix("http://")
    for command in [["bash", "-ec", t] for t in shell] + [
        [sys.executable, "-c", t] for t in python
    ]:
        command[-1] = command[-1].replace("localhost:8000", address)
        subprocess.run(command, cwd=tmp_path, check=True, timeout=60)
        for file in tmp_path.iterdir():
            if file.suffix == ".wav":
                audio, rate = soundfile.read(file)
                assert rate == 24000
                assert len(audio) > rate / 2
            else:
                assert file.stat().st_size > 24000
            file.unlink()


def test_the_plugin_tutorial_makes_a_plugin_that_hums(tmp_path):
    package = tmp_path / "vox_serve_hum"
    package.mkdir()
    (package / "__init__.py").touch()
    for listing in listings("docs/writing-a-plugin.md", "python"):
        path = re.match(r"# (\S+)", listing)
        assert path
        if path[1].startswith("vox_serve_words"):  # see test_guide.py
            continue
        (tmp_path / path[1]).parent.mkdir(exist_ok=True)
        (tmp_path / path[1]).write_text(listing)
    commands = listings("docs/writing-a-plugin.md", "sh")[-1]
    # Installing needs the registry; the development flag loads the same module.
    commands = re.sub(r"pip install.*\n|vox-serve plugins\n", "", commands)
    commands = commands.replace(
        "vox-serve say", f"{sys.executable} -m vox_serve.cli say --plugins vox_serve_hum.plugin"
    )
    path = {"PYTHONPATH": str(tmp_path)}
    subprocess.run(["bash", "-ec", commands], cwd=tmp_path, check=True, timeout=100)
    suite = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_hum.py"]
    subprocess.run(suite, cwd=tmp_path, check=True, timeout=100, env=os.environ | path)
    audio, rate = soundfile.read(tmp_path / "hum.wav")
    assert len(audio) / rate == pytest.approx(len("apluginthathums") * 0.08)


def section(heading: str) -> str:
    """What stands under a heading of docs/http-api.md."""
    _, _, text = (ROOT / "docs/http-api.md").read_text().partition(f"\n## {heading}\n")
    assert text, heading
    return text.partition("\n## ")[0]


@pytest.mark.parametrize(
    ("heading", "struct", "elsewhere"),
    [
        ("POST /generate", GenerateRequest, None),
        ("POST /v1/audio/speech", SpeechBody, CommonFields),  # named, and explained for /generate
    ],
)
def test_every_field_is_documented(heading, struct, elsewhere):
    table = re.findall(r"^\| `(\w+)` \|", section(heading), re.MULTILINE)
    others = {field.name for field in msgspec.structs.fields(elsewhere)} if elsewhere else set()
    assert set(table) | others == {field.name for field in msgspec.structs.fields(struct)}
    assert all(f"`{name}`" in section(heading) for name in others)


@pytest.mark.parametrize("names", [FORMATS, VOICES], ids=["formats", "voices"])
def test_formats_and_aliases_are_documented(names):
    if names is FORMATS:
        rows = re.findall(r"^\| (\w+) \| `(\S+)` \|", section("Formats"), re.MULTILINE)
        assert rows == [(one.name, one.media_type) for one in FORMATS.values()]
    else:
        assert all(f"`{name}`" in section("POST /v1/audio/speech") for name in names)


def test_every_metric_is_documented():
    registry = Metrics("x").registry
    registry.watch_process("x", "server", os.getpid())
    made = set(re.findall(r"^# HELP (\S+)", registry.exposition().decode(), re.MULTILINE))
    documented = re.findall(r"^\| `(vox_serve_\w+)`", (ROOT / "docs/metrics.md").read_text(), re.M)
    assert sorted(documented) == sorted(made)


def test_every_hook_is_named_in_the_plugin_guide():
    hooks = [name for name in vars(vox_serve.hookspecs) if name.startswith("vox_serve_")]
    guide = (ROOT / "docs/writing-a-plugin.md").read_text()
    assert len(hooks) == 2
    assert all(hook in guide for hook in hooks)


def test_the_tree_in_the_architecture_is_the_tree():
    page = (ROOT / "docs/architecture.md").read_text()
    tree = page.partition("## Where things are")[2].partition("\n## ")[0]
    core = ROOT / "vox_serve"
    rooms = [p.parent.relative_to(core).name + "/" for p in core.glob("**/__init__.py")][1:]
    modules = [p.name for p in core.glob("*.py") if p.name != "__init__.py"]
    assert [name for name in (*rooms, *modules) if f" {name} " not in tree] == []


def test_the_readme_links_to_what_is_there():
    readme = (ROOT / "README.md").read_text()
    links = re.findall(r"\]\((?!https?:)([^)#]+)", readme)
    assert [link for link in links if not (ROOT / link).exists()] == []
