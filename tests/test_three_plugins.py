"""CSM, Pocket TTS and Qwen3-TTS in one server: each sounds as it does alone."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from plugins.csm.tests import checkpoints as csm
from plugins.pocket_tts.tests import checkpoints as pocket
from plugins.qwen3_tts.tests import checkpoints as qwen
from tests.conftest import RunningServer, running_server
from vox_serve.config import EngineConfig

PLUGINS = ("vox_serve_csm.plugin", "vox_serve_pocket_tts.plugin", "vox_serve_qwen3_tts.plugin")
MODELS = ("csm", "pocket", "qwen")
TEXTS = ("hello there", "how are you today?", "a third")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("three")
    csm.write_checkpoint(folder / "csm")
    pocket.write_checkpoint(folder / "pocket")
    qwen.write_checkpoint(folder / "qwen", "custom_voice")
    first, *others = (
        EngineConfig(
            str(folder / name), device="cpu", dtype="float32", max_batch_size=3, plugins=PLUGINS
        )
        for name in MODELS
    )
    with running_server(first, others=others) as running:
        yield running


def ask(server: RunningServer, model: str, text: str, **fields: Any) -> np.ndarray:
    """The samples of the answer, as int32."""
    body = {"text": text, "model": model, "seed": 7, "max_seconds": 1.6, "format": "pcm"}
    response = server.http.post("/generate", json=body | fields)
    assert response.status_code == 200, response.text
    return np.frombuffer(response.content, "<i2").astype(np.int32)


def test_interleaved_requests_sound_as_each_does_alone(server: RunningServer) -> None:
    asked = [(model, text) for text in TEXTS for model in MODELS]
    alone = [ask(server, *request) for request in asked]
    with ThreadPoolExecutor(len(asked)) as pool:
        beside = list(pool.map(lambda request: ask(server, *request, streaming=True), asked))
    for request, expected, heard in zip(asked, alone, beside, strict=True):
        assert heard.shape == expected.shape, request
        assert np.abs(expected).max() > 100, request
        assert np.abs(heard - expected).max() <= 4, request  # of 32767
    for model in MODELS:
        assert server.metric(f'vox_serve_slots{{model="{model}",replica="0"}}') == 3


def test_models_list_their_languages_and_parameters(server: RunningServer) -> None:
    models = {each["name"]: each for each in server.http.get("/models").json()["models"]}
    assert tuple(models) == MODELS
    assert {"zh", "en", "ja"} <= set(models["qwen"]["languages"])
    assert models["csm"]["languages"] == ["en"]
    assert "flow_steps" in models["pocket"]["parameters"]
    assert "language" in models["qwen"]["parameters"]
    for model, unknown in (("csm", "flow_steps"), ("pocket", "instructions")):
        body = {"text": "hello", "model": model, "parameters": {unknown: 1}}
        refused = server.http.post("/generate", json=body)
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == unknown
