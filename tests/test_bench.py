"""vox-serve bench: figures with a scripted clock, failures over sockets, and our own server."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
import wave
from collections.abc import AsyncIterator, Callable, Sequence
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from statistics import mean

import attrs
import httpx
import pytest

from tests.conftest import TONE, RunningServer, until
from tests.wav import wav_header
from vox_serve import cli
from vox_serve.bench.client import SpeechClient
from vox_serve.bench.config import BenchConfig, Target, find_target, read_texts
from vox_serve.bench.figures import figures, percentile
from vox_serve.bench.load import arrivals, execute, plan
from vox_serve.bench.recording import Chunk, Outcome, Recording, Run, lateness
from vox_serve.bench.report import ROWS, table
from vox_serve.bench.sound import NotAudio, Wav
from vox_serve.config import ServerConfig
from vox_serve.errors import ConfigError
from vox_serve_demo_voice.text import normalise

ONE = BenchConfig(rate=(1.0,), timeout=20.0)
FRAME = bytes(3840)  # 80 ms of 24 kHz


def recording(*chunks: tuple[float, float], scheduled: float = 0.0, **fields) -> Recording:
    """A recording that ends one second after its last chunk."""
    made = Recording("x", scheduled, scheduled, status=200, **fields)
    made.chunks = [Chunk(at, seconds) for at, seconds in chunks]
    made.ended = (chunks[-1][0] if chunks else scheduled) + 1
    return made


# Figures over recorded times


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ([3, 1, 2], 50, 2),
        ([3, 1, 2, 4], 50, 2),
        (range(1, 101), 95, 95),
        (range(1, 101), 99, 99),
        (range(1, 101), 100, 100),
        ([7], 99, 7),
        ([7, 8], 0, 7),
        ([], 50, None),
    ],
)
def test_percentiles_are_values_that_occurred(values, percent, expected) -> None:
    assert percentile(values, percent) == expected


def test_lateness_counts_from_the_first_sound_and_the_audio_before() -> None:
    chunks = [Chunk(10.0, 0.1), Chunk(10.05, 0.1), Chunk(10.5, 0.4), Chunk(10.6, 0.1)]
    assert lateness(chunks) == pytest.approx([0, -0.05, 0.3, 0.0])
    assert lateness([]) == []


def test_a_stall_is_an_underrun_unless_the_player_has_already_waited_for_it() -> None:
    steady = recording((1.0, 0.08), (1.05, 0.08), (1.1, 0.08))
    assert (steady.underruns, steady.worst_underrun, steady.viable) == (0, 0.0, True)
    # 0.3 s late: an underrun.  The next chunk is as late, but the player has already waited.
    once = recording((1.0, 0.1), (1.4, 0.1), (1.5, 0.1))
    assert (once.underruns, once.viable) == (1, False)
    assert once.worst_underrun == pytest.approx(0.3)
    # Jitter of the clock does not count as another underrun.
    assert recording((1.0, 0.1), (1.4, 0.1), (1.505, 0.1), (1.609, 0.1)).underruns == 1
    twice = recording((1.0, 0.1), (1.4, 0.1), (1.7, 0.1))
    assert (twice.underruns, twice.worst_underrun) == (2, pytest.approx(0.5))


@pytest.mark.parametrize(("late", "viable"), [(0.009, True), (0.011, False)])
def test_ten_milliseconds_are_tolerated(late: float, viable: bool) -> None:
    one = recording((0.0, 0.1), (0.1 + late, 0.1))
    assert (one.viable, one.underruns) == (viable, int(not viable))


def test_times_of_a_request_count_from_when_it_was_due() -> None:
    one = recording((12.0, 0.5), (12.25, 0.5), scheduled=10.0)
    one.started = 11.5  # the delay of the client counts, too
    assert one.late == 1.5
    assert one.first_audio == 2.0
    assert one.total == 3.25
    assert one.audio == 1.0
    assert one.real_time_factor == 3.25
    assert one.gaps == [0.25]


def test_a_request_without_sound_has_no_figures() -> None:
    one = Recording("x", 0.0)
    assert one.outcome is Outcome.UNFINISHED
    assert (one.first_audio, one.total, one.real_time_factor) == (None, None, None)
    assert not one.viable


def test_a_run_is_summarised_in_figures() -> None:
    run = Run(2.0, [], began=100.0, ended=110.0, stall=0.2)
    run.recordings = [
        recording((101.0, 2.0), (102.0, 2.0), scheduled=100.5),
        recording((103.0, 1.0), (105.0, 1.0), scheduled=100.0),
        recording(failure="status 429", detail="full"),
        recording(failure="cut connection", detail="half"),
        recording(failure="cut connection"),
        Recording("x", 109.0),
    ]
    run.recordings[2].status = 429
    found = figures(run)
    assert (found.requests, found.ok, found.refused) == (6, 2, 1)
    assert (found.failed, found.unfinished) == (2, 1)
    assert (found.first_audio.p50, found.first_audio.p99) == (0.5, 3.0)
    assert (found.real_time_factor.p50, found.real_time_factor.p95) == (2.5 / 4, 3.0)
    assert (found.gap.p50, found.gap.p99) == (1.0, 2.0)
    assert (found.underruns, found.underrun_requests, found.worst_underrun) == (1, 1, 1.0)
    assert (found.viable, found.viable_share) == (1, 0.2)
    assert (found.goodput_requests, found.goodput_audio) == (0.1, 0.4)
    assert found.client_late == 0.2
    assert found.errors == {"cut connection": 2, "status 429": 1}
    shown = table([found], "requests/s")
    assert "at 2 requests/s: 2 x cut connection: half" in shown
    assert "at 2 requests/s: 1 x status 429: full" in shown
    assert "up to 200 ms late" in shown


def test_a_run_without_an_answer_has_a_table() -> None:
    run = Run(1.0, [], began=0.0, ended=1.0, recordings=[recording(failure="timeout")])
    rows = dict(line.rsplit(maxsplit=1) for line in table([figures(run)], "clients").splitlines())
    assert rows["first audio p50, ms"] == "-"
    assert rows["viable, % of requests"] == "0.0"


# Arrivals


def test_arrivals_are_a_poisson_process_of_the_seed() -> None:
    times = arrivals(5.0, 0, 1000.0, None)
    assert times == sorted(times)
    assert times[-1] < 1000
    assert len(times) == pytest.approx(5000, rel=0.05)
    gaps = [later - earlier for earlier, later in pairwise(times)]
    # Exponential: the deviation equals the mean.
    assert mean((gap - 0.2) ** 2 for gap in gaps) ** 0.5 == pytest.approx(0.2, rel=0.1)
    assert arrivals(5.0, 0, 1000.0, None) == times
    assert arrivals(5.0, 1, 1000.0, None) != times
    assert arrivals(5.0, 0, 0.0, 7) == times[:7]


def test_the_arrivals_of_a_rate_do_not_depend_on_other_rates() -> None:
    alone, both = BenchConfig(rate=(2.0,)), BenchConfig(rate=(1.0, 2.0))
    assert plan(alone)[0].arrivals == plan(both)[1].arrivals


def test_a_duration_too_short_for_any_request_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"rate 0.001 gives no request in 1 s"):
        plan(BenchConfig(rate=(0.001,), duration=1.0))


# One request, with a clock that the server's script moves


class Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


@attrs.define
class Script(httpx.AsyncByteStream):
    """A response body: steps of seconds to wait, and then bytes or an error."""

    clock: Clock
    steps: Sequence[tuple[float, bytes | Exception]]

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for seconds, step in self.steps:
            self.clock.now += seconds
            if isinstance(step, Exception):
                raise step
            yield step


def ask(
    *steps: tuple[float, bytes | Exception],
    status: int = 200,
    config: BenchConfig = ONE,
    late: float = 0.0,
    **headers: str,
) -> Recording:
    """The client's recording of a scripted answer; it is requested `late` seconds late."""
    clock = Clock()
    sent = {"Content-Type": "audio/wav"} | {k.replace("_", "-"): v for k, v in headers.items()}

    def handle(_: httpx.Request) -> httpx.Response:
        return httpx.Response(status, headers=sent, stream=Script(clock, steps))

    async def run() -> Recording:
        target = Target("http://x/generate", "generate")
        async with SpeechClient(target, config, httpx.MockTransport(handle), clock) as client:
            made = Recording("hello", clock.now - late)
            await client.speak(made)
            return made

    return asyncio.run(run())


