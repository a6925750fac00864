"""Valid requests to POST /generate: fields, body encodings, formats, whole and streamed."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
import wave
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.conftest import RunningServer
from tests.server.conftest import post_raw

FRAME_BYTES = 2 * 640
FRAMES = (0, 1, 9, 10, 11, 20, 41)


def clip(seconds: float = 0.2, rate: int = 8000) -> str:
    """A base64 WAV file."""
    file = io.BytesIO()
    soundfile.write(file, np.full(round(seconds * rate), 0.1), rate, format="WAV")
    return base64.b64encode(file.getvalue()).decode()


FIELDS: dict[str, Any] = {
    "text": "all 7 fields",
    "speaker": 1,
    "context": [{"speaker": 0, "text": "before", "audio": clip()}],
    "temperature": 0.7,
    "top_k": 20,
    "top_p": 0.9,
    "min_p": 0.01,
    "repetition_penalty": 1.2,
    "seed": 5,
    "max_seconds": 3.5,
    "format": "wav",
    "model": "tone",
}


def as_form(fields: dict[str, Any]) -> dict[str, tuple[None, str]]:
    """The same fields as parts of a multipart form, with lists as JSON."""
    return {
        name: (None, value if isinstance(value, str) else json.dumps(value))
        for name, value in fields.items()
    }


def speak(server: RunningServer, **fields: Any) -> bytes:
    response = server.http.post("/generate", json=fields)
    assert response.status_code == 200, response.text
    return response.content


def test_whole_wav_has_true_sizes_and_headers(tone_server: RunningServer) -> None:
    response = tone_server.http.post("/generate", json={"text": "3 frames", "seed": 9})
    assert response.status_code == 200
    assert response.headers["content-type"] == "audio/wav"
    assert int(response.headers["content-length"]) == len(response.content)
    assert len(response.headers["x-request-id"]) == 32
    assert response.headers["x-finish-reason"] == "stop"
    assert response.headers["x-seed"] == "9"
    data = 3 * FRAME_BYTES
    assert len(response.content) == 44 + data
    assert response.content[:4] == b"RIFF"
    assert response.content[8:16] == b"WAVEfmt "
    assert int.from_bytes(response.content[4:8], "little") == 36 + data
    assert int.from_bytes(response.content[40:44], "little") == data


def test_a_length_finish_is_reported(tone_server: RunningServer) -> None:
    fields = {"text": "50 frames", "max_seconds": 0.4}
    response = tone_server.http.post("/generate", json=fields)
    assert response.headers["x-finish-reason"] == "length"
    assert len(response.content) == 44 + 5 * FRAME_BYTES


def test_pcm_is_the_wav_without_its_header(tone_server: RunningServer) -> None:
    wav = speak(tone_server, text="3 frames")
    response = tone_server.http.post("/generate", json={"text": "3 frames", "format": "pcm"})
    assert response.headers["content-type"] == "audio/pcm"
    assert response.headers["x-sample-rate"] == "8000"
    assert response.headers["x-channels"] == "1"
    assert response.content == wav[44:]
    assert speak(tone_server, text="3 frames", format="pcm", streaming=True) == wav[44:]


def test_a_stream_starts_with_a_header_of_unknown_size(tone_server: RunningServer) -> None:
    with post_raw(tone_server, text="20 frames", streaming=True) as connection:
        reader = connection.makefile("rb")
        assert reader.readline() == b"HTTP/1.1 200 OK\r\n"
        headers = {}
        while (line := reader.readline()) != b"\r\n":
            name, _, text = line.decode().partition(": ")
            headers[name.lower()] = text.strip()
        first = reader.read(int(reader.readline(), 16))
    assert headers["content-type"] == "audio/wav"
    assert headers["transfer-encoding"] == "chunked"
    assert headers["cache-control"] == "no-cache"
    assert headers["x-accel-buffering"] == "no"
    assert len(headers["x-request-id"]) == 32
    assert headers["x-sample-rate"] == "8000"
    assert first[4:8] == first[40:44] == b"\xff\xff\xff\xff"
    assert len(first) >= 44 + FRAME_BYTES, "the header came without sound"


@pytest.mark.parametrize("frames", FRAMES)
def test_streamed_equals_whole(tone_server: RunningServer, frames: int) -> None:
    whole = speak(tone_server, text=f"{frames} frames")
    streamed = speak(tone_server, text=f"{frames} frames", streaming=True)
    assert len(whole) == 44 + frames * FRAME_BYTES
    assert streamed[44:] == whole[44:]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("frames", FRAMES)
def test_wave_and_soundfile_read_all_of_it(
    tone_server: RunningServer, frames: int, streaming: bool
) -> None:
    content = speak(tone_server, text=f"{frames} frames", streaming=streaming)
    with wave.open(io.BytesIO(content)) as reader:
        assert (reader.getnchannels(), reader.getsampwidth()) == (1, 2)
        assert reader.getframerate() == 8000
        assert reader.readframes(10**6) == content[44:]
    samples, rate = soundfile.read(io.BytesIO(content), dtype="int16")
    assert rate == 8000
    assert samples.tobytes() == content[44:]


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
@pytest.mark.parametrize("streaming", [False, True])
def test_ffmpeg_reads_all_of_it(tone_server: RunningServer, streaming: bool) -> None:
    content = speak(tone_server, text="11 frames", streaming=streaming)
    command = ["ffmpeg", "-v", "error", "-i", "-", "-f", "s16le", "-"]
    done = subprocess.run(command, input=content, capture_output=True, check=True)
    assert done.stdout == content[44:]


@pytest.mark.skipif(shutil.which("sox") is None, reason="sox is not installed")
@pytest.mark.parametrize("streaming", [False, True])
def test_sox_reads_all_of_it(tone_server: RunningServer, streaming: bool) -> None:
    content = speak(tone_server, text="11 frames", streaming=streaming)
    command = ["sox", "-V1", "-t", "wav", "-", "-t", "raw", "-"]
    done = subprocess.run(command, input=content, capture_output=True, check=True)
    assert done.stdout == content[44:]


def test_an_end_at_frame_0_is_reported(tone_server: RunningServer) -> None:
    response = tone_server.http.post("/generate", json={"text": "0 frames"})
    assert response.headers["x-finish-reason"] == "inaudible"
    assert int.from_bytes(response.content[40:44], "little") == 0


def test_form_equals_json_with_all_fields(tone_server: RunningServer) -> None:
    from_json = tone_server.http.post("/generate", json=FIELDS)
    from_form = tone_server.http.post("/generate", files=as_form(FIELDS))
    assert from_json.status_code == 200, from_json.text
    assert from_form.status_code == 200, from_form.text
    assert from_form.headers["content-type"] == "audio/wav"
    assert from_form.content == from_json.content


def test_a_form_can_ask_for_a_stream_and_a_voice(tone_server: RunningServer) -> None:
    fields = {"text": "5 frames", "voice": "hum_b"}
    response = tone_server.http.post("/generate", files=as_form({**fields, "streaming": True}))
    assert response.headers["transfer-encoding"] == "chunked"
    assert response.content[44:] == speak(tone_server, **fields)[44:]


def test_the_text_of_a_form_stays_a_string(tone_server: RunningServer) -> None:
    """A text that looks like a number or other JSON is spoken as written."""
    for text in ("5", "true", "null", '{"a": 1}'):
        response = tone_server.http.post("/generate", files={"text": (None, text)})
        assert response.content == speak(tone_server, text=text)


SOUND: dict[str, Any] = {"text": "20 frames", "temperature": 1.0, "top_k": 0, "seed": 2}


@pytest.mark.parametrize(
    "change",
    [
        {"speaker": 1},
        {"voice": "hum_b"},
        {"context": [{"speaker": 1, "text": "a", "audio": clip()}]},
        {"temperature": 0.2},
        {"top_k": 2},
        {"top_p": 0.1},
        {"min_p": 0.9},
        {"repetition_penalty": 10.0},
        {"seed": 3},
        {"max_seconds": 1.0},
        {"text": "9 frames"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_each_field_changes_the_sound(tone_server: RunningServer, change: dict[str, Any]) -> None:
    plain = speak(tone_server, **SOUND)
    assert speak(tone_server, **SOUND) == plain
    if "context" in change:  # it does not change the tone, but takes positions
        full = {"context": [{"speaker": 1, "text": "a", "audio": clip(14.5)}]}
        response = tone_server.http.post("/generate", json=SOUND | full)
        assert response.status_code == 422, "there is room after 190 frames of context"
    else:
        assert speak(tone_server, **SOUND | change) != plain


def test_a_speaker_id_means_its_first_voice(tone_server: RunningServer) -> None:
    assert speak(tone_server, text="5") == speak(tone_server, text="5", speaker=0)
    assert speak(tone_server, text="5", speaker=1) == speak(tone_server, text="5", voice="hum_b")


def test_a_model_may_be_given_by_its_name(tone_server: RunningServer) -> None:
    assert speak(tone_server, text="5", model="tone") == speak(tone_server, text="5")


@pytest.mark.parametrize("format", ["WAV", "FLAC", "OGG", "MP3"])
def test_context_audio_may_have_any_format(tone_server: RunningServer, format: str) -> None:
    file = io.BytesIO()
    soundfile.write(file, np.zeros((4410, 2)), 44100, format=format)
    audio = base64.b64encode(file.getvalue()).decode()
    turn = {"speaker": 0, "text": "before", "audio": audio}
    assert speak(tone_server, text="5 frames", context=[turn])[:4] == b"RIFF"


def test_seeds_are_reported_and_repeat_the_audio(tone_server: RunningServer) -> None:
    fields = {"text": "20 frames", "temperature": 1.0}
    first, second = (tone_server.http.post("/generate", json=fields) for _ in range(2))
    assert first.content != second.content
    assert first.headers["x-request-id"] != second.headers["x-request-id"]
    again = speak(tone_server, **fields, seed=int(first.headers["x-seed"]))
    assert again == first.content
