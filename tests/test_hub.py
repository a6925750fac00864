"""Checkpoints by hub id, from a local hub that can fail in every way."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants, file_download
from huggingface_hub.utils import _http

from vox_serve import hub
from vox_serve.errors import CheckpointError

REPO = "sesame/csm-1b"
COMMIT = "c" * 40
FILES = {
    "config.json": b'{"model_type": "tone"}',
    "tokenizer.json": b"{}",
    "model.safetensors": b"the other layout",
    "transformers-00001-of-00001.safetensors": b"weights",
    "transformers.safetensors.index.json": b"index",
    "prompts/conversational_a.wav": b"sound",
    "README.md": b"read me",
}


class FakeHub:
    """Serves one repository, or answers with the status and error code of `refusal`."""

    def __init__(self) -> None:
        self.refusal: tuple[int, str] | None = None
        self.fetched: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self._answer()

            def do_GET(self) -> None:
                self._answer()

            def _answer(self) -> None:
                name = self.path.removeprefix(f"/{REPO}/resolve/").partition("/")[2]
                if hub.refusal is not None:
                    status, code = hub.refusal
                    self._send(status, b"", {"X-Error-Code": code} if code else {})
                elif self.path.startswith(f"/api/models/{REPO}/tree/"):  # huggingface_hub 2
                    tree = [
                        {"type": "file", "path": name, "size": len(body), "oid": etag_of(body)}
                        for name, body in FILES.items()
                    ]
                    self._send(200, json.dumps(tree).encode())
                elif self.path.startswith(f"/api/models/{REPO}"):
                    siblings = [{"rfilename": name} for name in FILES]
                    info = {"id": REPO, "sha": COMMIT, "siblings": siblings}
                    self._send(200, json.dumps(info).encode())
                elif name in FILES:
                    if self.command == "GET":
                        hub.fetched.append(name)
                    etag = f'"{etag_of(FILES[name])}"'
                    self._send(200, FILES[name], {"X-Repo-Commit": COMMIT, "ETag": etag})
                else:
                    self._send(404, b"", {"X-Error-Code": "EntryNotFound"})

            def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None):
                self.send_response(status)
                for key, value in (headers or {}).items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def etag_of(body: bytes) -> str:
    return hashlib.sha1(body).hexdigest()


def point_to(url: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set what HF_ENDPOINT and similar variables set at import; without pauses before retries."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    for module in (constants, file_download):
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)  # before retries


@pytest.fixture
def fake_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    fake = FakeHub()
    point_to(fake.url, tmp_path, monkeypatch)
    yield fake
    fake.close()


def test_only_files_that_match_the_patterns_are_downloaded(fake_hub: FakeHub) -> None:
    assert hub.read_config(REPO) == {"model_type": "tone"}
    patterns = ["*.json", "transformers*.safetensors*", "prompts/*.wav"]
    directory = hub.fetch(REPO, patterns)
    names = set(FILES) - {"model.safetensors", "README.md"}
    assert set(fake_hub.fetched) == names
    assert {str(p.relative_to(directory)) for p in directory.rglob("*.*")} == names
    for name in names:
        assert (directory / name).read_bytes() == FILES[name]


def test_a_second_fetch_downloads_nothing(fake_hub: FakeHub) -> None:
    first = hub.fetch(REPO, ["*.json"])
    fake_hub.fetched.clear()
    assert hub.fetch(REPO, ["*.json"]) == first
    assert fake_hub.fetched == []


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        (403, "GatedRepo", f"{REPO} is gated: accept its licence at https://huggingface.co/{REPO}"),
        (401, "GatedRepo", "is gated: accept its licence"),
        (404, "RepoNotFound", "is not on the hub, or is private: check the name"),
        (401, "RepoNotFound", "is not on the hub, or is private: check the name"),
        (500, "", "cannot be downloaded|hub cannot be reached"),
    ],
)
@pytest.mark.parametrize("step", ["config", "files"])
def test_a_refusal_of_the_hub_is_reported_in_one_line(
    fake_hub: FakeHub, status: int, code: str, says: str, step: str
) -> None:
    fake_hub.refusal = (status, code)
    with pytest.raises(CheckpointError, match=says) as caught:
        hub.read_config(REPO) if step == "config" else hub.fetch(REPO, ["*.json"])
    assert "\n" not in str(caught.value)
    assert REPO in str(caught.value)


def test_a_repository_without_a_config_is_reported_in_one_line(fake_hub: FakeHub) -> None:
    fake_hub.refusal = (404, "EntryNotFound")
    with pytest.raises(
        CheckpointError, match=r"has no config\.json: it is not a model repository$"
    ):
        hub.read_config(REPO)


@pytest.mark.parametrize("step", ["config", "files"])
def test_an_unreachable_hub_is_reported_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    with socket.socket() as closed:  # bound but not listening: refused at once
        closed.bind(("127.0.0.1", 0))
        point_to(f"http://127.0.0.1:{closed.getsockname()[1]}", tmp_path, monkeypatch)
        with pytest.raises(CheckpointError, match="the hub cannot be reached") as caught:
            hub.read_config(REPO) if step == "config" else hub.fetch(REPO, ["*.json"])
    assert "\n" not in str(caught.value)