HEADER = wav_header(24_000, None)


def test_a_header_does_not_count_as_sound() -> None:
    one = ask((0.5, HEADER), (0.25, FRAME), (0.01, FRAME), (0.02, b""))
    assert one.outcome is Outcome.OK
    assert one.first_audio == 0.75
    assert one.audio == pytest.approx(0.16)
    assert one.total == pytest.approx(0.78)


def test_a_header_may_come_in_pieces_or_with_sound() -> None:
    whole = ask((0.5, HEADER + FRAME), (0.1, FRAME))
    pieces = ask(*[(0.0, bytes([byte])) for byte in HEADER], (0.5, FRAME), (0.1, FRAME))
    assert whole.first_audio == pieces.first_audio == 0.5
    assert whole.audio == pieces.audio


def test_a_late_client_is_in_the_latency() -> None:
    one = ask((0.5, HEADER + FRAME), late=2.0)
    assert (one.late, one.first_audio) == (2.0, 2.5)


def test_a_stall_of_the_server_is_an_underrun() -> None:
    one = ask((0.0, HEADER + FRAME), (0.05, FRAME), (0.4, FRAME), (0.05, FRAME))
    assert (one.underruns, one.viable) == (1, False)
    assert one.worst_underrun == pytest.approx(0.45 - 0.16)


