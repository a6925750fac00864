"""vox-serve say: speaks one text into a file, a pipe or the speakers, without a server."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import attrs
from tqdm import tqdm

from vox_serve.audio.formats import ALIASES, FORMATS, AudioFormat, find_format
from vox_serve.config import EngineConfig
from vox_serve.engine.engine import Engine
from vox_serve.engine.load import load_engine
from vox_serve.errors import ConfigError
from vox_serve.messages import Audio, Failed, Finished, SpeechRequest
from vox_serve.parts import Parts, in_parts
from vox_serve.plugins import load_plugins
from vox_serve.text import Lexicon, with_lexicon

_NO_WORDS = Lexicon()
STANDARD = Path("-")
"""Standard output."""
PLAYERS = (
    ("afplay", "{file}"),  # macOS
    ("pw-play", "{file}"),
    ("paplay", "{file}"),
    ("aplay", "-q", "{file}"),
    ("ffplay", "-nodisp", "-autoexit", "-loglevel", "error", "{file}"),
    ("play", "-q", "{file}"),  # sox
)
"""Programs that play a WAV file; the first one installed is used."""


def say(
    config: EngineConfig,
    request: SpeechRequest,
    output: Path | None,
    lexicon: Lexicon = _NO_WORDS,
    format: str | None = None,
    sample_rate: int | None = None,
) -> str:
    """Speak a request; returns a one-line summary.

    If there are named adapters, the first one speaks.

    Args:
        output: a file, `-` for standard output, or None to play the audio.
        lexicon: spellings that correct the pronunciation of words.
        format: name of the format; None takes it from the file's extension, else WAV.
        sample_rate: of the audio, in Hz; None uses the model's.

    Raises:
        ConfigError: the format is unknown, the file cannot be written, or no player is installed.
        VoxServeError: the model is unknown, its checkpoint unusable, or the text unspeakable.
    """
    audio_format = _format(output, format).at(sample_rate)
    target = _Player() if output is None else _File(output)
    try:
        config = attrs.evolve(config, max_batch_size=1)
        plugins = load_plugins(config.plugins)
        front_end = with_lexicon(plugins.resolve(config.model).front_end, lexicon)
        engine, info = load_engine(config, plugins)
        start = time.monotonic()
        request = attrs.evolve(request, adapter=next(iter(config.adapters), None))
        request = in_parts(request, info, front_end)
        pcm, reason = _speak(engine, request)
        spent = time.monotonic() - start
        target.write(audio_format.whole(info.sample_rate, pcm))
    except BaseException:
        target.discard()
        raise
    seconds = len(pcm) / 2 / info.sample_rate
    dropped = f", {request.dropped} characters left out" if request.dropped else ""
    return f"{target.name}: {seconds:.2f} s of audio in {spent:.2f} s, finish {reason}{dropped}"


def _format(output: Path | None, name: str | None) -> AudioFormat:
    """Raises ConfigError."""
    if name is not None:
        if output is None and name != "wav":
            raise ConfigError("--format needs --output: what is played is wav")
        return find_format(name, "--format")
    return FORMATS["wav"] if output in (None, STANDARD) else format_of(output)


def format_of(output: Path) -> AudioFormat:
    """The format for a file's extension; WAV if it has none.

    Raises:
        ConfigError: the format is unknown.
    """
    name = output.suffix.lower().removeprefix(".") or "wav"
    audio_format = FORMATS.get(ALIASES.get(name, name))
    if audio_format is None:
        names = ", ".join(FORMATS)
        raise ConfigError(f"{output}: {name!r} is not an audio format; choose from {names}")
    return audio_format


class _File:
    """A file, or standard output.  Raises ConfigError at once if it cannot be written."""

    def __init__(self, path: Path) -> None:
        self.name = "standard output" if path == STANDARD else str(path)
        self._path = path
        self._existed = path == STANDARD or path.exists()
        if path != STANDARD:
            self._write("ab", b"")

    def write(self, content: bytes) -> None:
        if self._path != STANDARD:
            self._write("wb", content)
            return
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()

    def discard(self) -> None:
        if not self._existed:
            self._path.unlink()

    def _write(self, mode: str, content: bytes) -> None:
        try:
            with self._path.open(mode) as file:
                file.write(content)
        except OSError as error:
            raise ConfigError(f"{self._path} cannot be written: {error.strerror}") from error


class _Player:
    """Plays audio with an installed program.  Raises ConfigError if there is none."""

    name = "played"

    def __init__(self) -> None:
        found = next((player for player in PLAYERS if shutil.which(player[0])), None)
        if found is None:
            names = ", ".join(player[0] for player in PLAYERS)
            raise ConfigError(f"nothing here can play audio ({names}); give --output FILE")
        self._command = found

    def write(self, content: bytes) -> None:
        with tempfile.TemporaryDirectory() as directory:
            file = Path(directory, "speech.wav")
            file.write_bytes(content)
            command = [part.format(file=file) for part in self._command]
            done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise ConfigError(f"{self._command[0]} cannot play: {reason}; give --output FILE")

    def discard(self) -> None:
        """Nothing to remove."""


def _speak(engine: Engine, request: SpeechRequest) -> tuple[bytes, str]:
    """Step the engine until all parts are spoken; returns the PCM and the finish reason."""
    engine.add(request)
    codec = engine.model.codec
    parts = Parts(request, codec.frame_rate, codec.sample_rate)
    pieces: list[bytes] = []
    reason = ""
    second = 2 * codec.sample_rate
    # disable=None: a bar on a terminal, nothing in a log.
    with tqdm(desc="speaking", unit=" s", bar_format="{desc}: {n:.2f}{unit}", disable=None) as bar:
        while engine.has_work:
            for event in engine.step().events:
                if isinstance(event, Audio):
                    pieces.append(parts.sound(event.pcm))
                    bar.update(len(event.pcm) / second)
                elif isinstance(event, Failed):
                    raise event.error
                elif isinstance(event, Finished):
                    silence, following = parts.after(event)
                    pieces.append(silence)
                    if isinstance(following, Finished):
                        reason = following.reason.value
                    else:
                        engine.add(following)
    return b"".join(pieces), reason
