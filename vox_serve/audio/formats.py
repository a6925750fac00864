"""PCM to what a client asked for, whole or while it is made.

What comes in is always 16-bit little-endian mono PCM, in whole samples.  Nothing here knows
requests or HTTP.

A streamed encoder never takes back what it gave out.  Formats whose header names the length
say "unknown" there (wav, flac); a whole file has the true one.  An mp3 says nothing, either way.
"""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import attrs
import numpy as np
import soundfile
import soxr

from vox_serve.errors import InvalidRequest

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import OutputContainer

UNKNOWN_SIZE = 0xFFFFFFFF
HEADER_BYTES = 44
SAMPLE_BYTES = 2

MPEG_RATES = (8000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
OPUS_RATES = (8000, 12_000, 16_000, 24_000, 48_000)

SFC_SET_OGG_PAGE_LATENCY_MS = 0x1302  # sndfile.h
OGG_PAGE_MS = 50.0
"""Sound in one Ogg page, in milliseconds; libsndfile takes 50 to 1600 and means 1000."""


class Encoder(Protocol):
    """PCM to the bytes of one stream.

    One request uses it, from one thread at a time; the threads may differ.  After `finish` or
    `close`, `encode` and `finish` raise ValueError.
    """

    @property
    def sounding(self) -> bool:
        """Has any sound been given out, and not a header alone?"""

    def encode(self, pcm: bytes) -> bytes:
        """Take 16-bit little-endian mono samples; give what is ready, which may be nothing.

        Raises:
            ValueError: half a sample, or the encoder is closed.
        """

    def finish(self) -> bytes:
        """The rest; closes the encoder."""

    def close(self) -> None:
        """Free what it holds, also in the middle of a stream.  May be called again."""


def wav_header(sample_rate: int, data_bytes: int | None) -> bytes:
    """The 44-byte header of 16-bit mono PCM.

    `data_bytes` None is a stream whose length is not known yet: both size fields then hold
    0xFFFFFFFF, which readers take for "to the end of the file"; a 0 reads as empty.
    """
    riff, data = UNKNOWN_SIZE, UNKNOWN_SIZE
    if data_bytes is not None:
        riff, data = data_bytes + HEADER_BYTES - 8, data_bytes
    fmt = (16, 1, 1, sample_rate, sample_rate * 2, 2, 16)
    return struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", riff, b"WAVE", b"fmt ", *fmt, b"data", data)


def require_av(what: str, extra: str, param: str) -> None:
    """Is PyAV here, which only some formats and speeds need?

    Raises:
        InvalidRequest: it is not; names the field and the extra to install.
    """
    try:
        import av  # noqa: F401  # whether it loads is the question
    except ImportError:
        raise InvalidRequest(
            f"{what} needs PyAV, which this server lacks: pip install 'vox-serve-core[{extra}]'",
            param,
        ) from None


class _Output:
    """The file that an encoder writes, in memory; what was taken has left for good.

    Encoders go back to the header when they know the length.  Bytes that still wait here are
    changed, those that left are not.
    """

    def __init__(self) -> None:
        self._waiting = bytearray()
        self._taken = 0
        self._position = 0

    def take(self) -> bytes:
        """All that was written since the last call."""
        taken = bytes(self._waiting)
        self._taken += len(taken)
        self._waiting.clear()
        return taken

    def write(self, data: bytes) -> int:
        start = self._position - self._taken
        kept = data[max(0, -start) :]
        start = max(0, start)
        self._waiting[start : start + len(kept)] = kept
        self._position += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        end = self._taken + len(self._waiting)
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: end}[whence]
        self._position = origin + offset
        return self._position

    def tell(self) -> int:
        return self._position


