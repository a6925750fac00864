"""The server with a Dia checkpoint: clients get the audio of transformers."""

from __future__ import annotations

import io
from typing import Any

import soundfile
import torch

from plugins.dia.tests.checkpoints import GUIDANCE, RATE, TOP_K, Reference
from plugins.dia.tests.test_parity import TEXTS, clip
from tests.conftest import running_server
from vox_serve.config import EngineConfig


def heard(response: Any) -> torch.Tensor:
    assert response.status_code == 200, response.text
    samples, rate = soundfile.read(io.BytesIO(response.content), dtype="float32")
    assert rate == RATE
    return torch.from_numpy(samples)


def test_dialogues_cloned_voices_and_parameters_work_over_http(reference: Reference) -> None:
    config = EngineConfig(
        str(reference.directory),
        device="cpu",
        dtype="float32",
        max_batch_size=2,
        plugins=("vox_serve_dia.plugin",),
    )
    sample, said = clip(), "[S1] Said before."
    file = io.BytesIO()
    soundfile.write(file, sample.numpy(), RATE, format="WAV", subtype="FLOAT")
    body = {"text": TEXTS[1], "temperature": 0, "top_k": TOP_K, "max_seconds": 2.0}
    with running_server(config) as server:
        (model,) = server.http.get("/models").json()["models"]
        assert model["sampling"]["guidance_scale"] == GUIDANCE
        assert model["parameters"]["guidance_scale"]["maximum"] == 10
        assert (model["takes_context"], model["takes_voices"]) == (False, True)
        voices = [voice["name"] for voice in server.http.get("/voices").json()["voices"]]
        assert voices == ["S1", "S2"]
        plain = heard(server.http.post("/generate", json=body))
        second = {**body, "text": TEXTS[2].removeprefix("[S2] "), "voice": "S2"}
        tagged = heard(server.http.post("/generate", json=second))
        beyond = server.http.post("/generate", json={**body, "parameters": {"guidance_scale": 99}})
        form = {"name": (None, "ann"), "text": (None, said), "audio": ("c.wav", file.getvalue())}
        added = server.http.post("/v1/audio/voices", files=form)
        assert added.status_code == 201, added.text
        cloned = heard(server.http.post("/generate", json={**body, "voice": "ann"}))
    assert "guidance_scale must be from 1 to 10" in beyond.json()["error"]["message"]
    expected = (
        (plain, reference.columns(TEXTS[1])),
        (tagged, reference.columns(TEXTS[2])),
        (cloned, reference.columns(f"{said} {TEXTS[1]}", clip=sample)),
    )
    for found, (columns, frames) in expected:
        wanted = reference.sound(columns, frames)
        torch.testing.assert_close(found, wanted, atol=1e-3, rtol=0)
