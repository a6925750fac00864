"""The server on a cluster of two engine nodes behaves as on one machine.  `make test-cluster`."""

from __future__ import annotations

import io
import json
import statistics
import threading
import time
from collections.abc import Iterator
from typing import Any

import attrs
import httpx
import numpy as np
import pytest
import soundfile
from websockets.sync.client import connect

from tests.cluster.conftest import RayCluster, slowly
from tests.conftest import TONE, RunningServer, running_server
from tests.talk import CHECKPOINT
from vox_serve.config import EngineConfig

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore"),  # ray causes some
]


CONVERSATIONS = ("one", "two", "three", "four", "five")
"""Enough that both nodes have some."""


@pytest.fixture(scope="module")
def single(cluster: RayCluster) -> Iterator[RunningServer]:
    """The plain server with the same settings.  It uses the environment that `cluster` sets."""
    with running_server(attrs.evolve(TONE, deterministic=True)) as server:
        yield server


def _is_usual(answer: httpx.Response) -> bool:
    """Whether this is the usual 503."""
    usual = answer.status_code == 503 and "retry-after" in answer.headers
    return usual and '"code":"unavailable"' in answer.text


class Load(threading.Thread):
    """Requests speech until it is stopped, and records how each answer ended."""

    def __init__(self, url: str, number: int, body: dict[str, Any], bytes_expected: int) -> None:
        super().__init__(daemon=True)
        self._url, self._body = url, {**body, "streaming": number % 2 == 0}
        self._expected = bytes_expected
        self.ended = False
        self.outcomes: list[str] = []

    def run(self) -> None:
        while not self.ended:
            try:
                answer = httpx.post(f"{self._url}/generate", json=self._body, timeout=60)
                outcome = str(answer.status_code)
                if outcome == "200" and len(answer.content) != self._expected:
                    outcome = f"200 with {len(answer.content)} bytes"
                elif outcome != "200" and not _is_usual(answer):
                    outcome = f"{outcome} {answer.text[:100]!r}"
            except httpx.RemoteProtocolError:
                outcome = "cut"
            except httpx.HTTPError as error:
                outcome = repr(error)
            self.outcomes.append(outcome)
            if outcome != "200":
                time.sleep(0.1)


def under_load(cluster: RayCluster, clients: int, body: dict[str, Any]) -> list[Load]:
    size = len(cluster.http.post("/generate", json=body).content)
    loads = [Load(cluster.url, number, body, size) for number in range(clients)]
    for load in loads:
        load.start()
    return loads


def outcomes(loads: list[Load]) -> list[str]:
    for load in loads:
        load.ended = True
    for load in loads:
        load.join(90)
        assert not load.is_alive()
    return [outcome for load in loads for outcome in load.outcomes]


def speak_turn(cluster: RayCluster, single: RunningServer, number: int) -> None:
    """Speak the next turn of each conversation, and compare with the single server."""
    for name in CONVERSATIONS:
        body = {"text": f"{number + 3} frames", "conversation": name, "seed": number}
        answers = [one.http.post("/generate", json=body) for one in (cluster, single)]
        assert [answer.status_code for answer in answers] == [200, 200]
        assert answers[0].content == answers[1].content


def pcm(content: bytes) -> bytes:
    """The samples, without the header, which contains their length."""
    return content[44:]


def test_the_cluster_returns_the_bytes_of_the_single_server(
    cluster: RayCluster, single: RunningServer
):
    texts = [f"{frames} frames with seed" for frames in (1, 5, 17, 40)] + ["5 words. " * 150]
    for seed, text in enumerate(texts):
        for streaming in (False, True):
            body = {"text": text, "seed": seed, "temperature": 0.9, "streaming": streaming}
            answers = [one.http.post("/generate", json=body) for one in (cluster, single)]
            assert [answer.status_code for answer in answers] == [200, 200]
            assert pcm(answers[0].content) == pcm(answers[1].content)


def test_conversations_sound_as_on_the_single_server(cluster: RayCluster, single: RunningServer):
    for turn in range(3):
        speak_turn(cluster, single, turn)
    for name in CONVERSATIONS:
        assert single.http.delete(f"/conversations/{name}").status_code == 204
        assert cluster.http.delete(f"/conversations/{name}").status_code == 204
        assert cluster.http.delete(f"/conversations/{name}").status_code == 404


def test_a_stream_arrives_while_it_is_spoken(cluster: RayCluster):
    arrived = []
    body = {"text": "100 frames", "streaming": True}
    with cluster.http.stream("POST", "/generate", json=body) as answer:
        arrived.extend(time.monotonic() for _ in answer.iter_raw())
    assert len(arrived) > 10
    assert arrived[-1] - arrived[0] > 1


