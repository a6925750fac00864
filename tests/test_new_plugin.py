"""vox-serve new-plugin, used as by a new author, up to a served request."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import running_server
from vox_serve.cli import main
from vox_serve.config import EngineConfig
from vox_serve.errors import ConfigError
from vox_serve.new_plugin import new_plugin, rendered

GUIDE = Path(__file__).parents[1] / "docs/writing-a-plugin.md"


def test_the_templates_are_the_listings_of_the_guide():
    fences = re.findall(r"^```(?:toml|python)\n(# (\S+)\n.*?)^```", GUIDE.read_text(), re.S | re.M)
    listings = {path: text for text, path in fences}
    del listings["vox_serve_words/model.py"]  # see test_guide.py
    assert len(listings) == 5
    written = rendered("hum")
    assert {path: written[path] for path in listings} == listings


def test_it_passes_its_own_tests_and_is_served(tmp_path, monkeypatch, capsys):
    assert main(["new-plugin", "ding_dong", "--directory", str(tmp_path)]) == 0
    target = tmp_path / "vox-serve-ding_dong"
    assert str(target) in capsys.readouterr().out
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(target), *sys.path])}
    suite = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    subprocess.run(suite, cwd=target, check=True, timeout=100, env=environment)
    monkeypatch.syspath_prepend(str(target))
    config = EngineConfig(
        str(target / "ding_dong-checkpoint"), plugins=("vox_serve_ding_dong.plugin",)
    )
    with running_server(config) as server:
        answer = server.http.post("/generate", json={"text": "ding", "format": "pcm"})
        assert answer.status_code == 200
        assert len(answer.content) == 4 * 1920 * 2


@pytest.mark.parametrize("name", ["Ding", "../ding", "ding-dong", "", "1ding", "d" * 40])
def test_names_with_other_characters_are_refused(name, tmp_path):
    with pytest.raises(ConfigError, match="lower-case letters"):
        new_plugin(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path):
    new_plugin("ding", tmp_path)
    with pytest.raises(ConfigError, match="already exists"):
        new_plugin("ding", tmp_path)
