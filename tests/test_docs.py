"""The documents are true: their examples run, and their lists are complete."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import msgspec
import pytest
import soundfile
from attrs import fields

import vox_serve.errors
import vox_serve.hookspecs
from deploy.site import reference
from tests.audio.test_formats import decode
from tests.conftest import running_server
from vox_serve.audio.formats import FORMATS
from vox_serve.config import EngineConfig
from vox_serve.metrics import Metrics
from vox_serve.server.routes.generate import GenerateRequest
from vox_serve.server.routes.openai import SpeechBody
from vox_serve.server.speech import CommonFields
from vox_serve.server.voices.aliases import VOICES

ROOT = Path(__file__).parents[1]


FENCE = re.compile(r"^```(\w*)(?: title=\"([^\"\n]*)\")?\n(.*?)^```", re.DOTALL | re.MULTILINE)
PAGES = ["README.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))]
COMMANDS = ("bash", "python", "sh")
ELSEWHERE = {
    "docs/writing-a-plugin.md": "test_the_plugin_tutorial_makes_a_plugin_that_hums, test_guide.py",
    "docs/how-to/watermark.md": "tests/server/test_postprocess.py",
}
NOT_RUN = {
    "README.md": {
        "make serve      # installs into .venv": "continuous integration installs and tests",
        ".venv/bin/huggingface-cli login": "an account, gated weights",
        ".venv/bin/python -m vox_serve.launch": "gated weights",
    },
    "docs/benchmarking.md": {
        "vox-serve bench http://localhost:8000": "minutes; test_bench.py runs the command",
        "python -m benchmarks.gpu.estimate": "a minute",
        "make bench-gpu": "a GPU",
    },
    "docs/http-api.md": {'curl -H "Authorization': "a server with keys"},
    "docs/operations.md": {
        "vox-serve new-key": "a server with keys",
        "python3.11 -m venv /opt/vox-serve": "systemd",
        "GRAFANA_PASSWORD=": "Docker",
    },
    "docs/scaling.md": {
        "vox-serve plan costs.json": "minutes; its own tests run the command",
        "vox-serve plan benchmarks/results": "minutes",
        "vox-serve cluster up": "a cluster; its own tests deploy to one",
    },
    "docs/how-to/examples.md": {"pip install av": "a registry"},
    "docs/how-to/kubernetes.md": {"docker build": "a cluster"},
    "docs/how-to/kuberay.md": {"docker build": "a cluster"},
    "docs/how-to/livekit.md": {"import asyncio": "hundreds of packages"},
    "docs/how-to/openai-clients.md": {"export OPENAI_BASE_URL": "it only sets variables"},
    "docs/how-to/pipecat.md": {"from pipecat": "hundreds of packages"},
    "docs/tutorial/first-sound.md": {"make serve": "continuous integration installs and tests"},
}
"""Listings that no test runs: how they begin, and what they need."""


def listings(document: str, *languages: str) -> list[str]:
    found = FENCE.findall((ROOT / document).read_text())
    return [text for language, _, text in found if language in languages]


def is_not_run(document: str, text: str) -> bool:
    return any(text.startswith(start) for start in NOT_RUN.get(document, ()))


def to_run(document: str) -> list[list[str]]:
    """The commands of a page, in its order."""
    found = FENCE.findall((ROOT / document).read_text())
    shells = {"bash": ["bash", "-eo", "pipefail", "-c"], "python": [sys.executable, "-c"]}
    return [
        [*shells[language], text]
        for language, _, text in found
        if language in shells and not is_not_run(document, text)
    ]


@pytest.fixture(scope="module")
def demo_server():
    with running_server(EngineConfig(model="demo", max_batch_size=2)) as server:
        yield server


@pytest.mark.parametrize("document", [p for p in PAGES if p not in ELSEWHERE and to_run(p)])
def test_the_listings_run_unchanged(document, demo_server, tmp_path):
    """Only the address is replaced, because port 8000 may be in use, and the programs' folder."""
    address = demo_server.url.removeprefix("http://")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path}
    for command in to_run(document):
        if "ffmpeg" in command[-1] and shutil.which("ffmpeg") is None:
            pytest.skip("ffmpeg is not installed")
        command[-1] = command[-1].replace("localhost:8000", address).replace(".venv/bin/", "")
        subprocess.run(command, cwd=tmp_path, check=True, timeout=60, env=environment)
    made = list(tmp_path.iterdir())
    assert made
    for file in made:
        if file.suffix in (".wav", ".flac", ".mp3"):
            audio, rate = decode(file.read_bytes())
            assert rate == 24000
            assert len(audio) > rate / 2
        else:
            assert file.stat().st_size > 8000


