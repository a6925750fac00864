"""Registered voices: uploading, speaking, keeping them in a directory, refusals."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import shutil
import struct
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import attrs
import httpx
import numpy as np
import pytest
import soundfile

from tests.conftest import TONE, RunningServer, running_server, until
from tests.server.conftest import value
from tests.server.test_bad_requests import check_error
from tests.tone import ToneCodec, ToneModel
from vox_serve import launch
from vox_serve.audio import read_audio
from vox_serve.config import ServerConfig
from vox_serve.errors import ConfigError
from vox_serve.plugins import load_plugins
from vox_serve.server.app import create_app
from vox_serve.server.routes.voices import MAX_AUDIO_BYTES
from vox_serve.server.voices import registry
from vox_serve.server.voices.registry import Voices
from vox_serve.server.voices.store import VoiceRecord, VoiceStore, VoiceUnusable
from vox_serve.workers.engines import Engines

StartServer = Callable[..., RunningServer]
ROUTE = "/v1/audio/voices"
RATE = 8000


def sound(seconds: float = 1.0, rate: int = RATE, kind: str = "WAV", **settings: Any) -> bytes:
    file = io.BytesIO()
    samples = 0.3 * np.sin(np.arange(round(seconds * rate)) / 10)
    soundfile.write(file, samples, rate, format=kind, **settings)
    return file.getvalue()


def samples(values: list[float], rate: int = RATE) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.array(values, np.float32), rate, format="WAV", subtype="FLOAT")
    return file.getvalue()


def form(**changes: Any) -> dict[str, tuple[str | None, Any]]:
    """A multipart form for httpx; None omits a field, bytes become a file."""
    fields = {"name": "anna", "audio": sound(), "text": "good morning", **changes}
    return {
        name: (f"{name}.bin" if isinstance(content, bytes) else None, content)
        for name, content in fields.items()
        if content is not None
    }


def upload(server: RunningServer, **changes: Any) -> httpx.Response:
    return server.http.post(ROUTE, files=form(**changes))


def names(server: RunningServer) -> list[str]:
    listed = [voice["name"] for voice in server.http.get("/voices").json()["voices"]]
    assert [voice["id"] for voice in server.http.get(ROUTE).json()["voices"]] == listed
    (model, *_) = server.http.get("/models").json()["models"]
    assert {voice["name"] for voice in model["voices"]} <= set(listed)
    return listed


def speak(server: RunningServer, voice: str, **fields: Any) -> httpx.Response:
    return server.http.post("/generate", json={"text": "3 frames", "voice": voice, **fields})


def broken(server: RunningServer) -> dict[str, str]:
    found: dict[str, str] = server.http.get("/health").json()["broken_voices"]
    return found


def keeping(directory: Path, **settings: Any) -> ServerConfig:
    return ServerConfig(port=0, voices_dir=str(directory), **settings)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "voices"


@pytest.fixture
def server(start_server: StartServer, directory: Path) -> RunningServer:
    return start_server(server=keeping(directory))


def test_a_voice_can_be_added_used_and_deleted(server: RunningServer, directory: Path) -> None:
    check_error(speak(server, "anna"), 404, "voice", code="not_found")
    made = upload(server, speaker="1")
    assert made.status_code == 201
    voice = made.json()
    assert voice.pop("created_at") > 1.7e9
    assert voice == {
        "id": "anna",
        "object": "audio.voice",
        "name": "anna",
        "model": "tone",
        "speaker": 1,
        "text": "good morning",
        "seconds": 1.0,
        "kept": True,
    }
    assert server.http.get(f"{ROUTE}/anna").json() == made.json()
    assert names(server) == ["hum_a", "hum_b", "anna"]
    assert "anna (1)" in launch.banner([server.client], "http://x")
    before = value(server, "prompt_positions_total", source="prefilled")
    assert speak(server, "anna").status_code == 200
    # The text takes two positions and one per word; the segment takes one and its 13 frames.
    until(lambda: value(server, "prompt_positions_total", source="prefilled") == before + 4 + 14)
    assert sorted(path.name for path in directory.iterdir()) == ["anna.json", "anna.wav"]

    gone = server.http.delete(f"{ROUTE}/anna")
    assert gone.status_code == 200
    assert gone.json() == {"id": "anna", "object": "audio.voice", "deleted": True}
    assert list(directory.iterdir()) == []
    assert names(server) == ["hum_a", "hum_b"]
    check_error(speak(server, "anna"), 404, "voice")
    check_error(server.http.get(f"{ROUTE}/anna"), 404, "voice")
    check_error(server.http.delete(f"{ROUTE}/anna"), 404, "voice")
    assert upload(server).status_code == 201
    assert value(server, "http_responses_total", route=ROUTE, code="201") == 2


def test_field_names_of_openais_clients_are_accepted(server: RunningServer) -> None:
    made = upload(
        server,
        audio=None,
        text=None,
        audio_sample=sound(kind="FLAC"),
        transcript=" good\n",
        consent="c",
    )
    assert made.status_code == 201
    assert made.json()["text"] == "good"


@pytest.mark.parametrize(
    ("kind", "rate", "channels"),
    [("WAV", 44100, 2), ("FLAC", 8000, 1), ("OGG", 16000, 1), ("MP3", 24000, 1)],
)
def test_samples_of_several_formats_are_accepted(
    server: RunningServer, directory: Path, kind: str, rate: int, channels: int
) -> None:
    file = io.BytesIO()
    tone = 0.3 * np.sin(np.arange(2 * rate)[:, None] / rate * 2000)
    soundfile.write(file, np.repeat(tone, channels, axis=1), rate, format=kind)
    made = upload(server, audio=file.getvalue())
    assert made.json()["seconds"] == pytest.approx(2, abs=0.15)
    kept, kept_rate = soundfile.read(directory / "anna.wav")
    assert kept_rate == RATE  # the rate of the model
    assert kept.std() == pytest.approx(0.3 / 2**0.5, rel=0.1)


def test_a_voice_survives_a_restart(start_server: StartServer, directory: Path) -> None:
    with running_server(server=keeping(directory)) as first:
        made = upload(first, speaker="1").json()
        spoken = speak(first, "anna").content
    second = start_server(server=keeping(directory))
    assert second.http.get(f"{ROUTE}/anna").json() == made
    assert names(second) == ["hum_a", "hum_b", "anna"]
    assert broken(second) == {}
    assert speak(second, "anna").content == spoken
    assert second.http.delete(f"{ROUTE}/anna").status_code == 200
    assert names(start_server(server=keeping(directory))) == ["hum_a", "hum_b"]


def test_only_one_of_two_servers_may_change_the_directory(
    start_server: StartServer, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one reads it, refuses to change it, and takes it over when it is free."""
    monkeypatch.setattr(registry, "CLAIM_SECONDS", 0.05)
    directory.mkdir()
    left = directory / ".anna.wav.x1y2z3.tmp"
    left.touch()
    with running_server(server=keeping(directory)) as first:
        assert not left.exists(), "a file of a killed server is left"
        for name in ("anna", "bert"):
            upload(first, name=name)
        second = start_server(server=keeping(directory))
        assert names(second) == ["hum_a", "hum_b", "anna", "bert"]
        refused = upload(second, name="cleo")
        check_error(refused, 503, code="unavailable")
        assert "another server holds" in refused.text
        check_error(second.http.delete(f"{ROUTE}/anna"), 503, code="unavailable")
        assert names(second) == ["hum_a", "hum_b", "anna", "bert"]
        assert first.http.delete(f"{ROUTE}/anna").status_code == 200
        upload(first, name="dora")
    until(lambda: ("dora", 0) in second.client.voices)
    assert names(second) == ["hum_a", "hum_b", "bert", "dora"]
    assert speak(second, "dora").status_code == 200
    assert upload(second, name="cleo").status_code == 201


