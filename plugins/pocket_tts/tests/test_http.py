"""The server with a Pocket TTS checkpoint: clients get the audio of the reference."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import soundfile
import torch

from plugins.pocket_tts.tests.checkpoints import clip
from plugins.pocket_tts.tests.conftest import Checkpoint
from plugins.pocket_tts.tests.test_parity import expected, voice_state
from tests.conftest import running_server
from vox_serve.config import EngineConfig

FRAMES = 10


def heard(response: Any) -> torch.Tensor:
    assert response.status_code == 200, response.text
    samples, rate = soundfile.read(io.BytesIO(response.content), dtype="float32")
    assert rate == 24000
    return torch.from_numpy(samples)


def test_voices_and_parameters_work_over_http(checkpoint: Checkpoint) -> None:
    reference, directory = checkpoint.reference, checkpoint.directory
    config = EngineConfig(
        str(directory), device="cpu", dtype="float32", plugins=("vox_serve_pocket_tts.plugin",)
    )
    sample = clip(1.5, seed=9)
    file = io.BytesIO()
    soundfile.write(file, sample.numpy(), 24000, format="WAV", subtype="FLOAT")
    body = {"text": "Hello there.", "seed": 4, "max_seconds": FRAMES / 12.5}
    with running_server(config) as server:
        (model,) = server.http.get("/models").json()["models"]
        assert model["sampling"] == {"seed": None, "noise_temperature": 0.3, "flow_steps": 1}
        assert model["parameters"]["flow_steps"]["maximum"] == 4
        assert (model["takes_context"], model["takes_voices"]) == (False, True)
        document = server.http.get("/openapi.json").json()
        field = document["components"]["schemas"]["GenerateRequest"]["properties"]["parameters"]
        assert "flow_steps" in field["anyOf"][0]["properties"]
        plain = heard(server.http.post("/generate", json={**body, "voice": "bert"}))
        streamed = server.http.post("/generate", json={**body, "voice": "bert", "streaming": True})
        refused = server.http.post("/generate", json={**body, "temperature": 0.5})
        beyond = server.http.post("/generate", json={**body, "parameters": {"flow_steps": 9}})
        form = {"name": (None, "carl"), "text": (None, "said"), "audio": ("c.wav", file.getvalue())}
        added = server.http.post("/v1/audio/voices", files=form)
        assert added.status_code == 201, added.text
        cloned = heard(server.http.post("/generate", json={**body, "voice": "carl"}))
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "temperature")
    assert "flow_steps must be from 1 to 4" in beyond.json()["error"]["message"]
    states = (voice_state(directory, "bert"), reference.get_state_for_audio_prompt(sample[None]))
    for found, state in zip((plain, cloned), states, strict=True):
        wanted = expected(reference, state, "Hello there.", 4)[1][: FRAMES * 1920].clamp(-1, 1)
        torch.testing.assert_close(found, wanted, atol=1e-3, rtol=0)
    pcm = np.frombuffer(streamed.content[44:], dtype="<i2").astype(np.float32) / 32767
    torch.testing.assert_close(torch.from_numpy(pcm), plain, atol=1e-4, rtol=0)