def test_every_listing_is_run_or_marked():
    """Others are in NOT_RUN and have a title on their page, but in the README, whose titles GitHub
    would not show.
    """
    for page in PAGES:
        for language, title, text in FENCE.findall((ROOT / page).read_text()):
            if is_not_run(page, text):
                assert title or page == "README.md", f"{page} does not mark: {text}"
            elif page not in ELSEWHERE:
                assert language != "sh", f"{page}: nothing runs {text}"


def test_every_listing_of_not_run_exists():
    for page, starts in NOT_RUN.items():
        texts = [text for _, _, text in FENCE.findall((ROOT / page).read_text())]
        assert [s for s in starts if not any(text.startswith(s) for text in texts)] == []


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
    path = {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    run = ["bash", "-ec", commands]
    subprocess.run(run, cwd=tmp_path, check=True, timeout=100, env=os.environ | path)
    suite = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_hum.py"]
    subprocess.run(suite, cwd=tmp_path, check=True, timeout=100, env=os.environ | path)
    audio, rate = soundfile.read(tmp_path / "hum.wav")
    assert len(audio) / rate == pytest.approx(len("a plugin that hums") * 0.08)


def section(heading: str) -> str:
    """The text below a heading of docs/http-api.md."""
    _, _, text = (ROOT / "docs/http-api.md").read_text().partition(f"\n## {heading}\n")
    assert text, heading
    return text.partition("\n## ")[0]


@pytest.mark.parametrize(
    ("heading", "struct", "elsewhere"),
    [
        ("POST /generate", GenerateRequest, None),
        (
            "POST /v1/audio/speech",
            SpeechBody,
            CommonFields,
        ),  # listed there, but explained for /generate
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


def test_the_site_shows_every_flag_and_route():
    shown = "".join(map(reference.flags, reference.CONFIGS))
    flags = [
        f"`--{f.name.replace('_', '-')}`" for c in reference.CONFIGS.values() for f in fields(c)
    ]
    assert [flag for flag in flags if flag not in shown] == []
    routes = reference.routes()
    document = reference.openapi()
    operations = [f"{m.upper()} {path}" for path, ms in document["paths"].items() for m in ms]
    assert re.findall("^## ([A-Z]+ .*)$", routes, re.MULTILINE) == operations
    links = set(re.findall(r"\(#(\w+)\)", routes))
    objects = {name.lower() for name in re.findall(r"^### (\w+)$", routes, re.MULTILINE)}
    assert objects == {name.lower() for name in document["components"]["schemas"]}
    assert links <= objects
    assert "| `temperature` | number from 0 to 5 |" in routes


def test_every_public_name_is_in_the_reference():
    page = (ROOT / "docs/reference/python.md").read_text()
    assert "::: vox_serve.errors\n" in page
    names = set(vox_serve.__all__) - set(vars(vox_serve.errors)) - {"__version__", "hookimpl"}
    assert {name for name in names if f"::: vox_serve.{name}\n" not in page} == set()


def test_every_page_is_in_the_navigation():
    nav = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"]
    named = re.findall(r"'([\w/-]+\.md)'", str(nav))
    assert sorted(f"docs/{page}" for page in named) == [
        page for page in PAGES if page != "README.md"
    ]


def test_every_metric_is_documented():
    registry = Metrics("x").registry
    registry.watch_process("x", "server", os.getpid())
    made = set(re.findall(r"^# HELP (\S+)", registry.exposition().decode(), re.MULTILINE))
    documented = re.findall(r"^\| `(vox_serve_\w+)`", (ROOT / "docs/metrics.md").read_text(), re.M)
    assert sorted(documented) == sorted(made)


def test_every_hook_is_named_in_the_plugin_guide():
    hooks = [name for name in vars(vox_serve.hookspecs) if name.startswith("vox_serve_")]
    guide = (ROOT / "docs/writing-a-plugin.md").read_text()
    assert len(hooks) == 3
    assert all(hook in guide for hook in hooks)


def test_the_architecture_lists_the_files_that_exist():
    page = (ROOT / "docs/architecture.md").read_text()
    tree = page.partition("## Where things are")[2].partition("\n## ")[0]
    core = ROOT / "vox_serve"
    rooms = [p.parent.relative_to(core).name + "/" for p in core.glob("**/__init__.py")][1:]
    modules = [p.name for p in core.glob("*.py") if p.name != "__init__.py"]
    assert [name for name in (*rooms, *modules) if f" {name} " not in tree] == []


def test_the_links_of_the_readme_lead_to_files():
    readme = (ROOT / "README.md").read_text()
    links = re.findall(r"\]\((?!https?:)([^)#]+)", readme)
    assert [link for link in links if not (ROOT / link).exists()] == []