def test_a_client_that_leaves_frees_its_slot_on_the_other_node(cluster: RayCluster):
    cluster.wait_idle()
    for _ in range(3):
        body = {"text": "150 frames", "max_seconds": 13, "streaming": True}
        with cluster.http.stream("POST", "/generate", json=body) as answer:
            pieces = answer.iter_raw()
            next(pieces)
            slowly(lambda: cluster.health()["running"] == 1, 4)
        cluster.wait_idle(3)  # the speech would last 6 s; the state is reported once a second


def test_a_request_is_cancelled_by_its_id(cluster: RayCluster):
    body = {"text": "150 frames", "max_seconds": 13, "streaming": True}
    headers = {"X-Request-Id": "to-cancel"}
    with cluster.http.stream("POST", "/generate", json=body, headers=headers) as answer:
        pieces = answer.iter_raw()
        next(pieces)
        assert httpx.delete(f"{cluster.url}/requests/to-cancel").status_code == 204
        with pytest.raises(httpx.RemoteProtocolError):
            list(pieces)
    cluster.wait_idle(3)


def test_a_websocket_speaks_text_that_arrives_in_pieces(cluster: RayCluster):
    with connect(cluster.url.replace("http", "ws") + "/v1/audio/stream") as socket:
        socket.send(json.dumps({"type": "start"}))
        for piece in ("5 little ", "words. ", "7 more words. "):
            socket.send(json.dumps({"type": "text", "text": piece}))
        socket.send(json.dumps({"type": "end"}))
        received = list(socket)
    sound = sum(len(message) for message in received if isinstance(message, bytes))
    events = [json.loads(message)["type"] for message in received if isinstance(message, str)]
    assert events[0] == "started"
    assert events[-1] == "done"
    assert sound == 2 * 640 * 12


def test_a_registered_voice_is_known_on_every_node(cluster: RayCluster):
    clip = io.BytesIO()
    tone = np.sin(np.arange(8000) / 10).astype(np.float32)
    soundfile.write(clip, tone, 8000, format="WAV")
    form = {"name": "hummer", "text": "a hum"}
    files = {"audio": ("clip.wav", clip.getvalue())}
    added = cluster.http.post("/v1/audio/voices", data=form, files=files)
    assert added.status_code in (200, 201), added.text
    body = {"text": "5 frames", "voice": "hummer"}
    spoken = {cluster.http.post("/generate", json=body).status_code for _ in range(12)}
    assert spoken == {200}
    assert cluster.http.delete("/v1/audio/voices/hummer").status_code in (200, 204)
    spoken = {cluster.http.post("/generate", json=body).status_code for _ in range(12)}
    assert spoken == {404}


def test_errors_equal_those_of_the_single_server(cluster: RayCluster, single: RunningServer):
    for body in ({"text": "unspeakable"}, {"text": "hello", "voice": "nobody"}, {"text": "nan 9"}):
        answers = [one.http.post("/generate", json=body) for one in (cluster, single)]
        assert answers[0].status_code == answers[1].status_code
        assert answers[0].json() == answers[1].json()


def test_a_rolling_update_fails_no_request_and_cuts_no_stream(cluster: RayCluster):
    loads = under_load(cluster, 4, {"text": "40 frames"})
    body = {"text": "150 frames", "max_seconds": 13, "streaming": True}
    with cluster.http.stream("POST", "/generate", json=body) as answer:
        cluster.deploy(max_seconds=80.0)
        assert sum(map(len, answer.iter_raw())) == 44 + 2 * 640 * 150
    slowly(lambda: cluster.http.get("/models").json()["models"][0]["max_seconds"] == 80.0, 60)
    time.sleep(3)
    found = outcomes(loads)
    print(f"\nrolling update: {len(found)} requests, all answered")
    assert set(found) == {"200"}


def test_a_killed_node_fails_only_its_own_requests(cluster: RayCluster, single: RunningServer):
    cluster.wait(slots=8)
    speak_turn(cluster, single, number=0)
    loads = under_load(cluster, 6, {"text": "150 frames", "max_seconds": 13})
    time.sleep(2)
    slowly(lambda: cluster.health()["running"] >= 4, 10)
    killed = time.monotonic()
    cluster.ray.remove_node(cluster.nodes.pop(), allow_graceful=False)
    time.sleep(5)
    cluster.add_node()
    cluster.wait(slots=8, seconds=90)
    recovered = time.monotonic() - killed
    time.sleep(1)
    found = outcomes(loads)
    failed = [outcome for outcome in found if outcome != "200"]
    print(f"\nnode killed: {len(found)} requests, failed: {failed}; whole after {recovered:.0f} s")
    assert failed, "nothing was spoken on that node"
    assert set(failed) <= {"503", "cut"}
    assert len(failed) <= 6, "more requests failed than were open"
    cluster.wait_idle()
    speak_turn(cluster, single, number=1)  # including conversations of the lost node


