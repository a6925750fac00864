"""Helpers of the HTTP tests: a gate before each frame, raw sockets, metric values."""

from __future__ import annotations

import json
import math
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from urllib.parse import urlsplit

import pytest

from tests.conftest import RunningServer, until
from tests.tone import ToneModel
from vox_serve.metrics import Metrics, ReplicaRow


class Gate:
    """Blocks the tone before each frame, so that a test decides when frames are generated."""

    def __init__(self) -> None:
        self._frames = math.inf
        self._changed = threading.Condition()

    def allow(self, frames: float) -> None:
        """Let this many more frames (of the whole batch) be generated."""
        with self._changed:
            self._frames = frames
            self._changed.notify_all()

    def open(self) -> None:
        self.allow(math.inf)

    def close(self) -> None:
        self.allow(0)

    def pass_through(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._frames > 0)
            self._frames -= 1


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """Request this fixture before `start_server`, so that the gate opens before the server ends."""
    gate, emit = Gate(), ToneModel.emit

    def gated(self, hidden, sampler):
        gate.pass_through()
        return emit(self, hidden, sampler)

    monkeypatch.setattr(ToneModel, "emit", gated)
    yield gate
    gate.open()


@pytest.fixture
def gated_server(gate: Gate, start_server: Callable[..., RunningServer]) -> Iterator[RunningServer]:
    """A server of four slots behind the gate."""
    yield start_server()
    gate.open()


@contextmanager
def busy(server: RunningServer, slots: int) -> Iterator[None]:
    """Requests that occupy this many slots until the gate opens; they end when the block exits."""
    with ExitStack() as stack:
        before = server.client.open_requests
        for _ in range(slots):
            stack.enter_context(post_raw(server, text="5 frames"))
        until(lambda: server.client.open_requests == before + slots)
        yield


def value(server: RunningServer, name: str, **labels: str) -> float:
    """The value of one series of /metrics, or the sum over all replicas.

    The prefix and the labels `model` and, if the metric has it, `replica` are added.
    """
    row = vars(Metrics).get(name.removesuffix("_count").removesuffix("_sum"))
    own: list[dict[str, str]] = [{}]
    if "replica" not in labels and (isinstance(row, ReplicaRow) or name == "build_info"):
        own = [{"replica": str(replica.number)} for replica in server.client.replicas]
    total = 0.0
    for replica in own:
        pairs = sorted({"model": "tone", **replica, **labels}.items())
        shown = ",".join(f'{key}="{text}"' for key, text in pairs)
        total += server.metric(f"vox_serve_{name}{{{shown}}}")
    return total


def post_raw(
    server: RunningServer, receive_buffer: int | None = None, missing: int = 0, **body: object
) -> socket.socket:
    """POST /generate over a bare socket and return it, with nothing read yet.

    The last `missing` bytes of the announced body are not sent.
    """
    content = json.dumps(body).encode()
    head = (
        "POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content) + missing}\r\n\r\n"
    )
    address = urlsplit(server.url)
    connection = socket.socket()
    connection.settimeout(20)
    if receive_buffer:  # before connecting, which sets the window
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.connect((address.hostname, address.port))
    connection.sendall(head.encode() + content)
    return connection


def read_stream(connection: socket.socket) -> bytes:
    """The whole body of a chunked answer.  Raises EOFError if it is incomplete."""
    reader = connection.makefile("rb")
    while reader.readline() != b"\r\n":
        pass
    body = b""
    while size := int(reader.readline() or b"-1", 16):
        if size < 0:
            raise EOFError("no final chunk")
        body += reader.read(size)
        reader.readline()
    return body
