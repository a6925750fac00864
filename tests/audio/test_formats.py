"""Encoding PCM: whole and streamed files agree; no sound is delayed and no byte is rewritten.

PyAV, which is FFmpeg, decodes from a reader that cannot seek, as a client reads a stream.
"""

from __future__ import annotations

import contextlib
import io
import wave
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import attrs
import av
import numpy as np
import pytest
import soundfile

from tests.wav import wav_header
from vox_serve.audio.formats import FORMATS, PCM_24K, Encoder, find_format
from vox_serve.errors import InvalidRequest

RATE = 24_000
TASKS = Path("/proc/self/task")
ALL = list(FORMATS)
LOSSLESS = [name for name in ALL if FORMATS[name].lossless]
ENCODED = [name for name in ALL if name not in ("wav", "pcm", "mulaw", "alaw")]

EXTRA_SAMPLES = {
    # How many more samples a decoder may return than were encoded, at the encoder's rate.
    "wav": 0,
    "pcm": 0,
    "flac": 0,
    "opus": 2,  # one sample at 24 kHz is two at 48 kHz; resampling rounds, too
    # One frame of encoder look-ahead, padding of the last frame, the decoder's filter bank.
    "mp3": 3 * 576,
    "aac": 2 * 1024,  # one frame of look-ahead, and padding of the last frame
    "mulaw": 1,  # resampling rounds
    "alaw": 1,
}


class Pipe:
    """Bytes that can be read once and in order."""

    def __init__(self, content: bytes) -> None:
        self.read = io.BytesIO(content).read


def decode(content: bytes, name: str = "") -> tuple[np.ndarray, int]:
    """Decode as much as there is: int16 mono samples `[T]`, and their rate."""
    pieces = []
    rate = 0
    raw: dict[str, Any] = {}
    if name in ("mulaw", "alaw"):  # these have no header
        raw = {"format": name, "options": {"sample_rate": "8000", "ch_layout": "mono"}}
    with av.open(Pipe(content), **raw) as container, contextlib.suppress(av.EOFError):
        to_mono = av.AudioResampler(format="s16", layout="mono")
        for frame in container.decode(audio=0):
            rate = frame.sample_rate
            pieces += [mono.to_ndarray()[0] for mono in to_mono.resample(frame)]
    return np.concatenate([np.empty(0, np.int16), *pieces]), rate


def samples_of(name: str, content: bytes) -> tuple[np.ndarray, int]:
    if name == "pcm":
        return np.frombuffer(content, "<i2"), RATE
    return decode(content, name)


def tone(seconds: float, rate: int = RATE) -> np.ndarray:
    turns = 440 * np.arange(round(seconds * rate)) / rate
    return (8000 * np.cos(2 * np.pi * turns)).astype("<i2")


def speech(count: int) -> np.ndarray:
    """A swelling tone with noise, so that no two blocks are alike."""
    turns = np.arange(count) / RATE
    noise = np.random.default_rng(7).normal(0, 500, count)
    return (8000 * np.sin(880 * np.pi * turns) * np.cos(6 * turns) ** 2 + noise).astype("<i2")


def stream(encoder: Encoder, samples: np.ndarray, pieces: list[int]) -> bytes:
    """Encode the samples in pieces of these lengths, repeated in turn."""
    out, start, turn = [], 0, 0
    while start < len(samples):
        step = pieces[turn % len(pieces)]
        out.append(encoder.encode(samples[start : start + step].tobytes()))
        start, turn = start + step, turn + 1
    return b"".join([*out, encoder.finish()])


