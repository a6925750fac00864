"""docs/writing-a-plugin.md: the real model agrees with transformers and passes the suite."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.conftest import running_server
from vox_serve import LoadOptions, Model
from vox_serve.config import EngineConfig
from vox_serve.new_plugin import rendered
from vox_serve.testing import ModelConformance

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs/writing-a-plugin.md").read_text()
VOCABULARY, END = 513, 256
PLUGIN = """
from vox_serve import ModelSpec, hookimpl

def load(options):
    from vox_serve_words.model import Words
    return Words(options)

@hookimpl
def vox_serve_models():
    matches = lambda config: config.get("architectures") == ["LlamaForCausalLM"]
    return [ModelSpec("words", "", (), matches, lambda config: [], load)]
"""


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both models of the guide, as packages in a folder."""
    folder = tmp_path_factory.mktemp("guide")
    for path, text in rendered("hum").items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    (folder / "vox_serve_words").mkdir()
    (folder / "vox_serve_words/__init__.py").write_text("")
    (folder / "vox_serve_words/model.py").write_text(listing())
    (folder / "vox_serve_words/plugin.py").write_text(PLUGIN)
    return folder


@pytest.fixture(scope="module")
def reference(packages: Path) -> LlamaForCausalLM:
    """A small Llama with random weights, saved by transformers."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(packages / "checkpoint")
    return model


@pytest.fixture
def words(
    packages: Path, reference: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> type[Any]:
    monkeypatch.syspath_prepend(str(packages))
    found: type[Any] = importlib.import_module("vox_serve_words.model").Words
    return found


def listing() -> str:
    found = re.search(r"```python\n(# vox_serve_words/model.py\n.*?)```", GUIDE, re.DOTALL)
    assert found
    return found[1]


def test_a_model_that_hums_takes_fifteen_lines() -> None:
    found = re.search(r"^class Hum\(Model\):\n.*?(?=^```)", GUIDE, re.DOTALL | re.MULTILINE)
    assert found
    assert sum(bool(line) for line in found[0].splitlines()) == 15


def test_a_real_model_takes_about_eighty_lines() -> None:
    assert sum(bool(line) for line in listing().splitlines()) <= 80


class TestWords(ModelConformance):
    @pytest.fixture(autouse=True)
    def prepare(self, words: type[Any], packages: Path) -> None:
        self.words, self.checkpoint = words, packages / "checkpoint"

    def load(self, device: str) -> Model:
        model: Model = self.words(LoadOptions(self.checkpoint, device, "float32"))
        return model


def test_its_audio_over_http_is_that_of_transformers_codes(
    words: type[Any], packages: Path, reference: LlamaForCausalLM
) -> None:
    text, frames = "Hello there.", 12
    tokens = [*text.encode(), END]
    for _ in range(frames):
        with torch.inference_mode():
            logits = reference(torch.tensor([tokens])).logits[0, -1, END:]
        tokens.append(END + int(logits.argmax()))
    codes = [token - END - 1 for token in tokens[len(text) + 1 :]]
    assert min(codes) >= 0, "with this seed it ends at once; choose another"
    codec = words(LoadOptions(packages / "checkpoint", "cpu", "float32")).codec
    codec.allocate(1)
    pieces = [
        codec.step(torch.tensor([[[code]]]), torch.tensor([0]), torch.tensor([number == 0]))[0][0]
        for number, code in enumerate(codes)
    ]
    expected = (torch.cat(pieces) * 32767).round().to(torch.int16)
    config = EngineConfig(
        str(packages / "checkpoint"), plugins=("vox_serve_words.plugin",), dtype="float32"
    )
    body = {"text": text, "format": "pcm", "temperature": 0, "max_seconds": frames * 0.08}
    with running_server(config) as server:
        answer = server.http.post("/generate", json=body)
    assert answer.status_code == 200, answer.text
    heard = torch.frombuffer(bytearray(answer.content), dtype=torch.int16)
    assert heard.shape == expected.shape
    assert int((heard.int() - expected.int()).abs().max()) <= 1


def test_the_listings_have_types(packages: Path) -> None:
    """`mypy --strict` accepts them."""
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(ROOT / ".mypy_cache")]
    paths = ["vox_serve_hum", "vox_serve_words/model.py", "tests/test_hum.py"]
    done = subprocess.run(
        [*command, *paths], cwd=packages, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
