"""Reads the texts and the audio that clients send, in separate processes (see `jobs`)."""

from __future__ import annotations

import asyncio
import io
import pickle
from collections.abc import Callable
from functools import lru_cache
from typing import IO, Any, TypeVar

import attrs
import numpy as np
import numpy.typing as npt

from vox_serve.audio import AudioUnreadable, read_audio
from vox_serve.errors import PluginError, SequenceFailed
from vox_serve.messages import LONG_TEXT_CHARACTERS, EngineInfo, SpeechRequest
from vox_serve.parts import in_parts
from vox_serve.text import FrontEnd
from vox_serve.workers.jobs import JobFailed, Jobs

TEXT_PROCESSES = 2
"""Two processes, so that one long text does not delay all others."""
WAITING_CLIPS = 32
MAX_CLIP_BYTES = 64 * 2**20
WARMING = (
    "The **BBC** paid $2.50 and SEK 30 for 3 kg/day on May 5, 2025 \N{EM DASH} caf\u00e9."
    " Call 555-867-5309 about $x^2$."
)
"""A text that uses each of the libraries."""
T = TypeVar("T")


def text_jobs(in_thread: bool = False) -> Jobs:
    """Processes that read texts.  Admission limits how many texts wait."""
    return Jobs("text", processes=TEXT_PROCESSES, in_thread=in_thread)


def audio_jobs(in_thread: bool = False) -> Jobs:
    """A process that reads audio files."""
    return Jobs("audio", processes=1, waiting=WAITING_CLIPS, in_thread=in_thread)


class TextReader:
    """Reads texts as the voices of one model do.

    Args:
        front_end: the model's.
        jobs: where it runs.

    Raises:
        PluginError: the front end cannot be sent to another process.
    """

    def __init__(self, front_end: FrontEnd, jobs: Jobs) -> None:
        self._idle = front_end.idle
        self._as_written = front_end.as_written
        self._jobs = jobs
        try:
            self._front_end = pickle.dumps(front_end)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise PluginError(
                f"a text front end must consist of values and functions of modules: {error}"
            ) from error

    def warm_up(self) -> None:
        """Load the libraries, for which the first text would otherwise wait most of a second."""
        if not self._as_written:
            self._jobs.warm_up(_read, self._front_end, WARMING)

    async def split(
        self, request: SpeechRequest, info: EngineInfo, lead: float = 0.0
    ) -> SpeechRequest:
        """Like `parts.in_parts`.

        Raises:
            RequestError: like `parts.in_parts`, or SequenceFailed.
        """
        as_it_is = self._idle and not request.pronunciations
        if as_it_is and request.characters <= LONG_TEXT_CHARACTERS:
            return in_parts(request, info, lead=lead)
        # The audio of the context stays here: it is large, and nothing there reads it.
        bare = attrs.evolve(
            request, context=tuple(attrs.evolve(s, audio=None) for s in request.context)
        )
        read = await self._run(_split, bare, info, lead)
        context = zip(request.context, read.context, strict=True)
        return attrs.evolve(
            read, context=tuple(attrs.evolve(mine, text=said.text) for mine, said in context)
        )

    async def read(self, text: str) -> str:
        """A text as the voices read it.  Raises RequestError."""
        return text if self._idle else await self._run(_read, text)

    async def _run(self, work: Callable[..., T], *args: Any) -> T:
        try:
            return await self._jobs.run(work, self._front_end, *args)
        except JobFailed as error:
            raise SequenceFailed(f"the text could not be read: {error}", "text") from error


async def read_clip(
    jobs: Jobs, file: IO[bytes], sample_rate: int, max_seconds: float
) -> npt.NDArray[np.float32]:
    """Like `audio.read_audio`, in one of the processes of `jobs`.

    Raises:
        AudioUnreadable: like `read_audio`; or reading took too much time or memory, or crashed.
        QueueFull: too many clips wait.
    """
    content = await asyncio.to_thread(file.read, MAX_CLIP_BYTES + 1)
    if len(content) > MAX_CLIP_BYTES:
        raise AudioUnreadable(f"audio has more than {MAX_CLIP_BYTES >> 20} MiB")
    try:
        return await jobs.run(_read_clip, content, sample_rate, max_seconds)
    except JobFailed as error:
        raise AudioUnreadable(f"audio cannot be read: {error}") from error


@lru_cache(maxsize=16)
def _front_end(pickled: bytes) -> FrontEnd:
    found: FrontEnd = pickle.loads(pickled)
    return found


def _read(front_end: bytes, text: str) -> str:
    return _front_end(front_end).read(text).text


def _split(
    front_end: bytes, request: SpeechRequest, info: EngineInfo, lead: float
) -> SpeechRequest:
    return in_parts(request, info, _front_end(front_end), lead)


def _read_clip(content: bytes, sample_rate: int, max_seconds: float) -> npt.NDArray[np.float32]:
    return read_audio(io.BytesIO(content), sample_rate, max_seconds)