def is_440_hz(samples: np.ndarray, rate: int) -> bool:
    middle = samples[len(samples) // 4 : -len(samples) // 4].astype(float)
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    loudness = np.sqrt(np.mean(middle**2)) / (8000 / np.sqrt(2))
    return bool(abs(spectrum.argmax() * rate / len(middle) - 440) < 2 and 0.9 < loudness < 1.1)


def test_each_format_has_its_media_type() -> None:
    assert {name: one.media_type for name, one in FORMATS.items()} == {
        "wav": "audio/wav",
        "pcm": "audio/pcm",
        "flac": "audio/flac",
        "mp3": "audio/mpeg",
        "opus": "audio/ogg",
        "aac": "audio/aac",
        "mulaw": "audio/basic",
        "alaw": "audio/PCMA",
    }
    assert LOSSLESS == ["wav", "pcm", "flac"]
    assert all(name == one.name for name, one in FORMATS.items())


@pytest.mark.parametrize("count", [1, 479, 1152, 24_077], ids=lambda n: f"{n} samples")
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_is_lossless(name: str, streamed: bool, count: int) -> None:
    samples, audio_format = speech(count), FORMATS[name]
    if streamed:
        content = stream(audio_format.encoder(RATE), samples, [480])
    else:
        content = audio_format.whole(RATE, samples.tobytes())
    decoded, rate = samples_of(name, content)
    assert rate == RATE
    np.testing.assert_array_equal(decoded, samples)


@pytest.mark.parametrize("rate", [8000, 22_050, RATE, 44_100, 96_000])
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("name", [name for name in ALL if name != "pcm"])
def test_length_and_sound(name: str, streamed: bool, rate: int) -> None:
    samples, audio_format = tone(1.01, rate), FORMATS[name]
    if streamed:
        content = stream(audio_format.encoder(rate), samples, [rate // 50])
    else:
        content = audio_format.whole(rate, samples.tobytes())
    decoded, decoded_rate = decode(content, name)
    extra = len(decoded) - len(samples) * decoded_rate / rate
    # MPEG-1, from 32 kHz on, has frames of 1152 samples.
    allowed = EXTRA_SAMPLES[name] * (2 if name == "mp3" and decoded_rate >= 32_000 else 1)
    assert -1 < extra <= allowed
    assert is_440_hz(decoded, decoded_rate)


@pytest.mark.parametrize(
    ("name", "rate", "encoded_rate"),
    [
        ("wav", 22_050, 22_050),
        ("flac", 96_000, 96_000),
        ("mp3", 22_050, 22_050),
        ("mp3", 7000, 8000),
        ("mp3", 96_000, 48_000),
        ("aac", 23_000, 24_000),
        ("aac", 96_000, 48_000),
    ],
)
def test_an_unsupported_rate_becomes_the_next_higher_one(
    name: str, rate: int, encoded_rate: int
) -> None:
    assert decode(FORMATS[name].whole(rate, tone(0.5, rate).tobytes()))[1] == encoded_rate


@pytest.mark.parametrize(("rate", "encoded_rate"), [(22_050, 24_000), (44_100, 48_000)])
def test_the_opus_header_names_the_source_rate(rate: int, encoded_rate: int) -> None:
    """Opus always decodes at 48 kHz; its header names the rate of the encoder's input."""
    content = FORMATS["opus"].whole(rate, tone(0.5, rate).tobytes())
    assert soundfile.info(io.BytesIO(content)).samplerate == encoded_rate


@pytest.mark.parametrize("name", ALL)
def test_the_size_of_pieces_does_not_change_the_sound(name: str) -> None:
    samples, audio_format = speech(RATE), FORMATS[name]
    even = samples_of(name, stream(audio_format.encoder(RATE), samples, [1920]))[0]
    odd = samples_of(name, stream(audio_format.encoder(RATE), samples, [1, 0, 333, 5000]))[0]
    np.testing.assert_array_equal(odd, even)


@pytest.mark.parametrize("rate", [7000, 8001, 22_050, 44_100])
def test_resampling_does_not_depend_on_pieces(rate: int) -> None:
    samples, two_rates = tone(1.01, rate), attrs.evolve(FORMATS["pcm"], rates=(8000, RATE))
    even = np.frombuffer(stream(two_rates.encoder(rate), samples, [1920]), "<i2")
    odd = np.frombuffer(stream(two_rates.encoder(rate), samples, [1, 0, 333, 5000]), "<i2")
    known = 8000 if rate < 8000 else RATE
    assert len(even) == len(odd) == pytest.approx(1.01 * known, abs=1)
    np.testing.assert_allclose(odd, even, atol=3)
    np.testing.assert_allclose(even[500:-500], tone(1.01, known)[500 : len(even) - 500], atol=40)


@pytest.mark.parametrize(
    ("name", "milliseconds"),
    [
        ("wav", 10),
        ("pcm", 10),
        ("flac", 50),  # a block of 1152 samples, and one more to know that it is not the last block
        ("mp3", 80),  # frames of 24 ms: one of look-ahead, and the encoder takes whole frames
        ("opus", 40),  # a page of 20 ms, and look-ahead
        ("aac", 130),  # frames of 43 ms: one of look-ahead, and two overlap
    ],
)
def test_the_first_sound_is_not_held_back(name: str, milliseconds: int) -> None:
    """The limit is on the input needed before the output decodes to audible sound."""
    encoder, samples, content = FORMATS[name].encoder(RATE), tone(0.5), b""
    for end in range(10, 510, 10):
        content += encoder.encode(samples[(end - 10) * 24 : end * 24].tobytes())
        with contextlib.suppress(av.InvalidDataError, av.EOFError):  # too short to probe
            if np.abs(samples_of(name, content)[0].astype(int)).max(initial=0) > 3000:
                break
    encoder.close()
    assert end <= milliseconds


@pytest.mark.parametrize(
    ("name", "milliseconds"),
    [("wav", 10), ("pcm", 10), ("flac", 50), ("mp3", 30), ("opus", 20), ("aac", 50)],
)
def test_sound_leaves_steadily(name: str, milliseconds: int) -> None:
    """The limit is on the longest stretch of input that produces no output."""
    encoder, samples = FORMATS[name].encoder(RATE), speech(6 * RATE)
    left = [bool(encoder.encode(samples[i : i + 240].tobytes())) for i in range(0, 6 * RATE, 240)]
    encoder.close()
    ends = np.flatnonzero(left)
    assert 10 * np.diff(ends).max() <= milliseconds


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("name", ALL)
def test_empty_audio_makes_a_valid_file(name: str, streamed: bool) -> None:
    """It holds one silent sample if the format cannot hold none."""
    audio_format = FORMATS[name]
    if streamed:
        encoder = audio_format.encoder(RATE)
        content = encoder.encode(b"") + encoder.finish()
    else:
        content = audio_format.whole(RATE, b"")
    if name in ("pcm", "mulaw", "alaw"):
        assert content == b""
        return
    decoded, _ = decode(content, name)
    assert not decoded.any()
    assert len(decoded) <= max(1, EXTRA_SAMPLES[name])
    if name == "wav":
        assert content == wav_header(RATE, 0)


def test_whole_files_know_their_length() -> None:
    pcm = speech(10_000).tobytes()
    with wave.open(io.BytesIO(FORMATS["wav"].whole(RATE, pcm))) as file:
        assert file.getparams()[:4] == (1, 2, RATE, 10_000)
        assert file.readframes(20_000) == pcm
    assert FORMATS["wav"].whole(RATE, pcm) == wav_header(RATE, 20_000) + pcm
    assert soundfile.info(io.BytesIO(FORMATS["flac"].whole(RATE, pcm))).frames == 10_000
    mp3 = io.BytesIO(FORMATS["mp3"].whole(RATE, pcm))
    assert soundfile.info(mp3).frames == 10_000
    mp3.seek(0)
    with av.open(mp3) as file:
        assert sum(frame.samples for frame in file.decode(audio=0)) == 10_000


@pytest.mark.parametrize("name", [name for name in ALL if name != "mp3"])
def test_whole_and_streamed_have_the_same_length(name: str) -> None:
    pcm = speech(10_000).tobytes()
    encoder = FORMATS[name].encoder(RATE)
    pieces = [encoder.encode(pcm[start : start + 3840]) for start in range(0, len(pcm), 3840)]
    whole, streamed = FORMATS[name].whole(RATE, pcm), b"".join(pieces) + encoder.finish()
    if name == "pcm":
        assert whole == streamed == pcm
    else:
        assert len(decode(whole, name)[0]) == len(decode(streamed, name)[0])


def test_a_streamed_wav_has_an_unknown_length() -> None:
    samples = speech(1000)
    encoder = FORMATS["wav"].encoder(RATE)
    assert encoder.encode(b"") == b""  # the header comes with sound
    assert encoder.encode(samples.tobytes()) == wav_header(RATE, None) + samples.tobytes()
    assert encoder.encode(samples.tobytes()) == samples.tobytes()
    assert encoder.finish() == b""


@pytest.mark.parametrize("name", ["mp3", "aac"])
def test_a_stream_has_the_announced_bit_rate(name: str) -> None:
    """Players estimate the duration from it.  Each mp3 frame has it, aac on average."""
    content = stream(FORMATS[name].encoder(RATE), speech(10 * RATE), [1920])
    assert 8 * len(content) / 10 == pytest.approx(64_000, rel=0.05)


@pytest.mark.parametrize("name", ALL)
def test_a_closed_encoder_refuses_more(name: str) -> None:
    encoder = FORMATS[name].encoder(RATE)
    encoder.encode(bytes(200))
    encoder.finish()
    encoder.close()
    for use in (lambda: encoder.encode(b"\0\0"), encoder.finish):
        with pytest.raises(ValueError, match="closed"):
            use()


@pytest.mark.parametrize("count", [0, 2000])
@pytest.mark.parametrize("name", ALL)
def test_an_encoder_can_be_closed_before_its_end(name: str, count: int) -> None:
    encoder = FORMATS[name].encoder(RATE)
    encoder.encode(bytes(2 * count))
    encoder.close()
    encoder.close()
    with pytest.raises(ValueError, match="closed"):
        encoder.encode(b"\0\0")


@pytest.mark.parametrize("name", ENCODED)
def test_native_resources_are_freed_at_once(name: str) -> None:
    encoder = FORMATS[name].encoder(RATE)
    encoder.encode(bytes(2000))
    encoder.close()
    assert encoder._container is None
    assert "_stream" not in vars(encoder)


@pytest.mark.skipif(not TASKS.exists(), reason="counts threads in /proc")
@pytest.mark.parametrize("name", ALL)
def test_threads_end_with_the_encoder(name: str) -> None:
    """Only PyAV's resampler starts threads; wav and pcm do not use it."""
    before = len(list(TASKS.iterdir()))
    encoder = FORMATS[name].encoder(RATE)
    encoder.encode(speech(RATE).tobytes())
    extra = len(list(TASKS.iterdir())) - before
    assert extra <= (0 if name in ("wav", "pcm") else 16)
    encoder.close()
    assert len(list(TASKS.iterdir())) == before


@pytest.mark.parametrize("name", ALL)
def test_half_a_sample_is_refused(name: str) -> None:
    encoder = FORMATS[name].encoder(RATE)
    with pytest.raises(ValueError, match="3 bytes"):
        encoder.encode(b"abc")
    encoder.close()
    with pytest.raises(ValueError, match="3 bytes"):
        FORMATS[name].whole(RATE, b"abc")


@pytest.mark.parametrize("name", ALL)
def test_an_encoder_may_move_from_thread_to_thread(name: str) -> None:
    samples = speech(RATE)
    alone = samples_of(name, stream(FORMATS[name].encoder(RATE), samples, [480]))[0]
    encoder = FORMATS[name].encoder(RATE)
    content = b""
    with contextlib.ExitStack() as threads:
        pools = [threads.enter_context(ThreadPoolExecutor(1)) for _ in range(3)]
        for turn, start in enumerate(range(0, RATE, 480)):
            piece = samples[start : start + 480].tobytes()
            content += pools[turn % 3].submit(encoder.encode, piece).result()
        content += pools[1].submit(encoder.finish).result()
    np.testing.assert_array_equal(samples_of(name, content)[0], alone)


@pytest.mark.parametrize("name", ALL)
def test_encoded_bytes_are_not_kept(name: str) -> None:
    encoder = FORMATS[name].encoder(RATE)
    for _ in range(100):
        encoder.encode(speech(2400).tobytes())
        assert encoder._file.tell() <= 90, "more than a header is kept"
    encoder.close()


@pytest.mark.parametrize("rate", [8000, 22_050, 24_000, 48_000])
@pytest.mark.parametrize("name", ALL)
def test_the_first_bytes_carry_sound(name: str, rate: int) -> None:
    """The header is sent together with the first packet of sound, and soon."""
    encoder = FORMATS[name].encoder(rate)
    samples, first = tone(1.0, rate), encoder.encode(b"")
    step = rate * 8 // 100
    for start in range(0, len(samples), step):
        assert not first
        first = encoder.encode(samples[start : start + step].tobytes())
        if first:
            break
    rest = encoder.encode(samples[start + step :].tobytes()) + encoder.finish()
    assert start <= 4 * step, "the first sound is held back"
    if name not in ("pcm", "mulaw", "alaw"):
        with av.open(Pipe(first + rest)) as file:
            packet = next(file.demux(audio=0))
        assert packet.pos is not None
        size = 2 if name == "wav" else packet.size  # ffmpeg chooses the packets of a wav
        assert 0 < size <= len(first) - packet.pos


def test_pcm_24k_has_24_khz_at_every_rate_of_the_model() -> None:
    for rate in (8000, 24_000, 44_100):
        content = PCM_24K.whole(rate, tone(1.0, rate).tobytes())
        decoded = np.frombuffer(content, "<i2")
        assert abs(len(decoded) - 24_000) <= 1
        assert is_440_hz(decoded, 24_000)
        assert PCM_24K.rate(rate) == 24_000
    assert PCM_24K.whole(24_000, b"abcd") == b"abcd"


def test_formats_are_found_by_name() -> None:
    assert find_format("opus", "response_format") is FORMATS["opus"]
    with pytest.raises(InvalidRequest, match=r"^response_format must be one of wav.*'x'") as caught:
        find_format("x", "response_format")
    assert caught.value.param == "response_format"
