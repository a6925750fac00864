"""vox-serve say: one text into one file, with the engine in this process."""

from __future__ import annotations

import time
from pathlib import Path

import attrs
from tqdm import tqdm

from vox_serve.config import EngineConfig
from vox_serve.engine.engine import Engine
from vox_serve.engine.load import load_engine
from vox_serve.engine.messages import Audio, Failed, Finished, SpeechRequest
from vox_serve.errors import ConfigError
from vox_serve.plugins import load_plugins
from vox_serve.server.audio import FORMATS


def say(config: EngineConfig, text: str, speaker: int, voice: str | None, output: Path) -> str:
    """Speak `text` into the WAV file `output`; returns a line that says how it went.

    Raises:
        VoxServeError: unknown model, unusable checkpoint, or a text that cannot be spoken.
    """
    existed = output.exists()
    _write(output, "ab", b"")  # before the work, so that none is lost
    try:
        config = attrs.evolve(config, max_batch_size=1)
        engine, info = load_engine(config, load_plugins(config.plugins))
        start = time.monotonic()
        pcm, reason = _speak(engine, SpeechRequest("say", text, speaker, voice))
    except BaseException:
        if not existed:
            output.unlink()
        raise
    _write(output, "wb", FORMATS["wav"].header(info.sample_rate, len(pcm)) + pcm)
    seconds, spent = len(pcm) / 2 / info.sample_rate, time.monotonic() - start
    return f"{output}: {seconds:.2f} s of audio in {spent:.2f} s, finish {reason}"


def _write(output: Path, mode: str, content: bytes) -> None:
    try:
        with output.open(mode) as file:
            file.write(content)
    except OSError as error:
        raise ConfigError(f"{output} cannot be written: {error.strerror}") from error


def _speak(engine: Engine, request: SpeechRequest) -> tuple[bytes, str]:
    """Step until the request is spoken; returns its PCM and finish reason."""
    engine.add(request)
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
                    reason = event.reason.value
    return b"".join(pieces), reason