def test_a_slow_first_sound_is_not_an_underrun() -> None:
    one = ask((9.0, HEADER + FRAME), (0.05, FRAME))
    assert (one.first_audio, one.underruns, one.viable) == (9.0, 0, True)


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (429, Outcome.REFUSED),
        (503, Outcome.REFUSED),
        (404, Outcome.FAILED),
        (500, Outcome.FAILED),
        (307, Outcome.FAILED),
    ],
)
def test_refusals_are_not_failures(status: int, outcome: Outcome) -> None:
    said = json.dumps({"error": {"message": "come\nback later"}}).encode()
    one = ask((0.0, said), status=status, Content_Type="application/json")
    assert (one.outcome, one.failure) == (outcome, f"status {status}")
    assert one.detail == "come back later"


@pytest.mark.parametrize("said", [b"<html>no", b'{"error": 5}', b"[]", b"", b"\xff"])
def test_any_error_body_is_accepted(said: bytes) -> None:
    one = ask((0.0, said), status=500)
    assert one.detail == said.decode(errors="replace")


@pytest.mark.parametrize(
    ("steps", "headers", "failure"),
    [
        ([(0.0, b"{}")], {"Content_Type": "application/json"}, "content type application/json"),
        ([(0.0, b"ID3x" + FRAME)], {"Content_Type": "audio/mpeg"}, "content type audio/mpeg"),
        ([(0.0, b"ID3x" + FRAME)], {}, "no wav"),
        ([(0.0, HEADER)], {}, "no sound"),
        ([], {}, "no sound"),
        ([(0.0, HEADER + FRAME), (0.0, httpx.ReadError("reset"))], {}, "cut connection"),
        ([(0.0, httpx.ReadTimeout("slow"))], {}, "cut connection"),
    ],
)
def test_responses_without_speech_fail_by_kind(steps, headers, failure) -> None:
    one = ask(*steps, **headers)
    assert (one.outcome, one.failure) == (Outcome.FAILED, failure)
    assert not one.viable


def test_the_sample_rate_of_a_wav_comes_from_its_header() -> None:
    one = ask((0.0, wav_header(8000, None) + bytes(16_000)))
    assert one.audio == 1.0
    buffer = BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(3)
        file.setframerate(10_000)
        file.writeframes(bytes(60_000))
    assert ask((0.0, buffer.getvalue())).audio == 1.0


def test_chunks_of_other_kinds_may_come_before_the_samples() -> None:
    header = HEADER[:36] + b"LIST\x03\x00\x00\x00abc\x00" + HEADER[36:]
    assert Wav().seconds(header + FRAME) == 0.08
    with pytest.raises(NotAudio, match="without a format"):
        Wav().seconds(HEADER[:12] + HEADER[36:])
    with pytest.raises(NotAudio, match="without samples in its first 65536 bytes"):
        Wav().seconds(HEADER[:36] + b"LIST\xff\xff\xff\x00")