def test_a_replica_starts_while_requests_wait_and_goes_away_after_it(cluster: RayCluster):
    cluster.deploy(min_replicas=1, upscale_delay=2.0, downscale_delay=4.0)
    cluster.wait(slots=4, seconds=120)
    began = time.monotonic()
    few, many = [under_load(cluster, clients, {"text": "40 frames"}) for clients in (2, 8)]
    slowly(lambda: cluster.health()["waiting"] > 0, 10)
    cluster.wait(slots=8, seconds=120)
    grown = time.monotonic() - began
    slowly(lambda: cluster.health()["running"] > 4, 10)
    found = outcomes(many)
    began = time.monotonic()
    cluster.wait(slots=4, seconds=120)
    shrunk = time.monotonic() - began
    found += outcomes(few)
    print(f"\nscaled: {len(found)} requests of 10 clients, a second replica after {grown:.0f} s;")
    print(f"it went {shrunk:.0f} s after 8 of them had left, while 2 were spoken to")
    assert set(found) == {"200"}
    cluster.deploy(min_replicas=2)
    cluster.wait(slots=8)


def test_first_audio_is_compared_with_the_plain_server(cluster: RayCluster, single: RunningServer):
    """It prints the figures, and asserts nothing about speed."""
    cluster.wait(slots=8)
    times: dict[str, list[float]] = {"plain": [], "cluster": []}
    for number in range(40):
        for name, http in (("plain", single.http), ("cluster", cluster.http)):
            begun = time.monotonic()
            body = {"text": f"5 frames {number}", "streaming": True}
            with http.stream("POST", "/generate", json=body) as answer:
                next(answer.iter_raw())
                times[name].append(1000 * (time.monotonic() - begun))
    for name, found in times.items():
        p50, p95 = statistics.median(found), statistics.quantiles(found, n=20)[-1]
        print(f"\nfirst audio, {name}: p50 {p50:.0f} ms, p95 {p95:.0f} ms", end="")
    print()


def test_live_text_reaches_the_replica_that_speaks_it(cluster: RayCluster):
    """This test must be the second to last, because it replaces the tone model."""
    model = str(CHECKPOINT.resolve())
    cluster.deploy(model=model, plugins=["tests.talk"])
    slowly(lambda: cluster.http.get("/models").json()["models"][0]["kind"] == "talk", 60)
    cluster.wait(slots=8)
    engine = EngineConfig(model, max_batch_size=4, plugins=("tests.talk",))
    text = "Words come one by one. They are spoken (as they come)."
    with running_server(engine) as single:
        whole = single.http.post("/generate", json={"text": text, "format": "pcm"}).content
    for _ in range(4):
        address = cluster.url.replace("http://", "ws://") + "/v1/audio/stream"
        with connect(address) as socket:
            socket.send(json.dumps({"type": "start"}))
            assert json.loads(socket.recv())["live"] is True
            for word in text.split(" "):
                socket.send(json.dumps({"type": "text", "text": f"{word} "}))
                time.sleep(0.02)
            socket.send(json.dumps({"type": "end"}))
            heard = b"".join(message for message in socket if isinstance(message, bytes))
        assert heard == whole
    cluster.wait_idle()


def test_the_demo_voice_equals_that_of_the_single_server(cluster: RayCluster):
    """This test must be the last one, because it replaces the tone."""
    cluster.deploy(model="demo", plugins=[])
    slowly(lambda: cluster.http.get("/models").json()["models"][0]["name"] == "demo", 60)
    cluster.wait(slots=8)
    with running_server(EngineConfig("demo", max_batch_size=4, deterministic=True)) as single:
        texts = ["A night at sea.", "It was cold, and the wind did not stop. " * 40]
        for seed, text in enumerate(texts):
            body = {"text": text, "seed": seed, "streaming": seed == 0}
            answers = [one.http.post("/generate", json=body) for one in (cluster, single)]
            assert [answer.status_code for answer in answers] == [200, 200]
            assert pcm(answers[0].content) == pcm(answers[1].content)
