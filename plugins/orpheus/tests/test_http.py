"""The server with an Orpheus checkpoint: clients get the audio of the references."""

from __future__ import annotations

import io

import numpy as np
import soundfile

from plugins.orpheus.tests.checkpoints import FRAME, reference_sound, reference_tokens, text_ids
from plugins.orpheus.tests.conftest import PLUGINS, RATE, Checkpoint
from tests.conftest import running_server
from vox_serve.config import EngineConfig


def test_a_voice_over_http_equals_the_reference(checkpoint: Checkpoint) -> None:
    config = EngineConfig(str(checkpoint.directory), device="cpu", dtype="float32", plugins=PLUGINS)
    with running_server(config) as server:
        body = {"text": "hello there", "voice": "zac", "temperature": 0, "repetition_penalty": 1}
        body["normalize"] = "off"
        response = server.http.post("/generate", json=body | {"max_seconds": 70 / RATE})
        assert response.status_code == 200, response.text
        samples, rate = soundfile.read(io.BytesIO(response.content), dtype="float32")
        refused = server.http.post("/generate", json=body | {"voice": "bob"})
        assert refused.status_code == 404
        assert "GET /voices lists them" in refused.text
    tokens = reference_tokens(checkpoint.model, text_ids("hello there", "zac"), 70)
    reference = reference_sound(checkpoint.codec, tokens).numpy()
    assert rate == 24000
    assert len(samples) == len(reference) == 7 * FRAME
    assert np.abs(samples - reference).max() < 1e-3