def test_pcm_has_the_rate_of_the_flag() -> None:
    config = attrs.evolve(ONE, format="pcm")
    assert ask((0.0, FRAME), config=config, Content_Type="audio/pcm;rate=24000").audio == 0.08
    slower = attrs.evolve(config, sample_rate=8000)
    assert ask((0.0, FRAME), config=slower, Content_Type="audio/pcm").audio == 0.24
    one = ask((0.0, FRAME), config=config, Content_Type="audio/pcm", X_Sample_Rate="8000")
    assert one.failure == "sample rate 8000, not 24000"


def sent(api: str, config: BenchConfig) -> httpx.Request:
    """The request that the client sends."""
    seen: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(500, stream=Script(Clock(), []))

    async def run() -> None:
        target = find_target("http://x", api)
        async with SpeechClient(target, config, httpx.MockTransport(handle)) as client:
            await client.speak(Recording("hello", 0.0))

    asyncio.run(run())
    return seen[0]


def test_each_route_gets_its_own_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sesame")
    request = sent("generate", ONE)
    assert json.loads(request.content) == {"text": "hello", "streaming": True, "speaker": 0}
    assert "authorization" not in request.headers
    chosen = attrs.evolve(ONE, voice="b", model="m", format="pcm", body='{"temperature": 0}')
    assert json.loads(sent("generate", chosen).content) == {
        **{"text": "hello", "streaming": True, "voice": "b", "model": "m"},
        **{"format": "pcm", "temperature": 0},
    }
    request = sent("openai", ONE)
    assert str(request.url) == "http://x/v1/audio/speech"
    assert request.headers["authorization"] == "Bearer sesame"
    assert json.loads(request.content) == {
        **{"input": "hello", "model": "tts-1", "voice": "alloy"},
        "response_format": "wav",
    }
    monkeypatch.setenv("OPENAI_API_KEY", "se\nsame")
    with pytest.raises(ConfigError, match="OPENAI_API_KEY must be printable ASCII"):
        sent("openai", ONE)


# One request, over a socket


def over_socket(
    answer: Callable[[asyncio.StreamWriter], object], timeout: float = 20.0
) -> Recording:
    """The client's recording of a server that writes this answer and closes."""

    async def run() -> Recording:
        closed = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            answer(writer)
            if timeout < 1:
                await reader.read()  # until the client has left
            writer.close()
            await writer.wait_closed()
            closed.set()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        target = find_target(f"http://127.0.0.1:{port}", None)
        async with server, SpeechClient(target, attrs.evolve(ONE, timeout=timeout)) as client:
            made = Recording("hello", client.clock())
            await client.speak(made)
            await closed.wait()
            return made

    return asyncio.run(run())


CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: audio/wav\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def test_a_whole_answer_over_a_socket_is_ok() -> None:
    one = over_socket(
        lambda writer: writer.write(CHUNKED + chunk(HEADER + FRAME) + chunk(FRAME) + chunk(b""))
    )
    assert (one.outcome, one.audio) == (Outcome.OK, pytest.approx(0.16))
    assert one.late >= 0


def test_a_cut_stream_is_a_failure_whatever_came_before() -> None:
    one = over_socket(lambda writer: writer.write(CHUNKED + chunk(HEADER + FRAME)))
    assert (one.failure, one.audio) == ("cut connection", 0.08)
    assert "incomplete" in one.detail


@pytest.mark.parametrize("began", [b"", CHUNKED, CHUNKED + chunk(HEADER + FRAME)])
def test_a_server_that_hangs_times_out(began: bytes) -> None:
    one = over_socket(lambda writer: writer.write(began), timeout=0.2)
    assert (one.outcome, one.failure) == (Outcome.FAILED, "timeout")


def test_a_closed_port_fails() -> None:
    async def run() -> Recording:
        async with SpeechClient(find_target("http://127.0.0.1:1", None), ONE) as client:
            made = Recording("hello", client.clock())
            await client.speak(made)
            return made

    one = asyncio.run(run())
    assert one.failure == "no connection"
    assert "Connect call failed" in one.detail


