"""Invalid requests of every kind get a 4xx in the usual error shape; valid ones are accepted.

Schemathesis generates both from the served document.  Bytes that are not JSON, which it cannot
generate, are tested here for the routes that `test_bad_requests.py` does not cover.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import RunningServer
from tests.server.test_bad_requests import BOUNDARY, JSON
from vox_serve.server.routes.voices import clip

ROOT = Path(__file__).parents[3]
SETTINGS = Path(__file__).with_name("fuzz.toml")
DEEP = b"[" * 100_000
SPEECH, VOICES = "/v1/audio/speech", "/v1/audio/voices"
ALL_PHASES = "examples,coverage,fuzzing,stateful"


def fuzz(url: str, folder: Path, seed: int, examples: int, phases: str) -> int:
    """Run schemathesis on each route; `fuzz.toml` lists the exceptions and their reasons.

    Returns the number of requests sent.
    """
    # In another process, because it has global settings, hooks and caches.
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(SETTINGS)]
    command += ["run", f"{url}/openapi.json", "--phases", phases, "--no-color"]
    command += ["--seed", str(seed), "--max-examples", str(examples), "--workers", "1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    found = f"schemathesis found failures\n{done.stdout[-8000:]}{done.stderr[-2000:]}"
    assert done.returncode == 0, found
    document = httpx.get(f"{url}/openapi.json").json()
    operations = sum(map(len, document["paths"].values()))
    assert f"Tested: {operations - 1}" in done.stdout, (
        "not all operations but that of the document were tested"
    )
    return int(re.findall(r"(\d+) generated", done.stdout)[-1])


def test_schemathesis_finds_nothing(tone_server: RunningServer, tmp_path: Path) -> None:
    fuzz(tone_server.url, tmp_path, seed=1, examples=2, phases="examples,coverage,fuzzing")
    tone_server.wait_idle()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_schemathesis_finds_nothing_in_a_long_run(
    tone_server: RunningServer, tmp_path: Path, seed: int
) -> None:
    fuzz(tone_server.url, tmp_path, seed=seed, examples=100, phases=ALL_PHASES)
    tone_server.wait_idle()


def check_refusal(response: httpx.Response) -> None:
    assert 400 <= response.status_code < 500, response.text
    assert response.headers["content-type"] == "application/json"
    assert len(response.content) <= 2048
    assert response.json()["error"]["message"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"null",
        b'{"model": "tone", "voice": "hum_a", "input": "\xff"}',
        b'{"model": "tone", "voice": "hum_a", "input": "5", "speed": NaN}',
        b'{"model": "tone", "voice": "hum_a", "input": "5", "speed": 1e999}',
        b'{"model": "tone", "voice": "hum_a", "input": "5", "seed": ' + b"9" * 5000 + b"}",
        b'{"model": "tone", "voice": "hum_a", "input": ["5"]}',
        b'{"model": "tone", "voice": {"id": 1}, "input": "5"}',
        DEEP,
        b'{"voice": ' + DEEP + b"]" * 100_000 + b"}",
        b'{"input": ' + b'{"a":' * 100_000 + b"}" * 100_000 + b"}",
        b'{"' + b"x" * 10**6 + b'": 1}',
        b'{"model": "tone", "voice": "' + b"x" * 10**6 + b'", "input": "5"}',
    ],
    ids=lambda content: repr(content[:60]),
)
def test_bytes_that_are_not_a_speech_request_are_refused(
    tone_server: RunningServer, content: bytes
) -> None:
    check_refusal(tone_server.http.post(SPEECH, content=content, headers=JSON))
    tone_server.wait_idle()


@pytest.mark.parametrize("route", [SPEECH, VOICES])
def test_a_body_that_is_too_large_is_refused(tone_server: RunningServer, route: str) -> None:
    content = b" " * (tone_server.client.server.max_body_bytes + 1)
    for headers in (JSON, BOUNDARY):
        response = tone_server.http.post(route, content=content, headers=headers)
        check_refusal(response)
        assert response.status_code == 413 or (route, headers) == (VOICES, JSON), (
            "only JSON for voices is refused before it is read"
        )


@pytest.mark.parametrize(
    ("name", "head", "value"),
    [
        ("text", b"Content-Type: text/plain; charset=no-such\r\n", b"\xff"),
        ("text", b"Content-Type: text/plain; charset=hex\r\n", b"zz"),
        ("text", b"", b"\xff\xfe"),
        ("text", b"", b"x" * 10**6),
        ("name", b"", b"\xff"),
        ("name", b"", b"../../etc/passwd"),
        ("name", b"", b"a\0b"),
        ("speaker", b"", b"NaN"),
        ("speaker", b"", b"9" * 5000),
        ("model", b"", DEEP),
        ("x" * 5000, b"", b"1"),
    ],
    ids=lambda value: repr(value[:40]),
)
def test_forms_that_are_not_a_voice_are_refused(
    tone_server: RunningServer, name: str, head: bytes, value: bytes
) -> None:
    parts: dict[str, tuple[bytes, bytes]] = {
        "name": (b"", b"fuzz"),
        "text": (b"", b"Hello."),
        name: (head, value),
    }
    pieces = [
        b'--zz\r\nContent-Disposition: form-data; name="%b"\r\n%b\r\n%b\r\n' % (n.encode(), h, v)
        for n, (h, v) in parts.items()
    ]
    sample = b'--zz\r\nContent-Disposition: form-data; name="audio"; filename="a.wav"\r\n\r\n%b\r\n'
    content = b"".join([*pieces, sample % clip().encode(), b"--zz--\r\n"])
    check_refusal(tone_server.http.post(VOICES, content=content, headers=BOUNDARY))


@pytest.mark.parametrize(
    "name", ["%ff%fe", "%00", "%0d%0aX-A:%20b", "..%5c..", "x" * 60_000, "%f0"]
)
@pytest.mark.parametrize(
    "route",
    [
        ("GET", "/v1/models/"),
        ("GET", "/v1/audio/voices/"),
        ("DELETE", "/v1/audio/voices/"),
        ("DELETE", "/requests/"),
        ("DELETE", "/conversations/"),
    ],
    ids="".join,
)
def test_bad_names_in_paths_are_refused(
    tone_server: RunningServer, route: tuple[str, str], name: str
) -> None:
    method, path = route
    answer: Any = tone_server.http.request(method, f"{path}{name}?model=%ff")
    check_refusal(answer)
    assert "x-a" not in answer.headers
