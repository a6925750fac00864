"""Programs as people run them, against a server on a socket."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cases.conftest import CASES
from tests.cases.test_doors import PCM, WAV
from tests.conftest import RunningServer

BODY = json.dumps(WAV)


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")


def run(*command: str) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs("java")
def test_a_jdk_client_works_with_its_defaults(tone_server: RunningServer) -> None:
    """Case `upgrade-offer`.  Java compiles the source first, which takes a second or two."""
    source = str(Path(__file__).with_name("Speak.java"))
    printed = run("java", source, f"{tone_server.url}/v1/audio/speech", BODY, BODY, BODY)
    assert printed.splitlines() == [f"200 HTTP_1_1 {44 + PCM} RIFF"] * 3


@needs("curl")
@pytest.mark.parametrize("flag", ["--http2", "--http1.1", "--http1.0"])
@pytest.mark.parametrize("path", ["/v1/audio/speech", "/generate"])
def test_curl_gets_the_file_over_every_version_of_http(
    tone_server: RunningServer, tmp_path: Path, flag: str, path: str
) -> None:
    if flag == "--http2" and "HTTP2" not in run("curl", "--version"):
        pytest.skip("this curl does not support HTTP/2")
    body = BODY if path != "/generate" else json.dumps({"text": "9 frames", "streaming": True})
    output = tmp_path / "out.wav"
    printed = run(
        *("curl", "-sS", flag, "-w", "%{http_code} %{http_version}", "-o", str(output)),
        *("-H", "Content-Type: application/json", "-d", body, tone_server.url + path),
    )
    assert printed == "200 1.1"
    content = output.read_bytes()
    assert content[:4] == b"RIFF"
    assert len(content) == 44 + PCM


@needs("curl")
def test_curl_may_send_chunks_and_offer_an_upgrade(
    tone_server: RunningServer, tmp_path: Path
) -> None:
    run(
        *("curl", "-sSf", "--http2", "-o", str(tmp_path / "out.wav"), "-d", BODY),
        *("-H", "Content-Type: application/json", "-H", "Transfer-Encoding: chunked"),
        f"{tone_server.url}/v1/audio/speech",
    )
    assert len((tmp_path / "out.wav").read_bytes()) == 44 + PCM


@pytest.mark.parametrize("command", CASES["head-requests"]["send"]["commands"])
def test_health_checks_of_containers_succeed(tone_server: RunningServer, command: str) -> None:
    program, *arguments = command.replace("URL", tone_server.url).split()
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    printed = run(program, *arguments)
    assert program == "wget" or printed.startswith("HTTP/1.1 200 OK")


@pytest.mark.parametrize("command", CASES["pipes"]["send"]["commands"])
def test_the_command_line_works_in_a_pipe(tmp_path: Path, command: str) -> None:
    """Case `pipes`, run by a shell; three seconds each, mostly for importing torch."""
    (tmp_path / "text.txt").write_text("9 frames")
    say = f"{sys.executable} -m vox_serve.cli say --model tone --plugins tests.tone"
    command = command.replace("vox-serve say", say).replace("ffmpeg -i - out.mp3", "cat > out.wav")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path])}
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        check=False, cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.wav").read_bytes()[:4] == b"RIFF"
    assert "s of audio in" in (done.stderr if "-o -" in command else done.stdout)
    assert [
        file.name for file in tmp_path.iterdir() if file.name not in ("out.wav", "text.txt")
    ] == []