# Many requests


class Server:
    """Answers after some time, and records the most concurrent requests."""

    def __init__(self, seconds: float, failure: str | None = None) -> None:
        self.seconds, self.failure = seconds, failure
        self.open = self.most = 0
        self.texts: list[str] = []

    async def speak(self, recording: Recording) -> None:
        clock = asyncio.get_running_loop().time
        recording.started = clock()
        self.texts.append(recording.text)
        self.open += 1
        self.most = max(self.most, self.open)
        await asyncio.sleep(self.seconds)
        self.open -= 1
        recording.failure, recording.ended = self.failure, clock()


def run_load(config: BenchConfig, server: Server) -> Run:
    run = plan(config)[0]

    async def load() -> None:
        clock = asyncio.get_running_loop().time
        await execute(run, config, ["a", "b", "c"], server.speak, clock)

    asyncio.run(load())
    return run


def test_an_open_loop_does_not_wait_for_answers() -> None:
    server = Server(0.5)
    run = run_load(BenchConfig(rate=(200.0,), requests=30), server)
    due = [each.scheduled - run.began for each in run.recordings]
    assert due == pytest.approx(arrivals(200.0, 0, 0.0, 30))
    assert all(each.late >= 0 for each in run.recordings)
    assert server.most > 5
    assert server.texts[:4] == ["a", "b", "c", "a"]
    assert run.ended is not None
    assert all(each.ended <= run.ended for each in run.recordings if each.ended)


@pytest.mark.parametrize("amount", [{"requests": 10}, {"duration": 0.1}])
def test_a_closed_loop_has_one_request_per_client(amount: dict[str, int]) -> None:
    server = Server(0.02)
    run = run_load(BenchConfig(concurrency=(3,), **amount), server)
    assert server.most == 3
    assert len(run.recordings) == amount.get("requests", len(run.recordings)) >= 3


def test_a_refused_client_waits_before_its_next_request() -> None:
    server = Server(0.0, "status 429")
    run = run_load(BenchConfig(concurrency=(3,), duration=0.3), server)
    assert len(run.recordings) == 3


def test_a_cancelled_run_keeps_its_recordings() -> None:
    config, server = BenchConfig(rate=(200.0,), requests=30), Server(60.0)
    run = plan(config)[0]

    async def load() -> None:
        clock = asyncio.get_running_loop().time
        task = asyncio.create_task(execute(run, config, ["a"], server.speak, clock))
        while not server.open:
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(load())
    assert figures(run).unfinished == len(run.recordings) > 0


# Settings


