"""Promises about input: malformed requests, names and keys, audio files."""

from __future__ import annotations

import hmac
import io
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path
from unittest import mock

import httpx
import numpy as np
import pytest
import soundfile

import vox_serve_demo_voice
from tests.launched import Launched, Start
from tests.reliability.conftest import Promises
from tests.reliability.resources import MIB
from tests.server.openapi.test_fuzz import ALL_PHASES, fuzz
from tests.server.routes.test_voices import form
from vox_serve.config import EngineConfig, ServerConfig
from vox_serve.engine.load import load_engine
from vox_serve.errors import CheckpointError
from vox_serve.plugins import load_plugins
from vox_serve.server.access.keys import Keys, new_key

JSON = {"Content-Type": "application/json"}
DEEP = b"[" * 100_000
SEEDS, EXAMPLES = (1, 2, 3), 5
NONSENSE = (
    b"", b"null", b"\xff\xfe", b'{"%s": "\xff"}', b'{"%s": NaN}', b'{"%s": 1e999}',
    b'{"%s": ["5"]}', b'{"%s": {"id": 1}}', DEEP, b'{"%s": ' + DEEP + b"]" * 100_000 + b"}",
    b'{"' + b"x" * 10**6 + b'": 1}', b'{"%s": ' + b"9" * 5000 + b"}", b" " * (32 * MIB + 1),
)  # fmt: skip
ROUTES = {"/generate": b"text", "/v1/audio/speech": b"input"}


def nonsense(server: Launched) -> list[httpx.Response]:
    """The answers to bodies that are not requests."""
    return [
        server.http.post(path, content=content.replace(b"%s", field), headers=JSON)
        for path, field in ROUTES.items()
        for content in NONSENSE
    ]


def fuzzing(start: Start, promises: Promises) -> None:
    server = start("--log-level", "error")
    url = str(server.http.base_url).rstrip("/")
    with tempfile.TemporaryDirectory() as folder:
        found = [fuzz(url, Path(folder), seed, EXAMPLES, ALL_PHASES) for seed in SEEDS]
    answers = nonsense(server)
    assert all(400 <= answer.status_code < 500 for answer in answers)
    assert all(answer.json()["error"]["message"] for answer in answers)
    largest = max(len(answer.content) for answer in answers)
    figure = f"0 of {sum(found)}"
    promises.note("fuzz", f"failures, schemathesis, {len(SEEDS)} seeds", 0, figure)
    promises.note("fuzz", f"{len(answers)} malformed bodies, largest 4xx", "2048 bytes", largest)
    assert largest <= 2048


WRONG = ("../a", "..", "a/b", "a\\b", "a.b", "%2e%2e%2fa", "a\n", "a b", "\xe4", "-a", "", "a" * 65)
SECRETS = (None, "", "wrong", "vox-", "Bearer", "x" * 4000)


def names_and_keys(start: Start, promises: Promises) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (alice, line), (bob, other) = new_key("alice"), new_key("bob")
        keys, voices = Path(folder, "keys"), Path(folder, "voices")
        keys.write_text(f"{line}\n{other}\n")
        server = start(
            "--api-keys-file", str(keys), "--voices-dir", str(voices), "--log-level", "error"
        )  # fmt: skip
        name = "names and keys"

        def tree() -> set[str]:
            return {str(path) for path in Path(folder).rglob("*")}

        def post(key: str | None, voice: str) -> httpx.Response:
            headers = {} if key is None else {"X-Api-Key": key}
            return server.http.post("/v1/audio/voices", files=form(name=voice), headers=headers)

        before = tree()
        taken = [bad for bad in WRONG if post(alice, bad).status_code != 400]
        assert not taken, f"names that were accepted: {taken}"
        assert tree() == before
        promises.note(name, "bad names of voices accepted", 0, f"{len(taken)} of {len(WRONG)}")
        passed = [key for key in SECRETS if post(key, "anna").status_code != 401]
        assert not passed, f"keys that were accepted: {passed}"
        promises.note(name, "wrong keys accepted", 0, f"{len(passed)} of {len(SECRETS)}")
        assert post(alice, "anna").status_code == 201
        reached = [answer for answer in of_another(server, bob) if answer.status_code != 404]
        assert not reached, f"{len(reached)} of another key's things were reached"
        promises.note(name, "ways to another key's voice", 0, f"{len(reached)} of 4")
        headers = {"X-Api-Key": alice, "Origin": "https://evil.example"}
        asked = server.http.get("/voices", headers=headers)
        allowed = [header for header in asked.headers if header.startswith("access-control")]
        assert not allowed
        promises.note(name, "CORS headers by default", 0, len(allowed))
        assert server.http.delete("/v1/audio/voices/anna", headers=headers).status_code == 403

        result = load_pickled(Path(folder))
        promises.note(name, "weights in another format than safetensors", "refused", result)
        counts = compared(keys)
        promises.note(name, "hashes compared for any key", "always all", f"{counts} of 2")
        assert counts == [2, 2, 2]


