"""CSM and Orpheus in one server with interleaved requests: each sounds like its reference."""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import soundfile

from plugins.csm.tests import checkpoints as csm
from plugins.csm.tests.conftest import SECONDS_PER_FRAME
from plugins.orpheus.tests import checkpoints as orpheus
from plugins.orpheus.tests.conftest import RATE
from tests.conftest import RunningServer, running_server
from vox_serve.config import EngineConfig

PLUGINS = ("vox_serve_csm.plugin", "vox_serve_orpheus.plugin")
TEXTS = ("hello there", "how are you today?", "a third")
VOICES = {"csm": ("conversational_a", "conversational_b"), "orpheus": ("tara", "zac", "leo")}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The checkpoints' directories, and reference implementations with the same weights."""
    folder = tmp_path_factory.mktemp("two")
    made = {
        "csm": csm.write_checkpoint(folder / "csm"),
        "orpheus": orpheus.write_checkpoint(folder / "orpheus"),
    }
    return made | {"folder": folder}


@pytest.fixture(scope="module")
def server(models: dict[str, Any]) -> Iterator[RunningServer]:
    configs = [
        EngineConfig(str(models["folder"] / name), device="cpu", dtype="float32", max_batch_size=3)
        for name in VOICES
    ]
    with running_server(configs[0], others=configs[1:]) as running:
        yield running


def reference(models: dict[str, Any], model: str, voice: str, text: str) -> np.ndarray:
    if model == "csm":
        ids = csm.text_ids(text, VOICES["csm"].index(voice))
        frames = csm.reference_frames(models["csm"], ids, 20)
        return np.asarray(csm.reference_sound(models["csm"], frames))
    network, codec = models["orpheus"]
    tokens = orpheus.reference_tokens(network, orpheus.text_ids(text, voice), 70)
    return np.asarray(orpheus.reference_sound(codec, tokens))


def ask(server: RunningServer, model: str, voice: str, text: str) -> np.ndarray:
    """The samples of the answer, at temperature 0."""
    seconds = 20 * SECONDS_PER_FRAME if model == "csm" else 70 / RATE
    body = {
        "text": text,
        "voice": voice,
        "model": model,
        "max_seconds": seconds,
        "normalize": "off",
    }
    greedy = {"temperature": 0, "repetition_penalty": 1, "streaming": True}
    response = server.http.post("/generate", json=body | greedy)
    assert response.status_code == 200, response.text
    samples, rate = soundfile.read(io.BytesIO(response.content), dtype="float32")
    assert rate == 24000
    return samples


def test_interleaved_requests_sound_like_their_references(
    server: RunningServer, models: dict[str, Any]
) -> None:
    assert [m["name"] for m in server.http.get("/models").json()["models"]] == list(VOICES)
    asked = [
        (model, voices[number % len(voices)], text)
        for number, text in enumerate(TEXTS)
        for model, voices in VOICES.items()
    ]
    with ThreadPoolExecutor(len(asked)) as pool:
        heard = list(pool.map(lambda request: ask(server, *request), asked))
    for request, samples in zip(asked, heard, strict=True):
        expected = reference(models, *request)
        assert samples.shape == expected.shape, request
        assert expected.std() > 0.02
        noise = ((samples - expected) ** 2).mean()
        assert (expected**2).mean() > 1e6 * noise, request  # 60 dB
    sounds = [s[:10000] for s in heard]
    assert all(np.abs(a - b).max() > 0.01 for a, b in zip(sounds[::2], sounds[2::2], strict=False))
    for model in VOICES:
        ended = f'vox_serve_requests_total{{mode="stream",model="{model}",outcome="ok"}}'
        assert server.metric(ended) == len(TEXTS)
        assert server.metric(f'vox_serve_slots{{model="{model}",replica="0"}}') == 3


def test_a_voice_of_the_other_model_is_unknown(server: RunningServer) -> None:
    body = {"text": "hello", "voice": "tara", "model": "csm"}
    response = server.http.post("/generate", json=body)
    assert response.status_code == 404
    assert response.json()["error"]["param"] == "voice"