@pytest.mark.parametrize(
    ("url", "api", "expected"),
    [
        ("http://h:1", None, ("http://h:1/generate", "generate")),
        ("http://h:1/", "openai", ("http://h:1/v1/audio/speech", "openai")),
        ("http://h:1/generate", None, ("http://h:1/generate", "generate")),
        ("https://h/v1/audio/speech/", None, ("https://h/v1/audio/speech", "openai")),
        ("http://h/v1", None, ("http://h/v1/audio/speech", "openai")),
        ("http://h/tts", "generate", ("http://h/tts/generate", "generate")),
    ],
)
def test_the_route_is_found_from_the_url(
    url: str, api: str | None, expected: tuple[str, str]
) -> None:
    assert attrs.astuple(find_target(url, api)) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["http://h/v1", "--rate", "1", "--api", "generate"], "names the route of openai"),
        (["ftp://h", "--rate", "1"], "not an http(s) URL"),
        (["h:8000", "--rate", "1"], "not an http(s) URL"),
        (["http://h:99999", "--rate", "1"], "is not a URL"),
        (["http://h\x01", "--rate", "1", "--warmup", "0"], "is not a URL"),
        (["http://u:p@h", "--rate", "1"], "not contain a user or password"),
        (["http://h?a=b", "--rate", "1"], "must not contain ?"),
        (["http://h"], "one of --rate and --concurrency"),
        (["http://h", "--rate", "1", "--concurrency", "1"], "one of --rate and --concurrency"),
        (["http://h", "--rate", "1", "0"], "rate must be above 0, at most 1000"),
        (["http://h", "--concurrency", "0"], "concurrency must be from 1 to 1000"),
        (["http://h", "--rate", "1", "--duration", "0"], "duration must be above 0"),
        (["http://h", "--rate", "1", "--duration", "1", "--requests", "1"], "not both"),
        (["http://h", "--rate", "1", "--requests", "0"], "requests must be from 1"),
        (["http://h", "--rate", "1", "--warmup", "-1"], "warmup must be from 0"),
        (["http://h", "--rate", "1", "--timeout", "nan"], "timeout must be above 0"),
        (["http://h", "--rate", "1", "--voice", "a", "--speaker", "1"], "not both"),
        (["http://h", "--rate", "1", "--api", "openai", "--speaker", "1"], "speaker is only for"),
        (["http://h", "--rate", "1", "--sample-rate", "8000"], "sample_rate is for --format pcm"),
        (["http://h", "--rate", "1", "--body", "[]"], "body must be a JSON object"),
        (["http://h", "--rate", "1", "--body", "{"], "body must be a JSON object"),
        (["http://h", "--rate", "1", "--body", '{"voice": 1}'], "body must not contain voice"),
        (["http://h", "--rate", "1", "--texts", "/no/such"], "texts: /no/such cannot be read"),
        (["http://h", "--rate", "1", "--json", "/no/such"], "/no/such cannot be written"),
        (["http://127.0.0.1:1", "--rate", "1"], "the warm-up got no connection"),
    ],
)
def test_bad_settings_get_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("vox-serve bench: ")
    assert error.count("\n") == 1
    assert message in error


def test_a_picture_needs_matplotlib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.backend_bases", None)
    picture = tmp_path / "a.png"
    assert cli.main(["bench", "http://h", "--rate", "1", "--picture", str(picture)]) == 2
    assert "pip install 'vox-serve-core[bench]'" in capsys.readouterr().err
    assert not picture.exists()


