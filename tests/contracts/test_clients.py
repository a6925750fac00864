"""How existing client programs handle our answers, rule by rule.

The rules were read in the programs' own sources: livekit-plugins-openai 1.8.9, pipecat-ai 1.14.0,
open-webui 0.12.4 and wyoming_openai (its repository, as of November 2026).  They are
reimplemented here with only the HTTP client, because the programs themselves bring hundreds of
packages.  LiveKit's and Pipecat's plugins have also been run against the `demo` voice, once for
each format.
"""

from __future__ import annotations

import base64
import io
import json
import struct
import wave
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from tests.audio.test_formats import decode
from tests.conftest import RunningServer

SECONDS = 1.6
TEXT = "20 frames"
OPENAI_VOICES = {
    *("alloy", "ash", "ballad", "coral", "echo", "fable", "onyx"),
    *("nova", "sage", "shimmer", "verse", "marin", "cedar"),
}


@pytest.fixture
def client(tone_server: RunningServer) -> Iterator[openai.OpenAI]:
    with client_of(tone_server) as client:
        yield client


def client_of(server: RunningServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


# LiveKit agents: livekit/plugins/openai/tts.py

LIVEKIT_DECODES = {
    "audio/mpeg",
    "audio/aac",
    "audio/flac",
    "audio/wav",
    "audio/opus",
    "audio/ogg",
    "audio/pcm",
}


def livekit(
    client: openai.OpenAI,
    response_format: str = "mp3",
    model: str = "gpt-4o-mini-tts",
    **fields: Any,
) -> tuple[str, bytes, int]:
    """Content type, audio and output tokens, as LiveKit understands the answer.

    It requests events unless the model is tts-1 or tts-1-hd; Content-Type alone decides how it
    reads the body.  It reads lines that begin with `data: `, and objects of two types.  It skips
    any other object, so a failure must also show in the connection.
    """
    request = {
        "input": TEXT,
        "model": model,
        "voice": "ash",
        "response_format": response_format,
        "speed": 1.0,
        "stream_format": "audio" if model in ("tts-1", "tts-1-hd") else "sse",
        **fields,
    }
    audio, tokens = b"", 0
    with client.audio.speech.with_streaming_response.create(**request) as response:
        assert response.request_id
        kind = response.headers["content-type"].split(";")[0].strip().lower()
        if kind != "text/event-stream":
            return kind, b"".join(response.iter_bytes()), tokens
        for line in response.iter_lines():
            if not line.startswith("data: "):
                continue
            event = json.loads(line[6:])
            if event.get("type") == "speech.audio.delta":
                audio += base64.b64decode(event.get("delta", "") or event.get("audio", ""))
            elif event.get("type") == "speech.audio.done":
                tokens = event["usage"]["output_tokens"]
                assert event["usage"]["input_tokens"] > 0
    return kind, audio, tokens


def test_livekit_decodes_mp3_out_of_events(client: openai.OpenAI) -> None:
    kind, audio, tokens = livekit(client)
    assert (kind, tokens) == ("text/event-stream", 20)
    samples, rate = decode(audio)
    assert len(samples) / rate == pytest.approx(SECONDS, abs=0.3)


def test_livekit_decodes_a_plain_body_by_its_content_type(client: openai.OpenAI) -> None:
    for name in ("mp3", "opus", "aac", "flac", "wav", "pcm"):
        kind, audio, _ = livekit(client, name, model="tts-1")
        assert kind in LIVEKIT_DECODES
        assert audio


def test_livekit_reads_pcm_as_24_khz(client: openai.OpenAI) -> None:
    _, audio, _ = livekit(client, "pcm")
    assert len(audio) / 2 / 24_000 == pytest.approx(SECONDS, abs=0.01)


def test_livekit_notices_a_failure_although_it_skips_error_events(
    start_server: Callable[..., RunningServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TONE_DELAY", "0.1")  # so that the first sound is sent before the failure
    with client_of(start_server()) as client, pytest.raises(Exception, match="peer closed"):
        livekit(client, "pcm", input="boom 41 frames")


def test_livekit_gets_a_status_and_an_id_with_an_error(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        livekit(client, voice="nobody")
    assert caught.value.status_code == 404
    assert caught.value.request_id


# Pipecat: pipecat/services/openai/tts.py


def pipecat(client: openai.OpenAI, voice: str, **settings: Any) -> list[bytes]:
    """Frames of raw audio at 24 kHz.  Pipecat itself refuses voices other than OpenAI's."""
    assert voice in OPENAI_VOICES
    request = {
        "input": TEXT,
        "model": "gpt-4o-mini-tts",
        "voice": voice,
        "response_format": "pcm",
        **settings,
    }
    chunk_size = 24_000 // 2 * 2  # half a second of 16-bit samples
    with client.audio.speech.with_streaming_response.create(**request) as response:
        assert response.status_code == 200
        return [chunk for chunk in response.iter_bytes(chunk_size) if chunk]


@pytest.mark.parametrize("voice", sorted(OPENAI_VOICES))
def test_pipecat_speaks_with_every_voice_that_it_allows(client: openai.OpenAI, voice: str) -> None:
    frames = pipecat(client, voice)
    samples = np.frombuffer(b"".join(frames), "<i2")
    assert len(samples) / 24_000 == pytest.approx(SECONDS, abs=0.01)
    assert np.abs(samples).max() > 8000, "not audible as little-endian samples"


def test_pipecats_settings_are_accepted(client: openai.OpenAI) -> None:
    frames = pipecat(client, "alloy", speed=2.0, instructions="Speak like a pirate.")
    assert len(b"".join(frames)) / 48_000 == pytest.approx(SECONDS / 2, abs=0.01)


# Open WebUI: open_webui/routers/audio/__init__.py


def test_open_webui_lists_models_and_voices_without_a_key(tone_server: RunningServer) -> None:
    base = f"{tone_server.url}/v1"
    models = httpx.get(f"{base}/audio/models").raise_for_status().json().get("models", [])
    assert [model["id"] for model in models] == ["tone"]
    data = httpx.get(f"{base}/models").raise_for_status().json()
    assert data.get("data", data.get("models", [])), "its fallback"
    voices = httpx.get(f"{base}/audio/voices").raise_for_status().json().get("voices", [])
    assert {v["id"]: v["name"] for v in voices} == {"hum_a": "hum_a", "hum_b": "hum_b"}


@pytest.mark.parametrize(("model", "voice"), [("tts-1", "alloy"), ("tone", "hum_b")])
def test_three_fields_are_enough_for_open_webui(
    tone_server: RunningServer, model: str, voice: str
) -> None:
    """The browser sends input and voice, and its server adds the model and reads the whole body."""
    response = httpx.post(
        f"{tone_server.url}/v1/audio/speech",
        json={"input": TEXT, "voice": voice, "model": model},
        headers={"Authorization": "Bearer anything", "X-OpenWebUI-User-Name": "Ann"},
    )
    response.raise_for_status()
    assert response.headers.get("Content-Type") == "audio/mpeg"
    samples, rate = decode(response.read())
    assert len(samples) / rate == pytest.approx(SECONDS, abs=0.3)


def test_open_webui_shows_the_error(tone_server: RunningServer) -> None:
    body = {"input": TEXT, "voice": "nobody", "model": "tts-1"}
    response = httpx.post(f"{tone_server.url}/v1/audio/speech", json=body)
    with pytest.raises(httpx.HTTPStatusError):
        response.raise_for_status()
    assert "nobody" in response.json()["error"]["message"]


# wyoming_openai (Home Assistant): src/wyoming_openai/wav.py, compatibility.py


def wyoming(client: openai.OpenAI, text: str) -> tuple[int, bytes]:
    """Rate and PCM of a streamed WAV file.

    Python's `wave` parses the header from the bytes received so far.  A data size of 0xFFFFFFFF
    means that everything after it is sound; any other size limits it.
    """
    request = {"input": text, "model": "tts-1", "voice": "alloy", "response_format": "wav"}
    pending, pcm, rate = b"", b"", 0
    with client.audio.speech.with_streaming_response.create(**request) as response:
        for chunk in response.iter_bytes():
            if rate:
                pcm += chunk
                continue
            pending += chunk
            file = io.BytesIO(pending)
            with wave.open(file) as reader:  # the first chunk must be enough
                assert (reader.getnchannels(), reader.getsampwidth()) == (1, 2)
                rate, start = reader.getframerate(), file.tell()
            (size,) = struct.unpack("<I", pending[start - 4 : start])
            assert size == 0xFFFFFFFF
            pcm += pending[start:]
    return rate, pcm


def test_wyoming_finds_the_header_in_the_first_chunk(client: openai.OpenAI) -> None:
    rate, pcm = wyoming(client, TEXT)
    assert (rate, len(pcm) / 2 / rate) == (8000, SECONDS)


def test_wyoming_may_send_three_requests_at_once(client: openai.OpenAI) -> None:
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda n: wyoming(client, f"{n} frames"), (10, 20, 30)))
    assert [len(pcm) for _, pcm in found] == [10 * 1280, 20 * 1280, 30 * 1280]


def test_wyoming_does_not_mistake_us_for_another_backend(tone_server: RunningServer) -> None:
    """It probes for LocalAI, Speaches and Kokoro, whose voices it lists in other ways."""
    base = f"{tone_server.url}/v1"
    assert httpx.get(f"{base}/readyz").status_code == 404
    assert httpx.get(f"{base}/test").status_code == 404
    assert httpx.get(f"{base}/../health").text != "OK"
