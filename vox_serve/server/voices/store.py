"""Stores registered voices as files in one directory.  Does not depend on engines or HTTP.

A voice is `NAME.wav` with `NAME.json` (a `VoiceRecord`) or `NAME.txt` (only the transcript).  Users
may also add such files by hand; they are read at start.  The voices of an API key are in a
subdirectory with the key's name; their names here are `KEY/NAME`, see `server.owner`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import logging
import os
import re
import stat
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, BinaryIO

import msgspec
import numpy as np
import numpy.typing as npt
import soundfile

from vox_serve.errors import ConfigError
from vox_serve.server.owner import Owner, split

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
NAME_RULE = "1 to 64 letters, digits, '_' or '-', the first a letter or digit"
MAX_SECONDS = 30.0
MAX_TEXT_CHARACTERS = 2000
MAX_SPEAKER = 999
TRANSCRIPT_BYTES = 64 * 2**10
AUDIO, TRANSCRIPTS = ".wav", (".json", ".txt")
UNFINISHED = re.compile(r"\..+\.(wav|json)\.\w+\.tmp")
"""Files left by a server that was killed while it stored a voice."""
log = logging.getLogger("vox_serve.voices")


class VoiceUnusable(ValueError):
    """A voice cannot be used; the message says why."""


class VoiceRecord(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """The content of a voice's JSON file.

    `model` None means the only model served; `created` is a Unix time in seconds.
    """

    text: str
    speaker: Annotated[int, msgspec.Meta(ge=0, le=MAX_SPEAKER)] = 0
    model: str | None = None
    created: Annotated[int, msgspec.Meta(ge=0, le=2**53)] | None = None


def check_text(text: str) -> str:
    """The transcript without surrounding space.  Raises VoiceUnusable."""
    text = text.strip()
    if not text:
        raise VoiceUnusable("text is empty: it must say what is spoken in the audio")
    if len(text) > MAX_TEXT_CHARACTERS:
        raise VoiceUnusable(f"text has {len(text)} characters; the limit is {MAX_TEXT_CHARACTERS}")
    return text


class VoiceStore:
    """The voices in a directory, which is created if missing.

    Several servers may read a directory.  Only one at a time may change it: the first to claim it,
    until it ends.

    Raises:
        ConfigError: the directory cannot be created or read.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock: int | None = None
        """A descriptor of the locked directory; the kernel unlocks it when this process ends."""
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._names()
            self._root = directory.resolve()
        except OSError as error:
            reason = error.strerror
            raise ConfigError(f"voices_dir {directory} cannot be used: {reason}") from error

    def claim(self) -> bool:
        """Claim the directory for changes; False while another server holds it.

        Raises:
            OSError: the directory cannot be locked.
        """
        if self._lock is not None:
            return True
        descriptor = os.open(self._directory, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        except OSError:
            os.close(descriptor)
            raise
        self._lock = descriptor
        for key in self._keys():
            for name in filter(UNFINISHED.fullmatch, self._names(key)):
                (self._directory / key / name).unlink(missing_ok=True)
        return True

    def close(self) -> None:
        """Let another server change the directory."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _require_claim(self) -> None:
        if not self.claim():
            raise BlockingIOError(errno.EAGAIN, "another server holds the voices directory")

    def scan(self) -> tuple[dict[str, VoiceRecord], dict[str, str]]:
        """The voices by name, and why other files cannot be used; does not read audio."""
        suffixes: dict[str, set[str]] = {}
        for key in self._keys():
            for file in sorted(self._names(key)):
                stem, suffix = Path(file).stem, Path(file).suffix
                if suffix in (AUDIO, *TRANSCRIPTS) and not file.startswith("."):
                    suffixes.setdefault(Owner(key).own(stem), set()).add(suffix)
        records: dict[str, VoiceRecord] = {}
        problems: dict[str, str] = {}
        for name, found in suffixes.items():
            file = name + (AUDIO if AUDIO in found else min(found))
            try:
                _check_name(name, records)
                records[name] = self._record(name, found)
            except VoiceUnusable as error:
                # A file name may not be valid text, but the report must be.
                problems[file.encode(errors="backslashreplace").decode()] = str(error)
        return records, problems

    def audio(self, name: str) -> BinaryIO:
        """The file with the audio of a voice.  Raises VoiceUnusable."""
        return self._open(self._path(name, AUDIO))

    def write(
        self, name: str, record: VoiceRecord, audio: npt.NDArray[np.float32], sample_rate: int
    ) -> None:
        """Store a voice: the audio first, so that a JSON file always has its audio.

        The samples are stored unchanged, so that the voice sounds the same after a restart.

        Raises:
            OSError: it cannot be written.  On any error, no file is left behind.
        """
        self._require_claim()
        sound, wav = self._path(name, AUDIO), io.BytesIO()
        sound.parent.mkdir(mode=0o700, exist_ok=True)
        soundfile.write(wav, audio, sample_rate, format="WAV", subtype="FLOAT")
        self._put(sound, wav.getvalue())
        try:
            text = msgspec.json.format(msgspec.json.encode(record), indent=2)
            self._put(self._path(name, ".json"), text + b"\n")
        except BaseException:
            with contextlib.suppress(OSError):
                sound.unlink()
            raise

    def remove(self, name: str) -> bool:
        """Delete a voice's files; False if there are none.  Raises OSError."""
        self._require_claim()
        there = set(self._names(split(name)[0]))
        paths = [self._path(name, suffix) for suffix in (*TRANSCRIPTS, AUDIO)]
        found = [path for path in paths if path.name in there]
        for path in found:
            path.unlink()
        return bool(found)

    def holds(self, name: str) -> bool:
        """Whether there is a file with this name, ignoring case as some file systems do."""
        key, own = split(name)
        wanted = {(own + suffix).casefold() for suffix in (AUDIO, *TRANSCRIPTS)}
        return any(file.casefold() in wanted for file in self._names(key))

    def _keys(self) -> list[str]:
        """The names of keys that have voices; '' means the directory itself."""
        return [
            "",
            *sorted(
                path.name
                for path in self._directory.iterdir()
                if NAME.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
            ),
        ]

    def _names(self, key: str = "") -> list[str]:
        try:
            return [path.name for path in (self._directory / key).iterdir()]
        except FileNotFoundError:
            if key:
                return []
            raise

    def _path(self, name: str, suffix: str) -> Path:
        key, own = split(name)
        # Never build a path from an unchecked name.
        if not NAME.fullmatch(own) or (key and not NAME.fullmatch(key)):
            raise ValueError(f"{name!r} is not a voice name")
        return self._directory / key / f"{own}{suffix}"

    def _record(self, name: str, suffixes: Collection[str]) -> VoiceRecord:
        if AUDIO not in suffixes:
            raise VoiceUnusable(f"{name}{AUDIO} is missing beside it")
        suffix = next((each for each in TRANSCRIPTS if each in suffixes), None)
        if suffix is None:
            raise VoiceUnusable(f"its transcript is missing: {name}.json or {name}.txt")
        with self._open(self._path(name, AUDIO)) as file:
            changed = int(os.fstat(file.fileno()).st_mtime)
        try:
            with self._open(self._path(name, suffix)) as file:
                content = file.read(TRANSCRIPT_BYTES + 1)
            if len(content) > TRANSCRIPT_BYTES:
                raise VoiceUnusable(f"{name}{suffix} is larger than {TRANSCRIPT_BYTES} bytes")
            if suffix == ".txt":
                record = VoiceRecord(text=content.decode("utf-8-sig"))
            else:
                record = msgspec.json.decode(content, type=VoiceRecord)
        except (msgspec.DecodeError, UnicodeError, OSError, RecursionError) as error:
            raise VoiceUnusable(f"{name}{suffix} cannot be read: {error}") from error
        created = changed if record.created is None else record.created
        return msgspec.structs.replace(record, text=check_text(record.text), created=created)

    def _open(self, path: Path) -> BinaryIO:
        """Open a regular file.  A link may point to a file inside the directory, but not outside.

        Raises:
            VoiceUnusable: it cannot be opened or is not a regular file.
        """
        try:
            if not path.resolve().is_relative_to(self._root):
                raise VoiceUnusable(f"{path.name} is a link to outside the directory")
            # Without O_NONBLOCK, a pipe would block until a process writes to it.
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        except (OSError, RuntimeError) as error:  # RuntimeError: circular links
            reason = getattr(error, "strerror", None) or str(error)
            raise VoiceUnusable(f"{path.name} cannot be opened: {reason}") from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise VoiceUnusable(f"{path.name} is not a regular file")
        return os.fdopen(descriptor, "rb")

    def _put(self, path: Path, content: bytes) -> None:
        """Write a file atomically."""
        descriptor, unfinished = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"
        )
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(descriptor)
            Path(unfinished).replace(path)
        except BaseException:
            Path(unfinished).unlink(missing_ok=True)
            raise


def _check_name(name: str, others: Collection[str]) -> None:
    if not NAME.fullmatch(split(name)[1]):
        raise VoiceUnusable(f"its name must be {NAME_RULE}")
    alike = next((other for other in others if other.casefold() == name.casefold()), None)
    if alike is not None:
        raise VoiceUnusable(f"its name differs from {alike!r} only in case")
