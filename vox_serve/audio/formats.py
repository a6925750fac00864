"""Encodes 16-bit mono PCM in the format a client asked for, whole or as a stream.

PyAV (ffmpeg) does the encoding.  Each format is one row of `FORMATS`.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import attrs
import av
import numpy as np
import numpy.typing as npt
from av.audio.stream import AudioStream
from av.container import OutputContainer

from vox_serve.audio.stretch import Stretch, check_speed, frame_of
from vox_serve.errors import InvalidRequest

SAMPLE_BYTES = 2
MIN_RATE, MAX_RATE = 8000, 48_000
RATE_RULE = f"from {MIN_RATE} to {MAX_RATE}"
"""Sample rates that a client may ask for, in Hz."""


@attrs.frozen
class AudioFormat:
    """A format that the server can send.

    Args:
        name: the value of the request's `format`.
        media_type: Content-Type.
        container: ffmpeg's name of the file format.
        codec: ffmpeg's name of the encoder.
        lossless: decoding gives back exactly the samples that were encoded.
        rates: sample rates that the format supports, in Hz, ascending; empty: any.
        codec_options: for ffmpeg.
        container_options: for ffmpeg.
    """

    name: str
    media_type: str
    container: str
    codec: str
    lossless: bool = False
    rates: tuple[int, ...] = ()
    codec_options: Mapping[str, str] = attrs.field(factory=dict)
    container_options: Mapping[str, str] = attrs.field(factory=dict)

    def rate(self, sample_rate: int) -> int:
        """The output's sample rate in Hz: the next higher that is supported, else the highest."""
        if not self.rates:
            return sample_rate
        return min((r for r in self.rates if r >= sample_rate), default=self.rates[-1])

    def at(self, sample_rate: int | None) -> AudioFormat:
        """The format at this sample rate in Hz; None leaves the rate to the model.

        Raises:
            InvalidRequest: the format does not have it.
        """
        if sample_rate is None:
            return self
        if not MIN_RATE <= sample_rate <= MAX_RATE:
            raise InvalidRequest(
                f"sample_rate must be {RATE_RULE}, not {sample_rate}", "sample_rate"
            )
        if self.rates and sample_rate not in self.rates:
            known = ", ".join(map(str, self.rates))
            raise InvalidRequest(
                f"sample_rate of {self.name} must be one of {known}, not {sample_rate}",
                "sample_rate",
            )
        return attrs.evolve(self, rates=(sample_rate,), lossless=False)

    def encoder(self, sample_rate: int, speed: float = 1.0) -> Encoder:
        """An encoder for a stream of unknown length; see `Encoder`."""
        return Encoder(self, sample_rate, speed)

    def whole(self, sample_rate: int, pcm: bytes, speed: float = 1.0) -> bytes:
        """Encode `pcm` as a complete file; wav, flac and mp3 state its true length.

        Raises:
            InvalidRequest: the speed is out of range.
            ValueError: `pcm` ends within a sample.
        """
        with contextlib.closing(Encoder(self, sample_rate, speed, whole=True)) as encoder:
            second = sample_rate * SAMPLE_BYTES
            for start in range(0, len(pcm), second):
                encoder.encode(pcm[start : start + second])
            return encoder.finish()