class _Encoder:
    """What all formats share: resampling, silence for nothing, an end.

    A subclass writes into `_output`.  Where the format does not know the sample rate, the
    sound is resampled to the next one that it knows, or to its highest.

    Args:
        sample_rate: of the PCM, in Hz.

    Raises:
        InvalidRequest: this installation lacks the format.
    """

    rates: ClassVar[tuple[int, ...]] = ()
    """Sample rates that the format knows, ascending; none: any."""
    needs_sample: ClassVar[bool] = True
    """A file without a single sample is no file: it gets one, of silence."""
    _header_bytes: int = 0
    """How much of the output comes before the sound."""

    def __init__(self, sample_rate: int) -> None:
        self.check()
        self._output = _Output()
        self._closed = False
        self._wrote = False
        self._rate = self.rate(sample_rate)
        self._resampler: Any = None
        if self._rate != sample_rate:
            self._resampler = soxr.ResampleStream(sample_rate, self._rate, 1, dtype="int16")

    @classmethod
    def check(cls) -> None:
        """Raises InvalidRequest if this installation lacks the format."""

    @classmethod
    def rate(cls, sample_rate: int) -> int:
        """The sample rate of what comes out, in Hz."""
        if not cls.rates or sample_rate in cls.rates:
            return sample_rate
        return min((r for r in cls.rates if r > sample_rate), default=cls.rates[-1])

    @property
    def sounding(self) -> bool:
        return self._output.tell() > self._header_bytes

    def encode(self, pcm: bytes) -> bytes:
        self._feed(pcm)
        return self._output.take()

    def finish(self) -> bytes:
        self._feed(b"", last=True)
        try:
            if self.needs_sample and not self._wrote:
                self._write(bytes(SAMPLE_BYTES))
            self._end()
        finally:
            self.close()
        return self._output.take()

    def whole(self, pcm: bytes) -> bytes:
        """The file of `pcm`; nothing has left when the header is known."""
        self._feed(pcm)
        return self.finish()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._free()

    def _feed(self, pcm: bytes, last: bool = False) -> None:
        if self._closed:
            raise ValueError("the encoder is closed")
        if len(pcm) % SAMPLE_BYTES:
            raise ValueError(f"{len(pcm)} bytes are no whole number of 16-bit samples")
        if self._resampler is not None:
            samples = np.frombuffer(pcm, np.int16)
            pcm = self._resampler.resample_chunk(samples, last=last).tobytes()
        if pcm:
            self._wrote = True
            self._write(pcm)

    def _write(self, pcm: bytes) -> None:
        """Encode at least one sample, at `_rate`."""
        raise NotImplementedError

    def _end(self) -> None:
        """Write what remains, and the final header."""

    def _free(self) -> None:
        """Let go of native resources; also after `_end`."""


class _Pcm(_Encoder):
    needs_sample = False

    def _write(self, pcm: bytes) -> None:
        self._output.write(pcm)


class _Pcm24k(_Pcm):
    rates = (24_000,)


class _Wav(_Pcm):
    _header_bytes = HEADER_BYTES

    def _write(self, pcm: bytes) -> None:
        if not self._output.tell():
            self._output.write(wav_header(self._rate, None))
        self._output.write(pcm)

    def _end(self) -> None:
        data_bytes = max(0, self._output.tell() - HEADER_BYTES)
        self._output.seek(0)
        self._output.write(wav_header(self._rate, data_bytes))


class _Libsndfile(_Encoder):
    container: ClassVar[str]
    subtype: ClassVar[str]
    settings: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, sample_rate: int) -> None:
        super().__init__(sample_rate)
        self._file: Any = soundfile.SoundFile(
            self._output,
            "w",
            self._rate,
            channels=1,
            format=self.container,
            subtype=self.subtype,
            **self.settings,
        )

    @classmethod
    def check(cls) -> None:
        if not soundfile.check_format(cls.container, cls.subtype):
            raise InvalidRequest(
                f"this server's libsndfile cannot write {cls.container} {cls.subtype}; "
                "version 1.1 or newer can",
                "format",
            )

    def _write(self, pcm: bytes) -> None:
        if not self._output.tell():  # one sample fills no block: what it makes is the header
            self._file.buffer_write(pcm[:SAMPLE_BYTES], "int16")
            self._header_bytes = self._output.tell()
            pcm = pcm[SAMPLE_BYTES:]
        if pcm:
            self._file.buffer_write(pcm, "int16")

    def _end(self) -> None:
        self._file.close()

    def _free(self) -> None:
        self._file.close()


class _Flac(_Libsndfile):
    container, subtype = "FLAC", "PCM_16"
    # Blocks of 1152 samples instead of 4096: sound after 50 ms instead of 170, 5 % more bytes.
    settings: ClassVar[Mapping[str, Any]] = {"compression_level": 0.0}


class _Mp3(_Libsndfile):
    container, subtype = "MP3", "MPEG_LAYER_III"
    rates = MPEG_RATES
    # A constant rate, so that players guess the length of a stream right: 64 kbit/s from 16 kHz
    # on, 128 from 32 kHz on, 24 below.
    settings: ClassVar[Mapping[str, Any]] = {"bitrate_mode": "CONSTANT", "compression_level": 0.632}

    def whole(self, pcm: bytes) -> bytes:
        """As streamed, without libsndfile's Info header: with it players cut the encoder's 70 ms
        off, so that whole and streamed would differ in length, and ffmpeg doubts the file."""
        return self.encode(pcm) + self.finish()


