"""A registered voice of CSM sounds like a request with its sample as context."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
import soundfile

from plugins.csm.tests.checkpoints import clip
from plugins.csm.tests.conftest import PLUGINS, SECONDS_PER_FRAME, Checkpoint
from tests.conftest import RunningServer, running_server, until
from vox_serve.config import EngineConfig, ServerConfig

VOICES = "/v1/audio/voices"
TEXT = "how are you today?"
SAID = "good morning, you."


def serving(checkpoint: Checkpoint) -> EngineConfig:
    return EngineConfig(
        str(checkpoint.directory), device="cpu", dtype="float32", max_batch_size=4, plugins=PLUGINS
    )


def sample(rate: int = 24000, repeated: int = 1) -> bytes:
    """8.5 frames of sound, so that the padding is tested, too."""
    file = io.BytesIO()
    audio = np.tile(clip(9).numpy()[: round(8.5 * 1920)], repeated)
    soundfile.write(file, audio, rate, format="WAV", subtype="PCM_16")
    return file.getvalue()


def speak(server: RunningServer, **fields: object) -> bytes:
    body = {"text": TEXT, "temperature": 0, "max_seconds": 15 * SECONDS_PER_FRAME} | fields
    response = server.http.post("/generate", json=body)
    assert response.status_code == 200, response.text
    return response.content


def positions(server: RunningServer) -> np.ndarray:
    """Prompt positions since the start: computed and restored ones."""
    series = 'vox_serve_prompt_positions_total{{model="{}",replica="0",source="{}"}}'
    return np.array(
        [server.metric(series.format(server.client.model, s)) for s in ("prefilled", "restored")]
    )


def positions_of_request(server: RunningServer, **fields: object) -> tuple[float, float]:
    """The computed and restored positions of one request's prompt."""
    before = positions(server)
    speak(server, **fields)
    until(lambda: bool((positions(server) != before).any()))
    prefilled, restored = positions(server) - before
    return prefilled, restored


@pytest.mark.parametrize("rate", [24000, 16000])
def test_a_voice_sounds_like_its_sample_in_context(
    checkpoint: Checkpoint, tmp_path: Path, rate: int
) -> None:
    config = ServerConfig(port=0, voices_dir=str(tmp_path))
    form = {
        "name": (None, "anna"),
        "speaker": (None, "1"),
        "text": (None, SAID),
        "audio": ("anna.wav", sample(rate)),
    }
    audio = base64.b64encode(sample(rate)).decode()
    context = [{"speaker": 1, "text": SAID, "audio": audio}]
    with running_server(serving(checkpoint), config) as server:
        expected = speak(server, speaker=1, context=context)
        assert speak(server, speaker=1) != expected  # the sample has an effect
        assert server.http.post(VOICES, files=form).status_code == 201
        assert speak(server, voice="anna") == expected
        assert speak(server, speaker=1) != expected  # but only on requests with that voice
    with running_server(serving(checkpoint), config) as server:
        assert speak(server, voice="anna") == expected


def test_a_sample_that_does_not_fit_names_the_form_field(checkpoint: Checkpoint) -> None:
    form = {"name": (None, "long"), "text": (None, SAID), "audio": ("a.wav", sample(repeated=35))}
    with running_server(serving(checkpoint)) as server:
        refused = server.http.post(VOICES, files=form)
    assert refused.status_code == 422
    error = refused.json()["error"]
    assert error["param"] == "audio"
    assert "positions of the 256" in error["message"]


def test_the_second_request_restores_the_voice(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The positions of the voice are computed once; a later request computes only its text."""
    with running_server(serving(checkpoint)) as server:
        form = {"name": (None, "anna"), "text": (None, SAID), "audio": ("a.wav", sample())}
        assert server.http.post(VOICES, files=form).status_code == 201
        # Begin, `[0]`, the text and the end; then 9 frames and their end.
        voice = 5 + len(SAID) + 9 + 1
        target = 5 + len(TEXT)
        assert positions_of_request(server, voice="anna") == (voice + target, 0)
        assert positions_of_request(server, voice="anna") == (target, voice)
        assert positions_of_request(server, voice="anna", text="another.") == (5 + 8, voice)
