"""vox-serve say: speaks one text into one file, with the engine in this process."""

from __future__ import annotations

import time
from pathlib import Path

import attrs
from tqdm import tqdm

from vox_serve.audio.formats import FORMATS, AudioFormat
from vox_serve.config import EngineConfig
from vox_serve.engine.engine import Engine
from vox_serve.engine.load import load_engine
from vox_serve.errors import ConfigError
from vox_serve.messages import Audio, Failed, Finished, SpeechRequest
from vox_serve.parts import Parts, in_parts
from vox_serve.plugins import load_plugins
from vox_serve.text import Lexicon

_NO_WORDS = Lexicon()
ENDINGS = {"ogg": "opus", "raw": "pcm"}
"""File extensions that differ from the name of their format."""


def say(
    config: EngineConfig, request: SpeechRequest, output: Path, lexicon: Lexicon = _NO_WORDS
) -> str:
    """Speak a request into the file `output`; returns a one-line summary.

    Args:
        lexicon: respellings that correct the pronunciation of words.

    Raises:
        ConfigError: the file's extension is not a format, or the file cannot be written.
        VoxServeError: unknown model, unusable checkpoint, or a text that cannot be spoken.
    """
    audio_format = format_of(output)
    existed = output.exists()
    _write(output, "ab", b"")  # check before the work, which would be lost
    try:
        config = attrs.evolve(config, max_batch_size=1)
        plugins = load_plugins(config.plugins)
        front_end = plugins.resolve(config.model).front_end
        engine, info = load_engine(config, plugins)
        start = time.monotonic()
        front_end = front_end and attrs.evolve(front_end, lexicon=lexicon)
        request = in_parts(request, info, front_end)
        pcm, reason = _speak(engine, request)
    except BaseException:
        if not existed:
            output.unlink()
        raise
    _write(output, "wb", audio_format.whole(info.sample_rate, pcm))
    seconds, spent = len(pcm) / 2 / info.sample_rate, time.monotonic() - start
    dropped = f", {request.dropped} characters left out" if request.dropped else ""
    return f"{output}: {seconds:.2f} s of audio in {spent:.2f} s, finish {reason}{dropped}"


def format_of(output: Path) -> AudioFormat:
    """The format that a file's extension selects; WAV if there is none.

    Raises:
        ConfigError: there is no such format.
    """
    name = output.suffix.lower().removeprefix(".") or "wav"
    audio_format = FORMATS.get(ENDINGS.get(name, name))
    if audio_format is None:
        names = ", ".join(FORMATS)
        raise ConfigError(f"{output}: {name!r} is not an audio format; choose from {names}")
    return audio_format


def _write(output: Path, mode: str, content: bytes) -> None:
    try:
        with output.open(mode) as file:
            file.write(content)
    except OSError as error:
        raise ConfigError(f"{output} cannot be written: {error.strerror}") from error


def _speak(engine: Engine, request: SpeechRequest) -> tuple[bytes, str]:
    """Step until all parts of the request are spoken; returns its PCM and finish reason."""
    engine.add(request)
    parts = Parts(request, engine.model.codec.frame_rate)
    pieces: list[bytes] = []
    reason = ""
    second = 2 * engine.model.codec.sample_rate
    # disable=None: a bar on a terminal, nothing in a log.
    with tqdm(desc="speaking", unit=" s", bar_format="{desc}: {n:.2f}{unit}", disable=None) as bar:
        while engine.has_work:
            for event in engine.step().events:
                if isinstance(event, Audio):
                    pieces.append(event.pcm)
                    bar.update(len(event.pcm) / second)
                elif isinstance(event, Failed):
                    raise event.error
                elif isinstance(event, Finished):
                    following = parts.after(event)
                    if isinstance(following, Finished):
                        reason = following.reason.value
                    else:
                        engine.add(following)
    return b"".join(pieces), reason