class _Opus(_Libsndfile):
    container, subtype = "OGG", "OPUS"
    rates = OPUS_RATES

    def __init__(self, sample_rate: int) -> None:
        super().__init__(sample_rate)
        _shorten_pages(self._file)


def _shorten_pages(file: Any) -> None:
    """Let Ogg pages end after OGG_PAGE_MS.

    soundfile has no public way to say this.  Should these names of it change, pages get as long
    as libsndfile likes, which the test of the first sound's delay notices; the sound stays right.
    """
    with contextlib.suppress(AttributeError):
        latency, size = soundfile._ffi.new("double *", OGG_PAGE_MS), soundfile._ffi.sizeof("double")
        soundfile._snd.sf_command(file._file, SFC_SET_OGG_PAGE_LATENCY_MS, latency, size)


class _Aac(_Encoder):
    """AAC-LC in ADTS frames of 1024 samples."""

    rates = MPEG_RATES

    def __init__(self, sample_rate: int) -> None:
        super().__init__(sample_rate)
        import av

        self._container: OutputContainer = av.open(self._output, "w", format="adts")
        self._stream: AudioStream = self._container.add_stream(
            "aac", rate=self._rate, layout="mono"
        )
        self._stream.bit_rate = min(64_000, 3 * self._rate)

    @classmethod
    def check(cls) -> None:
        require_av("format aac", "aac", "format")

    def _write(self, pcm: bytes) -> None:
        import av

        samples = np.frombuffer(pcm, np.int16)[None]
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate = self._rate
        self._container.mux(self._stream.encode(frame))

    def _end(self) -> None:
        self._container.mux(self._stream.encode(None))

    def _free(self) -> None:
        self._container.close()
        del self._container, self._stream  # the codec and its threads live as long as these


@attrs.frozen
class AudioFormat:
    """How PCM leaves the server.

    Args:
        name: the value of the request's `format`.
        media_type: Content-Type.
        lossless: the samples that a client decodes are those that went in.
    """

    name: str
    media_type: str
    lossless: bool
    _kind: type[_Encoder]

    @property
    def is_raw(self) -> bool:
        """Are the samples sent as they are, at no cost?"""
        return issubclass(self._kind, _Pcm) and not self._kind.rates

    def rate(self, sample_rate: int) -> int:
        """The sample rate of what comes out, in Hz."""
        return self._kind.rate(sample_rate)

    def check(self) -> None:
        """Can this installation make it?

        Raises:
            InvalidRequest: it cannot; names the field `format` and what to install.
        """
        self._kind.check()

    def encoder(self, sample_rate: int) -> Encoder:
        """For a stream whose length is not known yet.

        No samples at all make a file of a single silent one, except for wav and pcm.

        Args:
            sample_rate: of the PCM, in Hz.  Formats that do not know it get the sound
                resampled to the next one that they know.

        Raises:
            InvalidRequest: as `check`.
        """
        return self._kind(sample_rate)

    def whole(self, sample_rate: int, pcm: bytes) -> bytes:
        """The complete file of 16-bit little-endian mono `pcm`, with its true length.

        Raises:
            InvalidRequest: as `check`.
            ValueError: half a sample.
        """
        encoder = self._kind(sample_rate)
        with contextlib.closing(encoder):
            return encoder.whole(pcm)


FORMATS = {
    one.name: one
    for one in (
        AudioFormat("wav", "audio/wav", lossless=True, kind=_Wav),
        AudioFormat("pcm", "audio/pcm", lossless=True, kind=_Pcm),
        AudioFormat("flac", "audio/flac", lossless=True, kind=_Flac),
        AudioFormat("mp3", "audio/mpeg", lossless=False, kind=_Mp3),
        AudioFormat("opus", "audio/ogg", lossless=False, kind=_Opus),
        AudioFormat("aac", "audio/aac", lossless=False, kind=_Aac),
    )
}
PCM_24K = AudioFormat("pcm", "audio/pcm", lossless=False, kind=_Pcm24k)
"""The `pcm` of OpenAI's API, whose clients take for granted that it is 24 kHz."""


def find_format(name: str, field: str) -> AudioFormat:
    """The format that a request asks for in `field`.

    Raises:
        InvalidRequest: there is none of that name, or this installation lacks it.
    """
    if name not in FORMATS:
        raise InvalidRequest(
            f"{field} must be one of {', '.join(FORMATS)}, not {name[:40]!r}", field
        )
    try:
        FORMATS[name].check()
    except InvalidRequest as error:
        raise InvalidRequest(error.message, field) from error
    return FORMATS[name]