class Encoder:
    """Encodes mono PCM as one file.

    A stream cannot change bytes that were already returned, so a header that should state the
    length says "unknown".  Without any samples, the file has one silent sample, or none if the
    format can be empty (wav, pcm).  Different threads may use an encoder, but one at a time.

    Args:
        audio_format: the output format.
        sample_rate: of the PCM, in Hz.  It is resampled if the format lacks this rate.
        speed: speaking rate; the pitch is unchanged.
        whole: return nothing before `finish`, then the file with its true length.

    Raises:
        InvalidRequest: the speed is out of range.
    """

    def __init__(
        self, audio_format: AudioFormat, sample_rate: int, speed: float = 1.0, whole: bool = False
    ) -> None:
        check_speed(speed)
        self._format = audio_format
        self._sample_rate = sample_rate
        self._whole = whole
        self._count = 0  # samples written
        self._stretch = None if speed == 1 else Stretch(sample_rate, speed)
        self._file = io.BytesIO()
        # ffmpeg rewrites the header if it can seek in its target.
        target: Any = self._file if whole else SimpleNamespace(write=self._file.write)
        options = {"flush_packets": "1", "fflags": "+bitexact", **audio_format.container_options}
        self._container: OutputContainer | None = av.open(
            target, "w", format=audio_format.container, options=options
        )
        rate = audio_format.rate(sample_rate)
        stream = self._container.add_stream(
            audio_format.codec, rate=rate, layout="mono", options=dict(audio_format.codec_options)
        )
        assert isinstance(stream, AudioStream)
        # Keep the codec from starting threads.  PyAV's resampler still does; that cannot be set.
        stream.codec_context.thread_count = 1
        self._stream = stream
        self._container.start_encoding()
        self._header_bytes = self._file.tell()

    def encode(self, pcm: bytes) -> bytes:
        """Encode 16-bit little-endian samples; returns what is ready, which may be nothing.

        The first bytes returned contain audio, not just a header.

        Raises:
            ValueError: `pcm` ends within a sample, or the encoder is closed.
        """
        if len(pcm) % SAMPLE_BYTES:
            raise ValueError(f"{len(pcm)} bytes are not a whole number of 16-bit samples")
        samples = np.frombuffer(pcm, "<i2")
        self._write(samples if self._stretch is None else self._stretch.feed(samples))
        if self._whole or self._file.tell() <= self._header_bytes:
            return b""
        return self._take()

    def finish(self) -> bytes:
        """Return the remaining bytes and close the encoder.

        Raises:
            ValueError: the encoder is closed.
        """
        container = self._opened()
        try:
            if self._stretch is not None:
                self._write(self._stretch.finish())
            if not self._count:
                if not self._whole:  # nothing was returned yet, so the header can still be right
                    return self._format.whole(self._sample_rate, b"")
                if not self._format.codec.startswith("pcm_"):
                    self._write(np.zeros(1, np.int16))
            container.mux(self._stream.encode(None))
        finally:
            self.close()
        return self._take()

    def close(self) -> None:
        """Free the encoder, even in mid-stream.  May be called more than once."""
        if self._container is not None:
            self._container.close()  # also writes the end of the file
            self._container = self._stretch = None
            del self._stream  # frees the codec

    def _opened(self) -> OutputContainer:
        if self._container is None:
            raise ValueError("the encoder is closed")
        return self._container

    def _write(self, samples: npt.NDArray[np.int16]) -> None:
        container = self._opened()
        if len(samples):
            frame = frame_of(samples, self._sample_rate)
            frame.pts = self._count
            self._count += len(samples)
            container.mux(self._stream.encode(frame))

    def _take(self) -> bytes:
        """Everything written since the last call."""
        content = self._file.getvalue()
        self._file.seek(0)
        self._file.truncate()
        self._header_bytes = 0  # it has been returned
        return content


MPEG_RATES = (8000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
OPUS_RATES = (8000, 12_000, 16_000, 24_000, 48_000)

FORMATS = {
    one.name: one
    for one in (
        AudioFormat("wav", "audio/wav", "wav", "pcm_s16le", lossless=True),
        AudioFormat("pcm", "audio/pcm", "s16le", "pcm_s16le", lossless=True),
        AudioFormat(
            "flac",
            "audio/flac",
            "flac",
            "flac",
            lossless=True,
            # Not 4608: sound after 50 ms instead of 200.
            codec_options={"frame_size": "1152"},
            container_options={"metadata_header_padding": "0"},  # instead of 8 KiB
        ),
        AudioFormat(
            "mp3",
            "audio/mpeg",
            "mp3",
            "libmp3lame",
            rates=MPEG_RATES,
            # Without a reservoir, a frame can be decoded when it arrives.
            codec_options={"b": "64000", "reservoir": "0"},
            container_options={"id3v2_version": "0"},
        ),
        AudioFormat(
            "opus",
            "audio/ogg",
            "ogg",
            "libopus",
            rates=OPUS_RATES,
            codec_options={"b": "40000"},
            container_options={"page_duration": "20000"},  # in microseconds; instead of a second
        ),
        AudioFormat(
            "aac",
            "audio/aac",
            "adts",
            "aac",
            rates=MPEG_RATES,
            codec_options={"b": "64000"},
        ),
        # Of telephony: a byte per sample, without a header (ITU-T G.711).
        AudioFormat("mulaw", "audio/basic", "mulaw", "pcm_mulaw", rates=(8000,)),
        AudioFormat("alaw", "audio/PCMA", "alaw", "pcm_alaw", rates=(8000,)),
    )
}
ALIASES = {
    "ogg": "opus",
    "ulaw": "mulaw",
    "g711_ulaw": "mulaw",
    "g711_alaw": "alaw",
    "raw": "pcm",
}
"""Other names of formats, as clients of other servers and endings of files have them."""
PCM_24K = FORMATS["pcm"].at(24_000)
"""The `pcm` of OpenAI's API, whose clients assume 24 kHz."""


def find_format(name: str, field: str) -> AudioFormat:
    """The format that a request asks for in `field`.  Raises InvalidRequest if there is none."""
    found = FORMATS.get(ALIASES.get(name, name))
    if found is None:
        raise InvalidRequest(
            f"{field} must be one of {', '.join(FORMATS)}, not {name[:40]!r}", field
        )
    return found
