"""Every format over HTTP, whole and streamed: decoding by clients, and early ends.

The sample rate of the tone is 8 kHz, which every format supports.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

import attrs
import httpx
import numpy as np
import pytest

from tests.conftest import RunningServer, until
from tests.server.conftest import Gate, post_raw, read_stream, value
from tests.server.test_life import check_cancelled, is_idle
from tests.tone import ToneCodec
from vox_serve.audio.formats import FORMATS, Encoder
from vox_serve.config import ServerConfig
from vox_serve.server.encoding import Encoding

StartServer = Callable[..., RunningServer]
RATE = 8000
FRAME_SAMPLES = 640
LOSSLESS = [name for name in FORMATS if FORMATS[name].lossless]
ENCODED = [name for name in FORMATS if name not in ("wav", "pcm", "mulaw", "alaw")]
FFMPEG = shutil.which("ffmpeg")
needs_ffmpeg = pytest.mark.skipif(FFMPEG is None, reason="ffmpeg is not installed")
# Explained in tests/audio/test_formats.py; in samples at 8 kHz.
EXTRA_SAMPLES = {
    "wav": 0,
    "pcm": 0,
    "flac": 0,
    "opus": 2,
    "mp3": 3 * 576,
    "aac": 2 * 1024,
    "mulaw": 0,
    "alaw": 0,
}


def speak(server: RunningServer, **fields: Any) -> httpx.Response:
    response = server.http.post("/generate", json=fields)
    assert response.status_code == 200, response.text
    return response


def decode(name: str, content: bytes) -> np.ndarray:
    """int16 samples `[T]` at 8 kHz, decoded by the ffmpeg program from a pipe."""
    assert FFMPEG is not None
    raw = ["-f", "s16le", "-ar", str(RATE), "-ac", "1"]
    source = {"pcm": raw, "mulaw": ["-f", "mulaw", *raw[2:]], "alaw": ["-f", "alaw", *raw[2:]]}.get(
        name, []
    )
    command = [FFMPEG, "-v", "error", *source, "-i", "-", *raw, "-"]
    done = subprocess.run(command, input=content, capture_output=True, check=True)
    assert done.stderr == b""
    return np.frombuffer(done.stdout, "<i2")


@needs_ffmpeg
@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("name", FORMATS)
def test_ffmpeg_decodes_all_of_it(tone_server: RunningServer, name: str, streaming: bool) -> None:
    pcm = speak(tone_server, text="41 frames", format="pcm").content
    response = speak(tone_server, text="41 frames", format=name, streaming=streaming)
    assert response.headers["content-type"] == FORMATS[name].media_type
    assert ("content-length" in response.headers) is not streaming
    decoded, samples = decode(name, response.content), np.frombuffer(pcm, "<i2")
    assert len(samples) == 41 * FRAME_SAMPLES
    assert 0 <= len(decoded) - len(samples) <= EXTRA_SAMPLES[name]
    if name in LOSSLESS:
        np.testing.assert_array_equal(decoded, samples)
    else:
        check_similar(decoded, samples)


def check_similar(decoded: np.ndarray, samples: np.ndarray) -> None:
    """Check that two sounds are equal but for a delay, by the spectra of their middles."""
    middle = slice(len(samples) // 4, 3 * len(samples) // 4)
    ours, theirs = (np.abs(np.fft.rfft(x[middle].astype(float))) for x in (samples, decoded))
    smooth = np.ones(9) / 9  # a delay shifts the spectrum of a swaying tone a little
    ours, theirs = np.convolve(ours, smooth), np.convolve(theirs, smooth)
    assert np.corrcoef(ours, theirs)[0, 1] > 0.9


@needs_ffmpeg
@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("name", FORMATS)
def test_an_answer_without_frames_is_a_file(
    tone_server: RunningServer, name: str, streaming: bool
) -> None:
    content = speak(tone_server, text="0 frames", format=name, streaming=streaming).content
    if name in ("wav", "pcm", "mulaw", "alaw"):
        assert len(content) == (44 if name == "wav" else 0)
    else:
        assert len(decode(name, content)) <= 1 + EXTRA_SAMPLES[name]


@pytest.mark.parametrize("name", FORMATS)
def test_the_status_comes_with_sound(gate: Gate, gated_server: RunningServer, name: str) -> None:
    """Frames are generated one by one; the first bytes are more than a header."""
    gate.close()
    body = {"text": "41 frames", "streaming": True, "format": name}
    with post_raw(gated_server, **body) as connection:
        until(lambda: gated_server.client.open_requests == 1)
        connection.settimeout(0.15)
        for _ in range(6):
            gate.allow(1)
            with contextlib.suppress(TimeoutError):
                assert connection.recv(17) == b"HTTP/1.1 200 OK\r\n"
                break
        else:
            pytest.fail("no sound within half a second")
        connection.settimeout(20)
        reader = connection.makefile("rb")
        while reader.readline() != b"\r\n":
            pass
        size = int(reader.readline(), 16)
        assert size > {"wav": 44, "flac": 60, "opus": 97}.get(name, 0), "only a header"
        assert len(reader.read(size)) == size
        gate.open()
    until(lambda: is_idle(gated_server), 2)


@pytest.mark.parametrize("name", ENCODED)
def test_a_client_that_leaves_frees_its_slot_and_encoder(
    gate: Gate, gated_server: RunningServer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[Encoder] = []
    close = Encoder.close
    monkeypatch.setattr(Encoder, "close", lambda self: (closed.append(self), close(self))[1])
    gate.close()
    body = {"text": "150 frames", "streaming": True, "max_seconds": 12, "format": name}
    with post_raw(gated_server, **body) as connection:
        until(lambda: gated_server.client.open_requests == 1)
        gate.allow(6)
        assert connection.recv(15) == b"HTTP/1.1 200 OK"
    until(lambda: not gated_server.client.open_requests, 1)
    gate.open()
    check_cancelled(gated_server, "stream", "stream")
    assert value(gated_server, "http_responses_total", route="/generate", code="cut") == 1
    until(lambda: len(set(map(id, closed))) == 1, 1)


@pytest.mark.parametrize("name", ENCODED)
def test_a_client_that_leaves_before_the_sound_frees_its_slot_and_encoder(
    gate: Gate, gated_server: RunningServer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[Encoder] = []
    close = Encoder.close
    monkeypatch.setattr(Encoder, "close", lambda self: (closed.append(self), close(self))[1])
    gate.close()
    with post_raw(gated_server, text="41 frames", streaming=True, format=name):
        until(lambda: gated_server.client.open_requests == 1)
    until(lambda: not gated_server.client.open_requests, 1)
    gate.open()
    until(lambda: is_idle(gated_server), 1)
    until(lambda: len(set(map(id, closed))) == 1, 1)


@pytest.fixture
def long_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames of 0.64 s.  Request this fixture before the server, which allocates them."""
    monkeypatch.setattr(ToneCodec, "frame_size", 5120)


