"""Over HTTP: OpenAI's instructions, a language by name, and a voice from a clip."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import soundfile

from plugins.qwen3_tts.tests.checkpoints import clip
from tests.conftest import running_server
from tests.server.websocket.test_session import spoken_whole
from vox_serve.config import EngineConfig

PLUGINS = ("vox_serve_qwen3_tts.plugin",)
INPUT = {"model": "tts-1", "input": "hello there", "response_format": "pcm", "seed": 3}
INPUT["max_seconds"] = 0.8


def config(directory: Path) -> EngineConfig:
    return EngineConfig(str(directory), "cpu", dtype="float32", max_batch_size=2, plugins=PLUGINS)


def test_language_and_instructions_change_the_sound(checkpoints: dict[str, Path]) -> None:
    with running_server(config(checkpoints["custom_voice"])) as server:

        def said(**fields: object) -> bytes:
            answer = server.http.post("/v1/audio/speech", json=INPUT | {"voice": "vivian"} | fields)
            assert answer.status_code == 200, answer.text
            return answer.content

        heard = [said(), said(language="German"), said(instructions="Whisper."), said()]
        assert heard[0] == heard[3]
        assert len(set(heard)) == 3
        assert said(language="de-AT") == heard[1]
        model = server.http.get("/models").json()["models"][0]
        assert len(model["languages"]) == 10
        assert model["parameters"]["instructions"]["maxLength"] == 1000
        refused = server.http.post("/generate", json={"text": "hi", "language": "fr"})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "language")


def test_a_voice_is_cloned_from_a_clip_and_streamed_equals_whole(
    checkpoints: dict[str, Path],
) -> None:
    sound = io.BytesIO()
    soundfile.write(sound, clip(9), 24000, format="WAV", subtype="FLOAT")
    with running_server(config(checkpoints["base"])) as server:
        answer = server.http.post(
            "/v1/audio/voices",
            data={"name": "anna", "text": "the assistant says hello."},
            files={"audio": ("anna.wav", sound.getvalue())},
        )
        assert answer.status_code == 201, answer.text
        asked = {"text": "hello there", "voice": "anna", "format": "pcm", "seed": 5}
        asked["max_seconds"] = 1.2
        whole = server.http.post("/generate", json=asked)
        streamed = server.http.post("/generate", json=asked | {"streaming": True})
        assert whole.status_code == 200, whole.text
        assert whole.content == streamed.content
        for voice in ("anna", "any"):  # with a clip, a prompt needs several words
            text = "hello there, the assistant says a few words."
            bits = [text[start : start + 3] for start in range(0, len(text), 3)]
            whole = server.http.post("/generate", json=asked | {"text": text, "voice": voice})
            speaker = spoken_whole(server, bits, voice=voice, seed=5, max_seconds=1.2)
            assert speaker.events[0]["live"] is True
            assert speaker.audio == whole.content
        assert np.abs(np.frombuffer(whole.content, "<i2")).max() > 100
        other = server.http.post("/generate", json=asked | {"voice": "any"})
        assert other.content != whole.content