def load_pickled(folder: Path) -> str:
    """Try to load a checkpoint whose weights are pickled."""
    source = Path(vox_serve_demo_voice.__file__).parent / "checkpoint"
    checkpoint = Path(shutil.copytree(source, folder / "checkpoint"))
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    with pytest.raises(CheckpointError) as refused:
        load_engine(EngineConfig(model=str(checkpoint)), load_plugins())
    assert "safetensors" in str(refused.value)
    return "refused"


def compared(file: Path) -> list[int]:
    """The number of hashes compared for the first key, the last one and a wrong one."""
    keys = Keys(ServerConfig(api_keys_file=str(file)))
    first, last = (new_key(name) for name in ("first", "last"))
    file.write_text(f"{first[1]}\n{last[1]}\n")
    keys.reload()
    counts = []
    for key, name in ((first[0], "first"), (last[0], "last"), ("wrong", None)):
        with mock.patch("hmac.compare_digest", side_effect=hmac.compare_digest) as compare:
            assert keys.name_of(key) == name
        counts.append(compare.call_count)
    return counts


def of_another(server: Launched, key: str) -> list[httpx.Response]:
    """The answers to this key's attempts to use the voice `anna`."""
    body = {"text": "5 frames", "voice": "anna"}
    ask = server.http.request
    headers = {"X-Api-Key": key}
    speech = {"model": "tone", "voice": "anna", "input": "5 frames"}
    return [
        ask("GET", "/v1/audio/voices/anna", headers=headers),
        ask("POST", "/generate", json=body, headers=headers),
        ask("POST", "/v1/audio/speech", json=speech, headers=headers),
        ask("DELETE", "/v1/audio/voices/anna", headers=headers),
    ]


CLIP_SECONDS, CLIP_RATE, MOST_GROWTH = 1500, 32_000, 64
"""A clip of 25 minutes, which is small as a file and large when decoded."""


def long_clip() -> bytes:
    """Silence as a FLAC file."""
    file = io.BytesIO()
    settings = {"samplerate": CLIP_RATE, "channels": 2, "format": "FLAC", "subtype": "PCM_16"}
    with soundfile.SoundFile(file, "w", **settings) as clip:
        for _ in range(CLIP_SECONDS // 10):
            clip.write(np.zeros((10 * CLIP_RATE, 2), np.int16))
    return file.getvalue()


def resident(server: Launched) -> int:
    """The resident memory of all processes of a server, in bytes."""
    pages = 0
    for pid in server.processes():
        try:
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    return pages * os.sysconf("SC_PAGE_SIZE")


def uploads(start: Start, promises: Promises) -> None:
    server = start("--log-level", "error")
    usual = server.http.post("/v1/audio/voices", files=form(name="usual"))
    assert usual.status_code == 201
    clip = long_clip()
    before, most, answers = resident(server), 0, []

    def send() -> None:
        answers.append(server.http.post("/v1/audio/voices", files=form(audio=clip)))

    began = time.monotonic()
    sender = threading.Thread(target=send)
    sender.start()
    while sender.is_alive():
        most = max(most, resident(server))
        time.sleep(0.01)
    seconds, grown = time.monotonic() - began, (most - before) / MIB
    (answer,) = answers
    decoded = CLIP_SECONDS * CLIP_RATE * 2 * 4 / MIB
    what = f"{len(clip) / MIB:.1f} MiB of FLAC, {decoded:.0f} MiB decoded"
    assert grown < MOST_GROWTH, f"memory grew by {grown:.0f} MiB"
    assert answer.status_code == 400, answer.text
    assert "longer than 30 seconds" in answer.json()["error"]["message"]
    promises.note("uploads", f"{what}: memory", f"{MOST_GROWTH} MiB", f"{grown:.0f} MiB")
    promises.note("uploads", "refused for its length, after", "10 s", f"{seconds:.2f} s")
    large = server.http.post("/v1/audio/voices", files=form(audio=bytes(11 * MIB)))
    promises.note("uploads", "11 MiB", 400, large.status_code)
    assert large.status_code == 400
    assert "limit is 10485760" in large.json()["error"]["message"]