def test_a_directory_that_cannot_be_locked_is_refused(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", fails)
    with pytest.raises(ConfigError, match="cannot be locked: No locks available"):
        Voices(Engines([TONE], keeping(directory), load_plugins(TONE.plugins)))


def test_without_a_directory(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server()
    assert upload(server).json()["kept"] is False
    assert speak(server, "anna").status_code == 200
    check_error(upload(server, name="ANNA"), 409, "name")
    check_error(server.http.delete(f"{ROUTE}/ANNA"), 404, "voice")
    assert server.http.delete(f"{ROUTE}/anna").status_code == 200
    assert names(server) == ["hum_a", "hum_b"]


def test_the_samples_are_stored_as_they_are(directory: Path) -> None:
    store = VoiceStore(directory)
    audio = np.random.default_rng(0).normal(size=4000).astype(np.float32)
    store.write("anna", VoiceRecord(text="a", created=5), audio, RATE)
    with store.audio("anna") as file:
        assert np.array_equal(read_audio(file, RATE, 30), audio)
    assert store.scan() == ({"anna": VoiceRecord(text="a", created=5)}, {})


LONG = sound(31, 1000, "FLAC")
LYING = sound()[:40] + struct.pack("<I", 2**31 - 1) + sound()[44:]


@pytest.mark.parametrize(
    ("changes", "param", "reason"),
    [
        ({"name": None}, "name", "required"),
        ({"name": ""}, "name", "1 to 64"),
        ({"name": "../anna"}, "name", "1 to 64"),
        ({"name": "a/b"}, "name", "1 to 64"),
        ({"name": ".anna"}, "name", "1 to 64"),
        ({"name": "-anna"}, "name", "1 to 64"),
        ({"name": "an\x00na"}, "name", "1 to 64"),
        ({"name": "anna\n"}, "name", "1 to 64"),
        ({"name": "änna"}, "name", "1 to 64"),
        ({"name": "a" * 65}, "name", "1 to 64"),
        ({"name": b"anna"}, "name", "not a file"),
        ({"text": None}, "text", "required"),
        ({"text": " \n"}, "text", "not only spaces"),
        ({"text": "a" * 2001}, "text", "1 to 2000 characters"),
        ({"text": b"anna"}, "text", "not a file"),
        ({"audio": None}, "audio", "required"),
        ({"audio": "text"}, "audio", "a file"),
        ({"audio": b""}, "audio", "cannot be read"),
        ({"audio": b"no sound at all"}, "audio", "cannot be read"),
        ({"audio": sound()[:20]}, "audio", "cannot be read"),
        ({"audio": samples([])}, "audio", "empty"),
        ({"audio": samples([0.1, np.nan])}, "audio", "not finite"),
        ({"audio": samples([0.1, np.inf])}, "audio", "not finite"),
        ({"audio": samples([3e38, -3e38] * 50, 16000)}, "audio", "not finite"),
        ({"audio": LONG}, "audio", "longer than 30 seconds"),
        ({"audio": sound(0.1, 384_000)}, "audio", "192000 samples per second"),
        ({"audio": b"R" * (MAX_AUDIO_BYTES + 1)}, "audio", f"the limit is {MAX_AUDIO_BYTES}"),
        ({"speaker": "-1"}, "speaker", "from 0 to 999"),
        ({"speaker": "1.5"}, "speaker", "from 0 to 999"),
        ({"speaker": "1000"}, "speaker", "from 0 to 999"),
        ({"speaker": "²"}, "speaker", "from 0 to 999"),
        ({"colour": "red"}, "colour", "unknown field"),
        ({"transcript": "again"}, None, "two names"),
    ],
    # Ids without values: libsndfile writes the time into files, and pytest-xdist compares ids.
    ids=lambda case: "-".join(case) if isinstance(case, dict) else str(case)[:40],
)
def test_bad_uploads_are_refused_by_field(
    tone_server: RunningServer, changes: dict[str, Any], param: str | None, reason: str
) -> None:
    assert reason in check_error(upload(tone_server, **changes), 400, param, code="invalid_request")
    assert names(tone_server) == ["hum_a", "hum_b"]


def test_uploads_that_the_model_cannot_use_are_refused(tone_server: RunningServer) -> None:
    check_error(upload(tone_server, speaker="7"), 404, "speaker")
    check_error(upload(tone_server, model="nobody"), 404, "model")
    # 29 seconds are within the limit, but need more than the tone's 200 positions.
    message = check_error(upload(tone_server, audio=sound(29)), 422, "audio")
    assert "context is too long" in message
    assert names(tone_server) == ["hum_a", "hum_b"]


def test_a_false_length_in_the_header_is_ignored(tone_server: RunningServer) -> None:
    made = upload(tone_server, audio=LYING)
    assert made.status_code == 201
    assert made.json()["seconds"] == 1
    tone_server.http.delete(f"{ROUTE}/anna")


def test_a_small_file_that_decodes_to_hours_is_refused(
    tone_server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoding stops as soon as it is too long."""
    read, taken = soundfile.SoundFile.read, []

    def counting(self, *args, **settings):
        block = read(self, *args, **settings)
        taken.append(len(block))
        return block

    file = io.BytesIO()
    soundfile.write(file, np.zeros(3600 * 1000, np.int16), 1000, format="FLAC")
    monkeypatch.setattr(soundfile.SoundFile, "read", counting)
    assert len(file.getvalue()) < 100_000
    assert "30 seconds" in check_error(upload(tone_server, audio=file.getvalue()), 400, "audio")
    assert sum(taken) <= 31 * 1000


def test_bodies_that_are_not_forms_are_refused(tone_server: RunningServer) -> None:
    http = tone_server.http
    assert "multipart" in check_error(http.post(ROUTE, json={"name": "anna"}), 400)
    torn = {"Content-Type": "multipart/form-data; boundary=zz"}
    check_error(http.post(ROUTE, content=b"--zz\r\nnothing", headers=torn), 400)
    twice = [("name", (None, "a")), ("name", (None, "b"))]
    assert "more than once" in check_error(http.post(ROUTE, files=twice), 400, "name")


def test_a_body_over_the_limit_of_the_server_is_refused(start_server: StartServer) -> None:
    server = start_server(server=ServerConfig(port=0, max_body_bytes=10_000))
    check_error(upload(server), 413)


def test_a_name_cannot_be_used_twice(server: RunningServer, directory: Path) -> None:
    assert upload(server).status_code == 201
    for name in ("anna", "Anna"):
        again = upload(server, name=name, text="else")
        assert "delete it first" in check_error(again, 409, "name", code="already_exists")
        assert "retry-after" not in again.headers  # waiting does not help
    assert "built-in voice" in check_error(upload(server, name="Hum_A"), 409, "name")
    assert server.http.get(f"{ROUTE}/anna").json()["text"] == "good morning"
    assert names(server) == ["hum_a", "hum_b", "anna"]
    # A file that was added after the start must not be overwritten, either.
    (directory / "Bert.txt").write_text("mine")
    check_error(upload(server, name="bert"), 409, "name")
    assert (directory / "Bert.txt").read_text() == "mine"


def test_only_one_of_several_concurrent_uploads_succeeds(server: RunningServer) -> None:
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda n: upload(server, text=f"text {n}"), range(4)))
    assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409]
    (winner,) = [answer.json() for answer in answers if answer.status_code == 201]
    assert server.http.get(f"{ROUTE}/anna").json() == winner


def test_too_many_concurrent_uploads_get_429(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "MAX_WAITING", 1)
    with encoding_held(monkeypatch) as go, ThreadPoolExecutor(1) as pool:
        first = pool.submit(upload, server)
        until(lambda: server.client.open_requests == 1)
        busy = upload(server, name="bert")
        assert int(busy.headers["retry-after"]) >= 1
        assert "1 voices are being added" in check_error(busy, 429, code="queue_full")
        go.set()
        assert first.result().status_code == 201
    assert upload(server, name="bert").status_code == 201


def test_the_number_of_voices_is_limited(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "MAX_VOICES", 1)
    assert upload(server).status_code == 201
    full = upload(server, name="bert")
    assert "there are already 1 voices, the limit" in check_error(full, 400, "name")


class encoding_held:  # noqa: N801  # reads as a function
    """Makes the tone's codec wait in `encode` until the event is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._go, encode = threading.Event(), ToneCodec.encode

        def held(codec, pcm):
            assert self._go.wait(30)
            return encode(codec, pcm)

        monkeypatch.setattr(ToneCodec, "encode", held)

    def __enter__(self) -> threading.Event:
        return self._go

    def __exit__(self, *_: object) -> None:
        self._go.set()


def test_a_server_is_ready_when_its_voices_are_loaded(
    start_server: StartServer, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop(directory, "anna")
    with encoding_held(monkeypatch) as go:
        server = start_server(server=keeping(directory), wait=False)
        until(lambda: server.client.open_requests == 1, 20)
        ready = server.http.get("/ready")
        assert (ready.status_code, ready.json()) == (503, {"status": "starting"})
        check_error(speak(server, "anna"), 503, code="unavailable")
        check_error(upload(server, name="bert"), 503, code="unavailable")
        check_error(server.http.delete(f"{ROUTE}/anna"), 503, code="unavailable")
        go.set()
        until(lambda: server.http.get("/ready").status_code == 200)
    assert speak(server, "anna").status_code == 200


def test_a_server_may_end_while_it_loads_voices(
    start_server: StartServer,
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    drop(directory, "anna")
    drop(directory, "bert")
    with encoding_held(monkeypatch):
        server = start_server(server=keeping(directory), wait=False)
        until(lambda: server.client.open_requests == 1, 20)
        server.client.drain()
    until(lambda: not server.client.open_requests)
    assert server.http.get("/ready").json() == {"status": "draining"}
    assert names(server) == ["hum_a", "hum_b", "anna"]  # it stopped before the other one
    assert broken(server) == {}
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_paths_in_the_url_cannot_leave_the_directory(
    server: RunningServer, directory: Path
) -> None:
    outside = directory.parent / "secret.wav"
    outside.write_bytes(sound())
    for name in ("..%2fsecret", "%2e%2e%2fsecret", "secret%00", "a" * 300, ".%2fanna"):
        for method in ("GET", "DELETE"):
            answer = server.http.request(method, f"{ROUTE}/{name}")
            check_error(answer, 404, answer.json()["error"]["param"])
    assert outside.exists()


def test_a_built_in_voice_cannot_be_deleted(server: RunningServer) -> None:
    shown = server.http.get(f"{ROUTE}/hum_b").json()
    assert shown == {
        "id": "hum_b",
        "object": "audio.voice",
        "name": "hum_b",
        "model": "tone",
        "speaker": 1,
    }
    message = check_error(server.http.delete(f"{ROUTE}/hum_b"), 400, "voice")
    assert "built-in voice" in message


def drop(directory: Path, name: str, record: Any = "", audio: bytes | None = None) -> None:
    """Add the files of a voice to the directory; a string becomes a .txt file."""
    directory.mkdir(exist_ok=True)
    (directory / f"{name}.wav").write_bytes(sound() if audio is None else audio)
    if isinstance(record, str):
        (directory / f"{name}.txt").write_text(record or "good morning", encoding="utf-8-sig")
    else:
        (directory / f"{name}.json").write_text(json.dumps(record))


def test_voices_may_be_added_as_files(start_server: StartServer, directory: Path) -> None:
    drop(directory, "anna", "good morning\n")
    drop(directory, "Bert", {"text": "hi", "speaker": 1})
    drop(directory, "c-3", {"text": "hi", "model": "tone", "created": 7})
    drop(directory, "linked")
    (directory / "linked.txt").rename(directory / "elsewhere.md")
    (directory / "linked.txt").symlink_to("elsewhere.md")
    (directory / "notes.md").write_text("no voice, no trouble")
    (directory / "._anna.wav").write_text("what a Mac leaves on other file systems")
    (directory / ".anna.wav.x.tmp").write_text("of an upload that was cut off")
    server = start_server(server=keeping(directory))
    assert broken(server) == {}
    assert names(server) == ["hum_a", "hum_b", "Bert", "anna", "c-3", "linked"]
    for name in ("anna", "Bert", "c-3", "linked"):
        assert speak(server, name).status_code == 200
    shown = server.http.get(f"{ROUTE}/anna").json()
    assert (shown["text"], shown["speaker"]) == ("good morning", 0)
    assert shown["created_at"] == int((directory / "anna.wav").stat().st_mtime)
    assert server.http.get(f"{ROUTE}/c-3").json()["created_at"] == 7
    assert server.http.delete(f"{ROUTE}/linked").status_code == 200
    assert (directory / "elsewhere.md").exists()
    assert not (directory / "linked.txt").is_symlink()


def spoil(directory: Path) -> dict[str, str]:
    """Fill a directory with unusable voices; returns the expected report of each."""
    outside = directory.parent / "outside.wav"
    outside.write_bytes(sound())
    drop(directory, "Case")
    drop(directory, "case")
    drop(directory, "my voice")
    drop(directory, "no-json", [])
    drop(directory, "no-text", {"speaker": 1})
    drop(directory, "silent", audio=b"")
    drop(directory, "long", audio=LONG)
    drop(directory, "typo", {"text": "a", "speker": 1})
    drop(directory, "speaker", {"text": "a", "speaker": 7})
    drop(directory, "other", {"text": "a", "model": "csm"})
    drop(directory, "hum_a")
    drop(directory, "large", "a" * 70_000)
    drop(directory, "wordy", "a" * 3000)
    (directory / "lonely.txt").write_text("a")
    (directory / "dumb.wav").write_bytes(sound())
    for name, target in (("escape", outside), ("circle", "circle.wav"), ("folder", directory)):
        drop(directory, name)
        (directory / f"{name}.wav").unlink()
        (directory / f"{name}.wav").symlink_to(target)
    drop(directory, "pipe")
    (directory / "pipe.wav").unlink()
    os.mkfifo(directory / "pipe.wav")
    (directory / os.fsdecode(b"\xff.txt")).write_text("a")
    return {
        "case.wav": "'Case' only in case",
        "my voice.wav": "1 to 64",
        "no-json.wav": "no-json.json cannot be read",
        "no-text.wav": "missing required field `text`",
        "silent.wav": "cannot be read",
        "long.wav": "longer than 30 seconds",
        "typo.wav": "speker",
        "speaker.wav": "unknown speaker 7",
        "other.json": "it is for csm; this server has tone",
        "hum_a.wav": "built-in voice",
        "large.wav": "larger than",
        "wordy.wav": "the limit is 2000",
        "lonely.txt": "lonely.wav is missing",
        "dumb.wav": "transcript is missing",
        "escape.wav": "is a link to outside",
        "circle.wav": "cannot be opened",
        "folder.wav": "not a regular file",
        "pipe.wav": "not a regular file",
        "\\udcff.txt": "1 to 64",
    }


def test_unusable_voices_are_reported_and_not_fatal(
    start_server: StartServer, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = spoil(directory)
    drop(directory, "zoe")
    server = start_server(server=keeping(directory))
    reported = broken(server)
    assert reported.keys() == expected.keys()
    for file, reason in expected.items():
        assert reason in reported[file], file
        assert "(" not in reported[file][:20], file  # not the repr of an exception
        assert any(file in line and reason in line for line in caplog.messages), file
    assert names(server) == ["hum_a", "hum_b", "Case", "zoe"]
    assert speak(server, "zoe").status_code == 200
    # An unusable voice is not overwritten, but can be deleted.
    check_error(upload(server, name="dumb"), 409, "name")
    assert server.http.delete(f"{ROUTE}/dumb").status_code == 200
    assert "dumb.wav" not in broken(server)
    assert not (directory / "dumb.wav").exists()
    assert upload(server, name="dumb").status_code == 201


def test_a_codec_that_fails_on_a_voice_is_reported(
    start_server: StartServer, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(codec, pcm):
        raise RuntimeError("a bug in encode")

    monkeypatch.setattr(ToneCodec, "encode", fails)
    drop(directory, "anna")
    server = start_server(server=keeping(directory))
    assert "RuntimeError" in broken(server)["anna.wav"]
    check_error(upload(server, name="bert"), 500, code="generation_failed")
    assert names(server) == ["hum_a", "hum_b"]
    assert not (directory / "bert.wav").exists()
    assert value(server, "finished_total", reason="error") == 0, (
        "it is counted as a failed sequence"
    )


def test_a_model_whose_codec_cannot_encode_refuses_voices(
    start_server: StartServer, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ToneModel, "takes_context", False)
    monkeypatch.delattr(ToneCodec, "encode")
    drop(directory, "anna")
    server = start_server(server=keeping(directory))
    assert "cannot learn voices" in broken(server)["anna.wav"]
    assert "cannot learn voices" in check_error(upload(server, name="bert"), 422, "model")
    assert speak(server, "hum_a").status_code == 200


@pytest.mark.parametrize("failing", ["anna.wav", "anna.json"])
def test_a_full_disk_is_reported_and_leaves_nothing(
    server: RunningServer, directory: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    put = VoiceStore._put

    def full(self, path, content):
        if path.name == failing:
            raise OSError(28, "No space left on device")
        put(self, path, content)

    monkeypatch.setattr(VoiceStore, "_put", full)
    message = check_error(upload(server), 503, code="unavailable")
    assert message == "the voice cannot be stored: No space left on device"
    assert list(directory.iterdir()) == []
    assert names(server) == ["hum_a", "hum_b"]
    check_error(speak(server, "anna"), 404, "voice")


@pytest.mark.parametrize("failing", ["anna.wav", "anna.json"])
def test_a_bug_in_storing_leaves_nothing(
    server: RunningServer, directory: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    put = VoiceStore._put

    def wrong(self, path, content):
        if path.name == failing:
            raise RuntimeError("a bug in storing")
        put(self, path, content)

    with monkeypatch.context() as patch:
        patch.setattr(VoiceStore, "_put", wrong)
        check_error(upload(server), 500, code="internal_error")
    assert list(directory.iterdir()) == []
    assert names(server) == ["hum_a", "hum_b"]
    assert upload(server).status_code == 201


def test_a_torn_write_leaves_nothing(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = VoiceStore(directory)

    def fails(descriptor):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="Input/output"):
        store.write("anna", VoiceRecord(text="a"), np.zeros(10, np.float32), RATE)
    assert list(directory.iterdir()) == []


def test_a_voice_whose_files_cannot_be_deleted_stays(
    server: RunningServer, directory: Path
) -> None:
    assert upload(server).status_code == 201
    (directory / "anna.wav").unlink()
    (directory / "anna.wav").mkdir()  # a directory, which unlink refuses
    message = check_error(server.http.delete(f"{ROUTE}/anna"), 503, code="unavailable")
    assert "cannot be deleted" in message
    assert speak(server, "anna").status_code == 200


def test_the_store_refuses_names_that_are_not_voice_names(directory: Path) -> None:
    store = VoiceStore(directory)
    for work in (store.remove, store.audio):
        with pytest.raises(ValueError, match="not a voice name"):
            work("../anna")
    with pytest.raises(VoiceUnusable, match="cannot be opened"):
        store.audio("anna")


def test_a_bad_voices_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        engines = Engines([TONE], keeping(path), load_plugins(TONE.plugins), in_thread=True)
        with pytest.raises(ConfigError, match="voices_dir"):
            create_app(engines)


@pytest.fixture
def two(start_server: StartServer, tmp_path: Path, directory: Path) -> Callable[[], RunningServer]:
    other = shutil.copytree(Path(__file__).parents[2] / "tone_checkpoint", tmp_path / "other")
    others = [attrs.evolve(TONE, model=str(other), max_batch_size=2)]
    return lambda: start_server(server=keeping(directory), others=others)


def test_a_voice_belongs_to_one_model(two: Callable[[], RunningServer], directory: Path) -> None:
    drop(directory, "stray")
    drop(directory, "bert", {"text": "hi", "model": "other"})
    server = two()
    assert "does not name a model" in broken(server)["stray.json"]
    assert "model is required" in check_error(upload(server), 400, "model")
    assert upload(server, model="other").json()["model"] == "other"
    assert names(server) == ["hum_a", "hum_b", "hum_a", "hum_b", "bert", "anna"]
    for name in ("anna", "bert"):
        assert speak(server, name, model="other").status_code == 200
        check_error(speak(server, name, model="tone"), 404, "voice")
    check_error(upload(server, model="tone"), 409, "name")
    http = server.http
    assert http.get(f"{ROUTE}/anna").json()["model"] == "other"
    check_error(http.get(f"{ROUTE}/anna", params={"model": "tone"}), 404, "voice")
    check_error(http.get(f"{ROUTE}/hum_a"), 400, "model")
    assert http.get(f"{ROUTE}/hum_a", params={"model": "tone"}).json()["model"] == "tone"
    again = two()
    assert names(again) == ["hum_a", "hum_b", "hum_a", "hum_b", "anna", "bert"]
    assert http.delete(f"{ROUTE}/anna").status_code == 200
    check_error(speak(server, "anna", model="other"), 404, "voice")
