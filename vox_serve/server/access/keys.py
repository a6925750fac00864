"""API keys and their limits.

Only SHA-256 hashes are stored.  That suffices because keys are long and random (those of `new_key`
have 256 bits), so no one can try them all.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import math
import re
import secrets
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from vox_serve.config import ServerConfig
from vox_serve.errors import ConfigError
from vox_serve.server.errors import TooMany

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
LINE = re.compile(rf"({NAME.pattern})\s+sha256:([0-9a-f]{{64}})")
LINE_RULE = "NAME sha256:HASH, as `vox-serve new-key NAME` writes it"
MAX_FILE_BYTES = 2**20
MINUTE = 60.0
log = logging.getLogger("vox_serve.keys")


def new_key(name: str) -> tuple[str, str]:
    """Make a new key; returns it and its line for the file.  Raises ConfigError for a bad name."""
    if not NAME.fullmatch(name):
        raise ConfigError(
            "a key's name must be 1 to 64 letters, digits, '_' or '-', "
            f"the first a letter or digit, not {name!r}"
        )
    key = f"vox-{secrets.token_urlsafe(32)}"
    return key, f"{name} sha256:{_digest(key).hex()}"


@attrs.define
class Use:
    """The requests of a key's name, which several keys may share."""

    open: int = 0
    recent: deque[float] = attrs.field(factory=deque)
    """Arrival times of the last minute's requests, by `time.monotonic`."""


class Keys:
    """The keys of a server.

    Args:
        server: sets the keys and their limits.

    Raises:
        ConfigError: the file cannot be read, or a line in it is wrong.
    """

    def __init__(self, server: ServerConfig) -> None:
        self._file = Path(server.api_keys_file).expanduser() if server.api_keys_file else None
        self._given = {_digest(key): f"key-{_digest(key).hex()[:12]}" for key in server.api_key}
        self._max_open = server.max_open_per_key
        self._max_per_minute = server.max_per_minute_per_key
        self._used: dict[str, Use] = {}
        self._names = self._read()

    @property
    def required(self) -> bool:
        """Whether the server has keys."""
        return bool(self._given) or self._file is not None

    def reload(self) -> None:
        """Read the file again; if it is invalid, keep the current keys."""
        try:
            self._names = self._read()
        except ConfigError as error:
            log.error("the keys stay as they were: %s", error)
        else:
            log.info("%d keys read", len(self._names))

    def name_of(self, key: str) -> str | None:
        """The name of a key; None if the key is unknown.

        Takes the same time for every key: compares all hashes, each in constant time.
        """
        digest, found = _digest(key), None
        for known, name in self._names.items():
            if hmac.compare_digest(known, digest):
                found = name
        return found

    @contextmanager
    def counted(self, name: str) -> Iterator[None]:
        """Count a request of this key while it is open.  Raises TooMany."""
        use = self._used.setdefault(name, Use())
        now = time.monotonic()
        while use.recent and use.recent[0] <= now - MINUTE:
            use.recent.popleft()
        if self._max_open and use.open >= self._max_open:
            raise TooMany(
                f"{use.open} requests of this key are open; the limit is {self._max_open}"
            )
        if self._max_per_minute:
            if len(use.recent) >= self._max_per_minute:
                raise TooMany(
                    f"this key has sent {len(use.recent)} requests in a minute, which is the limit",
                    math.ceil(use.recent[0] + MINUTE - now) or 1,
                )
            use.recent.append(now)
        use.open += 1
        try:
            yield
        finally:
            use.open -= 1

    def _read(self) -> dict[bytes, str]:
        """The names of all keys, by hash."""
        names = dict(self._given)
        if self._file is None:
            return names
        try:
            with self._file.open("rb") as file:
                content = file.read(MAX_FILE_BYTES + 1)
            if len(content) > MAX_FILE_BYTES:
                raise ConfigError(f"api_keys_file is larger than {MAX_FILE_BYTES} bytes")
            lines = content.decode("utf-8-sig").splitlines()
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8"
            raise ConfigError(f"api_keys_file {self._file} cannot be read: {reason}") from error
        spelled = {name.casefold(): name for name in names.values()}
        for number, line in enumerate(lines, 1):
            text = line.strip()
            if not text or text.startswith("#"):
                continue
            here = f"line {number} of api_keys_file {self._file}"
            match = LINE.fullmatch(text)
            if match is None:  # do not quote it: it may contain a key
                raise ConfigError(f"{here} must be {LINE_RULE}")
            name, digest = match[1], bytes.fromhex(match[2])
            if spelled.setdefault(name.casefold(), name) != name:
                # Names are used for directories, and some file systems ignore case.
                raise ConfigError(f"{here}: {name} differs from another name in case only")
            if names.setdefault(digest, name) != name:
                raise ConfigError(f"{here}: the key has another name already")
        return names


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("latin-1")).digest()
