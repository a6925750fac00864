"""A registered voice with a CSM checkpoint: it sounds as its sample does in a request's context."""

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
    """8.5 frames of sound, so that padding is heard too."""
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
    """Prompt positions since the start: those that were run, those that were restored."""
    series = 'vox_serve_prompt_positions_total{{model="{}",replica="0",source="{}"}}'
    return np.array(
        [server.metric(series.format(server.client.model, s)) for s in ("prefilled", "restored")]
    )


def heard_positions(server: RunningServer, **fields: object) -> tuple[float, float]:
    """What one request's prompt takes: run, restored."""
    before = positions(server)
    speak(server, **fields)
    until(lambda: bool((positions(server) != before).any()))
    prefilled, restored = positions(server) - before
    return prefilled, restored


@pytest.mark.parametrize("rate", [24000, 16000])
def test_a_voice_sounds_as_its_sample_in_context(
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
        assert speak(server, speaker=1) != expected  # the sample is heard
        assert server.http.post(VOICES, files=form).status_code == 201
        assert speak(server, voice="anna") == expected
        assert speak(server, speaker=1) != expected  # and only for requests that ask for it
    with running_server(serving(checkpoint), config) as server:
        assert speak(server, voice="anna") == expected


def test_a_sample_that_does_not_fit_names_the_field_of_the_form(checkpoint: Checkpoint) -> None:
    form = {"name": (None, "long"), "text": (None, SAID), "audio": ("a.wav", sample(repeated=35))}
    with running_server(serving(checkpoint)) as server:
        refused = server.http.post(VOICES, files=form)
    assert refused.status_code == 422
    error = refused.json()["error"]
    assert error["param"] == "audio"
    assert "positions of the 256" in error["message"]


def test_the_second_request_restores_the_voice(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The voice's positions are run once; after that a request costs its own text."""
    with running_server(serving(checkpoint)) as server:
        form = {"name": (None, "anna"), "text": (None, SAID), "audio": ("a.wav", sample())}
        assert server.http.post(VOICES, files=form).status_code == 201
        # Begin, `[0]`, the text and end; then 9 frames and their end.
        voice = 5 + len(SAID) + 9 + 1
        target = 5 + len(TEXT)
        assert heard_positions(server, voice="anna") == (voice + target, 0)
        assert heard_positions(server, voice="anna") == (target, voice)
        assert heard_positions(server, voice="anna", text="another.") == (5 + 8, voice)
