"""The server with a CSM checkpoint: clients get the audio of transformers."""

from __future__ import annotations

import base64
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
import torch

from plugins.csm.tests.checkpoints import (
    clip,
    context_ids,
    reference_frames,
    reference_sound,
    silence_heads,
    text_ids,
)
from plugins.csm.tests.conftest import PLUGINS, SECONDS_PER_FRAME, Checkpoint
from tests.conftest import RunningServer, running_server
from vox_serve.config import EngineConfig

HEADER = 44
TEXT = "how are you today?"


def serving(directory: Path) -> EngineConfig:
    return EngineConfig(
        str(directory), device="cpu", dtype="float32", max_batch_size=4, plugins=PLUGINS
    )


@pytest.fixture(scope="module")
def server(checkpoint: Checkpoint) -> Iterator[RunningServer]:
    with running_server(serving(checkpoint.directory)) as running:
        yield running


def generate(server: RunningServer, frames: int = 20, **fields: Any) -> httpx.Response:
    body = {"text": TEXT, "temperature": 0, "max_seconds": frames * SECONDS_PER_FRAME}
    body |= {"normalize": "off"} | fields
    response = server.http.post("/generate", json=body)
    assert response.status_code == 200, response.text
    return response


def heard(response: httpx.Response) -> np.ndarray:
    samples, rate = soundfile.read(io.BytesIO(response.content), dtype="int16")
    assert rate == 24000
    return samples


def assert_sounds_like(samples: np.ndarray, reference: torch.Tensor) -> None:
    """The difference is at least 60 dB below the reference in float.

    The reference's peak is near 0.4 and its standard deviation near 0.12, so rounding to 16 bits
    alone (a noise of 1 / 32767 / sqrt(12)) gives about 80 dB.
    """
    expected = reference.double().numpy()
    assert 0.2 < np.abs(expected).max() < 0.9
    noise = samples / 32767.0 - expected
    assert 10 * np.log10((expected**2).sum() / (noise**2).sum()) > 60


def test_speech_equals_the_reference(server: RunningServer, checkpoint: Checkpoint) -> None:
    frames = reference_frames(checkpoint.reference, text_ids(TEXT, 1), 41)
    response = generate(server, 41, speaker=1)
    assert response.headers["X-Finish-Reason"] == "length"
    assert_sounds_like(heard(response), reference_sound(checkpoint.reference, frames))


def test_speech_with_context_equals_the_reference(
    server: RunningServer, checkpoint: Checkpoint
) -> None:
    wav = io.BytesIO()
    soundfile.write(wav, clip(5).numpy(), 24000, format="WAV", subtype="PCM_16")
    audio = base64.b64encode(wav.getvalue()).decode()
    context = [{"speaker": 1, "text": "hi", "audio": audio}]
    sound = torch.from_numpy(soundfile.read(io.BytesIO(wav.getvalue()), dtype="float32")[0])
    ids = [*context_ids("hi", 1, 5), *text_ids(TEXT)]
    frames = reference_frames(checkpoint.reference, ids, 20, [sound])
    response = generate(server, context=context)
    assert_sounds_like(heard(response), reference_sound(checkpoint.reference, frames))
    assert response.content != generate(server).content  # the context has an effect


@pytest.mark.parametrize("frames", [1, 9, 10, 11, 20, 41])
def test_streamed_speech_equals_the_whole(server: RunningServer, frames: int) -> None:
    whole = generate(server, frames)
    streamed = generate(server, frames, streaming=True)
    assert len(whole.content) == HEADER + 2 * 1920 * frames
    assert streamed.content[HEADER:] == whole.content[HEADER:]
    assert len(heard(streamed)) == 1920 * frames


def test_the_same_seed_sounds_the_same(server: RunningServer) -> None:
    sampled = {"temperature": 0.9, "frames": 10}
    first = generate(server, **sampled, seed=3).content
    assert generate(server, **sampled, seed=3).content == first
    assert generate(server, **sampled, seed=4).content != first


def test_an_utterance_without_frames_is_an_empty_file(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """The model ends at frame 0; the file is valid and has no samples."""
    shutil.copytree(checkpoint.directory, tmp_path, dirs_exist_ok=True)
    silence_heads(tmp_path)
    with running_server(serving(tmp_path)) as server:
        whole = generate(server)
        assert whole.headers["X-Finish-Reason"] == "inaudible"
        assert len(whole.content) == HEADER
        assert len(heard(whole)) == 0
        streamed = generate(server, streaming=True)
        assert len(streamed.content) == HEADER
        assert len(heard(streamed)) == 0


def test_a_conversation_continues_until_it_is_forgotten(server: RunningServer) -> None:
    alone = generate(server, 6).content
    for _ in range(2):  # forgotten in between
        assert generate(server, 6, conversation="c").content == alone
        restored = server.metric(positions(server, "restored"))
        second = generate(server, 6, speaker=1, conversation="c").content
        assert second != generate(server, 6, speaker=1).content
        assert server.metric(positions(server, "restored")) - restored > 6
        assert server.http.delete("/conversations/c").status_code == 204
        assert server.http.delete("/conversations/c").status_code == 404


def positions(server: RunningServer, source: str) -> str:
    labels = f'model="{server.client.model}",replica="0",source="{source}"'
    return f"vox_serve_prompt_positions_total{{{labels}}}"