@pytest.mark.parametrize("name", ENCODED)
def test_a_failure_after_the_first_sound_cuts_the_stream(
    gate: Gate, long_frames: None, gated_server: RunningServer, name: str
) -> None:
    """Every format sends sound before the third frame fails."""
    gate.allow(1)
    body = {"text": "boom 41 frames", "streaming": True, "format": name}
    with gated_server.http.stream("POST", "/generate", json=body) as response:
        assert response.status_code == 200
        gate.open()
        with pytest.raises(httpx.RemoteProtocolError):
            response.read()
    gated_server.wait_idle()
    assert value(gated_server, "requests_total", mode="stream", outcome="error") == 1


def test_a_slow_reader_gets_everything_encoded_in_a_thread(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames of 8 s, which take too long to encode in the event loop."""
    monkeypatch.setattr(ToneCodec, "frame_size", 64_000)
    server = start_server(server=ServerConfig(port=0, send_timeout=10))
    threads: set[str] = set()
    encode = Encoder.encode

    def seen(self: Encoder, pcm: bytes) -> bytes:
        threads.add(threading.current_thread().name)
        return encode(self, pcm)

    monkeypatch.setattr(Encoder, "encode", seen)
    body = {"text": "8 frames", "max_seconds": 8.0, "streaming": True, "format": "flac"}
    whole = speak(server, **{**body, "streaming": False}).content
    with post_raw(server, receive_buffer=4096, **body) as connection:
        streamed = read_stream(connection)
    assert len(streamed) == len(whole)
    assert streamed[42:] == whole[42:], "they differ after the header"
    assert any(name.startswith("asyncio") for name in threads)


@attrs.define
class Probe:
    """A slow encoder that notices when it is closed too early."""

    busy: bool = False
    closed: bool = False
    misused: bool = False

    def encode(self, pcm: bytes) -> bytes:
        self.busy = True
        time.sleep(0.2)
        self.busy = False
        return pcm

    def finish(self) -> bytes:
        return b""

    def close(self) -> None:
        self.misused |= self.busy
        self.closed = True


def test_close_waits_for_the_thread() -> None:
    async def cut() -> Probe:
        encoding = Encoding(FORMATS["pcm"], RATE)
        probe = encoding._encoder = Probe()
        work = asyncio.create_task(encoding.encode(bytes(2 * RATE)))
        until_busy = asyncio.get_running_loop().time() + 2
        while not probe.busy and asyncio.get_running_loop().time() < until_busy:
            await asyncio.sleep(0.01)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        encoding.close()
        assert probe.busy
        assert not probe.closed
        await asyncio.sleep(0.4)
        return probe

    probe = asyncio.run(cut())
    assert probe.closed
    assert not probe.misused


def test_whole_and_streamed_audio_at_another_speed_agree() -> None:
    turns = 440 * np.arange(RATE) / RATE
    pcm = (8000 * np.sin(2 * np.pi * turns)).astype("<i2").tobytes()

    async def both() -> tuple[bytes, bytes]:
        encoding = Encoding(FORMATS["pcm"], RATE, 2.0)
        pieces = [await encoding.encode(pcm[i : i + 1280]) for i in range(0, len(pcm), 1280)]
        pieces.append(encoding.finish())
        encoding.close()
        return b"".join(pieces), FORMATS["pcm"].whole(RATE, pcm, 2.0)

    streamed, whole = asyncio.run(both())
    assert streamed == whole
    assert len(whole) == len(pcm) // 2
