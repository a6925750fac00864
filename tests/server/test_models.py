"""Several models in one process, each with its own name, slots and metrics."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest

from tests.conftest import TONE, RunningServer, until
from tests.server.conftest import Gate, post_raw, read_stream
from tests.server.test_bad_requests import check_error
from vox_serve.config import ServerConfig
from vox_serve.errors import ConfigError
from vox_serve.plugins import load_plugins
from vox_serve.workers.engines import Engines

StartServer = Callable[..., RunningServer]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second tone, named after its directory."""
    target = tmp_path_factory.mktemp("models") / "other"
    return Path(shutil.copytree(Path(__file__).parents[1] / "tone_checkpoint", target))


@pytest.fixture
def two(start_server: StartServer, directory: Path) -> RunningServer:
    return start_server(others=[attrs.evolve(TONE, model=str(directory), max_batch_size=2)])


def test_all_routes_list_both_models(two: RunningServer) -> None:
    assert [m["name"] for m in two.http.get("/models").json()["models"]] == ["tone", "other"]
    health, n = two.http.get("/health").json(), TONE.replicas
    assert [(m["model"], m["slots"]) for m in health["models"]] == [
        ("tone", 4 * n),
        ("other", 2 * n),
    ]
    voices = two.http.get("/voices").json()["voices"]
    assert [v["model"] for v in voices] == ["tone", "tone", "other", "other"]


def test_a_request_names_its_model(two: RunningServer) -> None:
    for name, frames in (("tone", 5), ("other", 7)):
        answer = two.http.post("/generate", json={"text": f"{frames} frames", "model": name})
        assert answer.status_code == 200
        assert len(answer.content) == 44 + frames * 1280
        assert two.metric(f'vox_serve_frames_total{{model="{name}"}}') == frames
    one = 'vox_serve_http_responses_total{code="200",model="other",route="/generate"}'
    assert two.metric(one) == 1


def test_the_model_is_required(two: RunningServer) -> None:
    message = check_error(two.http.post("/generate", json={"text": "5"}), 400, "model")
    assert message == "model is required: this server has tone, other"
    both = two.http.post("/generate", json={"text": "5", "model": "nobody"})
    assert "tone, other" in check_error(both, 404, "model", code="not_found")
    wrong = 'vox_serve_requests_total{mode="whole",model="",outcome="invalid"}'
    assert two.metric(wrong) == 2


def test_the_kind_of_a_model_must_be_unambiguous(
    start_server: StartServer, directory: Path
) -> None:
    alone = start_server(engine=attrs.evolve(TONE, model=str(directory)))
    request = {"text": "5", "model": "tone"}
    assert alone.http.post("/generate", json=request).status_code == 200
    second = shutil.copytree(directory, directory.parent / "another")
    both = start_server(
        engine=attrs.evolve(TONE, model=str(directory)),
        others=[attrs.evolve(TONE, model=str(second))],
    )
    message = check_error(both.http.post("/generate", json=request), 404, "model")
    assert "ambiguous" in message


def test_each_model_has_its_own_slots_and_queue(
    gate: Gate, start_server: StartServer, directory: Path
) -> None:
    server = start_server(
        engine=attrs.evolve(TONE, max_batch_size=1),
        others=[attrs.evolve(TONE, model=str(directory), max_batch_size=1)],
        server=ServerConfig(port=0, max_queue=0),
    )
    gate.close()
    slots = TONE.replicas
    first = [post_raw(server, text="5", streaming=True, model="tone") for _ in range(slots)]
    until(lambda: server.client.open_requests == slots)
    full = server.http.post("/generate", json={"text": "5", "model": "tone"})
    check_error(full, 429, code="queue_full")
    second = post_raw(server, text="5 frames", streaming=True, model="other")
    gate.open()
    for connection in (*first, second):
        assert read_stream(connection)[:4] == b"RIFF"
        connection.close()


def test_one_dead_engine_makes_the_server_unhealthy(
    start_server: StartServer, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests import tone

    load = tone._load

    def only_the_first(options):
        if options.directory.name == "other":
            raise KeyError("lost")
        return load(options)

    monkeypatch.setattr(tone, "_load", only_the_first)
    server = start_server(others=[attrs.evolve(TONE, model=str(directory))], wait=False)
    until(lambda: server.http.get("/health").status_code == 503)
    health = server.http.get("/health").json()
    assert health["status"] == "dead"
    assert "lost" in health["models"][1]["reason"]
    assert server.http.get("/ready").status_code == 503


def test_two_models_with_the_same_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="two models would have the name 'tone'"):
        Engines([TONE, TONE], ServerConfig(), load_plugins(TONE.plugins))
