"""Voices that clients register: a named sample of speech with its transcript.

Tracks them and keeps the engines and the directory in sync.  Uses the voices' inner names; see
`server.owner`.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import Container
from pathlib import Path
from typing import IO

import attrs
import msgspec
import numpy as np
import numpy.typing as npt

from vox_serve.audio import AudioUnreadable
from vox_serve.errors import (
    AlreadyExists,
    ConfigError,
    InvalidRequest,
    NotFound,
    PromptTooLong,
    QueueFull,
    RequestError,
    Unavailable,
)
from vox_serve.server.errors import Forbidden
from vox_serve.server.owner import Owner, split
from vox_serve.server.voices.store import (
    MAX_SECONDS,
    NAME,
    VoiceRecord,
    VoiceStore,
    VoiceUnusable,
)
from vox_serve.voice import Segment
from vox_serve.workers.engines import Engines
from vox_serve.workers.interface import EngineClient, VoiceTaker
from vox_serve.workers.reading import read_clip

MAX_VOICES = 1000
"""The most voices of one owner, including shared ones."""
CLAIM_SECONDS = 2.0
"""How often a server that may only read the directory tries to claim it."""
MAX_WAITING = 8
"""The most voices being added at once: one is being encoded, the others wait."""
Samples = npt.NDArray[np.float32]
log = logging.getLogger("vox_serve.voices")


@attrs.frozen
class RegisteredVoice:
    """A registered voice.

    Args:
        name: its inner name.
        client: the engine that speaks it.
        seconds: length of its sample.
        kept: whether it survives a restart of the server.
    """

    name: str
    client: EngineClient
    record: VoiceRecord
    seconds: float
    kept: bool


@attrs.frozen
class KnownVoice:
    """A voice that a request may name: built into a model, or registered.

    Args:
        name: its owner's name for it.
    """

    name: str
    speaker: int
    client: EngineClient
    registered: RegisteredVoice | None


class Voices:
    """The registered voices of a server.

    Args:
        engines: the engines that speak them; each gets the directory's voices before it is ready.

    Raises:
        ConfigError: the directory cannot be used.
    """

    def __init__(self, engines: Engines) -> None:
        server = engines.server
        self.broken: dict[str, str] = {}
        """Files in the directory that cannot be used as voices, with the reason."""
        self._engines = engines
        self._registered: dict[str, RegisteredVoice] = {}
        self._stored: dict[str, VoiceRecord] = {}
        self._store: VoiceStore | None = None
        self._lock = asyncio.Lock()
        self._waiting = 0
        self._claimed = True
        """Whether this server may change the directory."""
        self._claiming: asyncio.Task[None] | None = None
        self._kept = server.voices_dir is not None
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        if server.voices_dir is not None:
            self._open(Path(server.voices_dir).expanduser())
        elif server.on_worker_death == "restart" or server.unload_after is not None:
            # A restarted worker gets the voices from here.
            self._scratch = tempfile.TemporaryDirectory(prefix="vox-serve-voices-")
            self._store = VoiceStore(Path(self._scratch.name))
        engines.prepare(self._load)

    def close(self) -> None:
        """Let other servers claim the directory."""
        if self._claiming is not None:
            self._claiming.cancel()
        if self._store is not None:
            self._store.close()
        if self._scratch is not None:
            self._scratch.cleanup()

    def _open(self, directory: Path) -> None:
        self._store = VoiceStore(directory)
        try:
            self._claimed = self._store.claim()
        except OSError as error:
            raise ConfigError(
                f"voices_dir {directory} cannot be locked: {error.strerror}"
            ) from error
        if not self._claimed:
            log.warning(
                "another server holds %s: voices cannot be changed until it ends", directory
            )
        self._scan()

    def _scan(self) -> None:
        """Read the voices in the directory."""
        assert self._store is not None
        self._stored, problems = self._store.scan()
        for file, reason in problems.items():
            self._report(file, reason)
        self._give_out()

    def listed(self, owner: Owner, model: str | None = None) -> list[KnownVoice]:
        """Every voice that this owner may use, or only those of one model."""
        return [
            self._known(client, name, inner, speaker)
            for client in self._engines.models
            if model in (None, client.model)
            for name, inner, speaker in owner.seen(client.voices)
        ]

    async def add(
        self,
        owner: Owner,
        client: EngineClient,
        name: str,
        record: VoiceRecord,
        file: IO[bytes],
    ) -> KnownVoice:
        """Register a voice: add it to the model, store it, then list it.

        Args:
            owner: the voice's owner.
            file: the sample, in any format that libsndfile reads.

        Raises:
            AlreadyExists: the name is taken.
            InvalidRequest: the sample cannot be used.
            RequestError: the model cannot use the voice, or it cannot be stored.
        """
        if self._waiting >= MAX_WAITING:
            raise QueueFull(f"{MAX_WAITING} voices are being added; try again later")
        self._waiting += 1
        try:
            async with self._lock:
                await self._require_free(owner, client, name)
                info = client.admit()
                audio = await read_clip(self._engines.clips, file, info.sample_rate, MAX_SECONDS)
                await self._add_to_engine(client, owner.own(name), record, audio)
                await self._keep(client, owner.own(name), record, audio, info.sample_rate)
        except AudioUnreadable as error:
            raise InvalidRequest(str(error), "audio") from error
        finally:
            self._waiting -= 1
        return self._known(client, name, owner.own(name), record.speaker)

    async def remove(self, owner: Owner, name: str) -> None:
        """Forget a voice, and delete its files.

        Raises:
            NotFound: the voice does not exist.
            InvalidRequest: it is built into a model.
            Forbidden: it is shared, so the holder of a key may not remove it.
            Unavailable: the server is not ready, or the files cannot be deleted.
        """
        inner = owner.own(name)
        self._require_engine(inner)  # check early: the lock may be held until a model is ready
        async with self._lock:
            self._require_engine(inner)
            known = self._registered.get(inner)
            if known is None and any(_owns(client, name) for client in self._engines):
                raise InvalidRequest(f"{name!r} is a built-in voice of the model", "voice")
            if not NAME.fullmatch(name):
                raise _unknown(name)
            if known is None and name in self._registered:
                raise Forbidden(f"{name!r} is everybody's voice: only the operator removes it")
            try:
                store = self._store
                stored = store is not None and await asyncio.to_thread(store.remove, inner)
            except OSError as error:
                raise Unavailable(f"the voice cannot be deleted: {error.strerror}") from error
            if known is None and not stored:
                raise _unknown(name)
            self._stored.pop(inner, None)
            if known is not None:
                del self._registered[inner]
                await known.client.remove_voice(inner)
            if not owner.key:
                self.broken = {f: why for f, why in self.broken.items() if Path(f).stem != name}

    def _require_engine(self, name: str) -> None:
        """Raise Unavailable if the voice's model, or any model if none has it, is not ready."""
        known = self._registered.get(name)
        for client in [known.client] if known is not None else self._engines:
            client.admit()

    def find(self, owner: Owner, name: str, model: str | None) -> KnownVoice:
        """One voice.

        Raises:
            NotFound: the voice does not exist.
            InvalidRequest: several models have it, and `model` is None.
        """
        if model is not None:
            model = self._engines.choose(model).model
        found = [
            voice
            for voice in self.listed(owner, model)
            if voice.name == name and (model is not None or voice.client.base is voice.client)
        ]
        if not found:
            raise _unknown(name)
        if len(found) > 1:
            models = ", ".join(voice.client.model for voice in found)
            raise InvalidRequest(f"model is required: {models} have a voice {name!r}", "model")
        return found[0]

    def _known(self, client: EngineClient, name: str, inner: str, speaker: int) -> KnownVoice:
        found = self._registered.get(inner)
        if found is not None and found.client is not client.base:
            found = None
        return KnownVoice(name, speaker, client, found)

    def _give_out(self) -> None:
        """Assign each stored voice to its model; report those whose model is not served."""
        models = [client.model for client in self._engines]
        for name, record in list(self._stored.items()):
            if record.model is None and len(models) == 1:
                self._stored[name] = msgspec.structs.replace(record, model=models[0])
            elif record.model not in models:
                del self._stored[name]
                problem = (
                    "it does not name a model"
                    if record.model is None
                    else f"it is for {record.model}"
                )
                self._report(f"{name}.json", f"{problem}; this server has {', '.join(models)}")

    async def _load(self, client: VoiceTaker) -> None:
        """Add the stored voices to an engine that has loaded or reloaded."""
        if not self._claimed and self._claiming is None:
            self._claiming = asyncio.create_task(self._wait_for_directory())
        read: set[str] = set()
        while new := await self._unread(client, read):
            await self._load_all(client, new)
            read |= new

    async def _unread(self, client: VoiceTaker, read: set[str]) -> set[str]:
        """The model's voices that are not read yet, including those stored meanwhile."""
        async with self._lock:
            return {n for n, r in self._stored.items() if r.model == client.model} - read

    async def _load_all(self, client: VoiceTaker, names: Container[str]) -> None:
        stored = self._stored
        mine = [name for name in stored if name in names and stored[name].model == client.model]
        for name in mine:
            try:
                async with self._lock:
                    if name in self._stored:
                        await self._load_one(client, name)
            except Unavailable:
                return  # the engine is shutting down or dead
            except (RequestError, VoiceUnusable) as error:
                self._report(f"{name}.wav", str(error))
            except Exception as error:
                log.exception("%s.wav cannot be added", name)
                self._report(f"{name}.wav", repr(error))
        if mine:
            log.info("%s: %d stored voices read", client.model, len(mine))

    async def _wait_for_directory(self) -> None:
        """Take over the directory when the other server ends, and load the voices it added."""
        assert self._store is not None
        while not await asyncio.to_thread(self._store.claim):
            await asyncio.sleep(CLAIM_SECONDS)
        log.info("the voices directory may be changed now")
        async with self._lock:
            before, self._claimed, self.broken = self._stored, True, {}
            self._scan()
            for name in before.keys() - self._stored.keys():
                gone = self._registered.pop(name, None)
                if gone is not None and gone.client.accepts:
                    await gone.client.remove_voice(name)
        for client in filter(lambda client: client.accepts, self._engines):
            await self._load_all(client, self._stored.keys() - before.keys())

    async def _load_one(self, client: VoiceTaker, name: str) -> None:
        assert self._store is not None
        assert client.info is not None
        if _owns(client, split(name)[1]):
            raise VoiceUnusable(f"{split(name)[1]!r} is a built-in voice of the model")
        rate = client.info.sample_rate
        audio = await self._read(name, rate)
        await self._add_to_engine(client, name, self._stored[name], audio)
        known = self._engines.choose(client.model)
        self._register(known, name, self._stored[name], len(audio) / rate)

    async def _read(self, name: str, rate: int) -> Samples:
        assert self._store is not None
        try:
            with await asyncio.to_thread(self._store.audio, name) as file:
                return await read_clip(self._engines.clips, file, rate, MAX_SECONDS)
        except AudioUnreadable as error:
            raise VoiceUnusable(str(error)) from error

    async def _add_to_engine(
        self, client: VoiceTaker, name: str, record: VoiceRecord, audio: Samples
    ) -> None:
        """Add the voice to the model.  Errors name fields of the form."""
        try:
            segment = Segment(record.speaker, record.text, audio)
            await client.add_voice(name, record.speaker, (segment,))
        except RequestError as error:
            if error.param == "context" or isinstance(error, PromptTooLong):  # the engine's names
                raise type(error)(f"audio and text: {error.message}", "audio") from error
            raise

    async def _keep(
        self, client: EngineClient, name: str, record: VoiceRecord, audio: Samples, rate: int
    ) -> None:
        """Store and list the voice; if it cannot be stored, remove it from the model."""
        if not self._kept:
            log.warning(
                "voice %r will be lost when the server stops; use --voices-dir to keep voices", name
            )
        if self._store is not None:
            try:
                await asyncio.to_thread(self._store.write, name, record, audio, rate)
            except Exception as error:
                await client.remove_voice(name)
                if not isinstance(error, OSError):
                    raise
                raise Unavailable(f"the voice cannot be stored: {error.strerror}") from error
            self._stored[name] = record
        self._register(client, name, record, len(audio) / rate)

    def _register(
        self, client: EngineClient, name: str, record: VoiceRecord, seconds: float
    ) -> None:
        self._registered[name] = RegisteredVoice(name, client, record, seconds, self._kept)
        log.info("voice %r of %s: %.1f s", name, client.model, seconds)

    async def _require_free(self, owner: Owner, client: EngineClient, name: str) -> None:
        """Check that the name is free, ignoring case, as some file systems and people do."""
        if _owns(client, name):
            raise AlreadyExists(f"{name!r} is a built-in voice of the model", "name")
        known = list(owner.seen((inner, None) for inner in self._registered))
        taken = any(name.casefold() == other.casefold() for other, _, _ in known)
        if taken or (self._store and await asyncio.to_thread(self._store.holds, owner.own(name))):
            raise AlreadyExists(f"a voice {name!r} already exists; delete it first", "name")
        if len(known) >= MAX_VOICES:
            raise InvalidRequest(
                f"there are already {MAX_VOICES} voices, the limit; delete some first", "name"
            )

    def _report(self, file: str, reason: str) -> None:
        log.error("%s in the voices directory cannot be used: %s", file, reason)
        if not split(file)[0]:  # /health is public
            self.broken[file] = reason


def _owns(client: VoiceTaker, name: str) -> bool:
    """Whether the model has a built-in voice with this name, ignoring case."""
    own = client.info.voices if client.info is not None else ()
    return any(name.casefold() == voice.casefold() for voice, _ in own)


def _unknown(name: str) -> NotFound:
    return NotFound(f"unknown voice {name[:128]!r}", "voice")