def test_a_bad_picture_format_is_refused_before_the_run(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra bench")
    assert cli.main(["bench", "http://h", "--rate", "1", "--picture", "a.doc"]) == 2
    assert "a.doc must end in one of " in capsys.readouterr().err


def test_the_built_in_texts_suit_the_demo_voice() -> None:
    texts = read_texts(None)
    assert len(set(texts)) == len(texts) >= 20
    for text in map(normalise, texts):
        assert len(text) <= 160
        assert len(text.split()) <= 25


def test_texts_are_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "texts"
    file.write_text("one\n\n  two \n", encoding="utf-8")
    assert read_texts(file) == ["one", "two"]
    for content in (b"\n \n", b"\xff"):
        file.write_bytes(content)
        with pytest.raises(ConfigError, match="texts: "):
            read_texts(file)


def test_the_client_loads_no_torch() -> None:
    program = """
import sys
import vox_serve.bench.command, vox_serve.cli
print("loaded:", *sorted({"torch", "transformers", "matplotlib"} & set(sys.modules)))
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "loaded:\n"


# Our own server


@pytest.fixture
def texts(tmp_path: Path) -> list[str]:
    file = tmp_path / "texts"
    file.write_text("9 frames\n25 frames\n", encoding="utf-8")
    return ["--texts", str(file)]


@pytest.mark.parametrize(
    ("path", "flags", "api"),
    [
        ("", ["--rate", "20", "40", "--speaker", "1"], "generate"),
        ("/generate", ["--concurrency", "2", "3", "--format", "pcm"], "generate"),
        ("/v1", ["--rate", "20", "40"], "openai"),
        ("/v1/audio/speech", ["--concurrency", "2", "3", "--format", "pcm"], "openai"),
    ],
)
def test_both_routes_of_our_server_can_be_measured(
    path: str,
    flags: list[str],
    api: str,
    texts: list[str],
    tone_server: RunningServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if api == "generate" and "pcm" in flags:
        flags = [*flags, "--sample-rate", "8000"]
    file = tmp_path / "out.json"
    arguments = [tone_server.url + path, *flags, *texts, "--requests", "6", "--json", str(file)]
    assert cli.main(["bench", *arguments]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[0].startswith(f"POST {tone_server.url}")
    assert next(row for row in rows if row.startswith("ok")).split() == ["ok", "6", "6"]
    written = json.loads(file.read_text())
    assert written["target"]["api"] == api
    assert written["server"]["health"]["models"][0]["model"] == "tone"
    assert written["settings"]["requests"] == 6
    assert not written["interrupted"]
    for run in written["runs"]:
        assert (run["ok"], run["refused"], run["failed"]) == (6, 0, 0)
        audio = [each["audio"] for each in run["recordings"]]
        assert audio == pytest.approx([0.72, 2.0] * 3)
        assert 0 < run["first_audio"]["p50"] <= run["first_audio"]["p99"]


def test_refusals_of_our_server_are_counted(
    start_server: Callable[..., RunningServer],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TONE_DELAY", "0.2")
    server = start_server(
        engine=attrs.evolve(TONE, max_batch_size=1), server=ServerConfig(port=0, max_queue=0)
    )
    assert cli.main(["bench", server.url, "--concurrency", "4", "--requests", "4"]) == 0
    shown = capsys.readouterr().out
    rows = {line[:28].strip(): line[28:].split() for line in shown.splitlines()}
    assert rows["ok"] == ["1"]
    assert rows["refused (429, 503)"] == ["3"]
    assert "at 4 clients: 3 x status 429: " in shown


def test_a_run_without_sound_has_exit_code_1(
    tone_server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "texts"
    file.write_text("unspeakable\n")
    flags = ["--rate", "50", "--requests", "2", "--texts", str(file)]
    assert cli.main(["bench", tone_server.url, *flags]) == 2
    assert "the warm-up got status 422" in capsys.readouterr().err
    assert cli.main(["bench", tone_server.url, *flags, "--warmup", "0"]) == 1
    assert "at 50 requests/s: 2 x status 422" in capsys.readouterr().out


def test_a_run_can_be_drawn(tone_server: RunningServer, texts: list[str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra bench")
    file = tmp_path / "out.png"
    flags = ["--rate", "20", "40", *texts, "--requests", "4", "--picture", str(file)]
    assert cli.main(["bench", tone_server.url, *flags]) == 0
    assert file.read_bytes().startswith(b"\x89PNG")


def test_ctrl_c_closes_the_connections_and_prints_the_figures_so_far(
    start_server: Callable[..., RunningServer], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TONE_DELAY", "0.1")
    server = start_server()
    file, written = tmp_path / "texts", tmp_path / "out.json"
    file.write_text("1 frames\n1 frames\n150 frames\n")
    command = [sys.executable, "-m", "vox_serve.cli", "bench", server.url, "--concurrency", "1"]
    command += ["--texts", str(file), "--json", str(written)]
    # The signal is ignored in background jobs of a shell, and children would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        ok = 'vox_serve_requests_total{mode="stream",model="tone",outcome="ok"}'
        # The warm-up and two requests of the run have ended; the third takes 15 s.
        until(lambda: server.metric(ok) == 3 and bool(server.client.open_requests), 30)
        process.send_signal(signal.SIGINT)
        shown, _ = process.communicate(timeout=20)
    assert process.returncode == 130
    rows = {line[:28].strip(): line[28:].split() for line in shown.splitlines()}
    assert (rows["requests"], rows["ok"], rows["stopped before their end"]) == (["3"], ["2"], ["1"])
    assert "Stopped by Ctrl-C" in shown
    assert json.loads(written.read_text())["interrupted"]
    server.wait_idle()


# The document


def test_every_flag_and_figure_is_documented() -> None:
    document = (Path(__file__).parents[1] / "docs/benchmarking.md").read_text()
    flags = [f"--{field.name.replace('_', '-')}" for field in attrs.fields(BenchConfig)]
    assert [flag for flag in flags if flag not in document] == []
    table_rows = document.partition("## What the figures mean")[2].partition("\n## ")[0]
    figures_named = [re.split(r", (?!5)| p\d\d| at worst", name)[0] for name, _ in ROWS]
    assert [name for name in figures_named if f"| {name} |" not in table_rows] == []
