"""Normalises and cuts texts in threads, to keep the event loop free."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from vox_serve.messages import LONG_TEXT_CHARACTERS, EngineInfo, SpeechRequest
from vox_serve.parts import in_parts
from vox_serve.text import FrontEnd

_readers = ThreadPoolExecutor(2, thread_name_prefix="read")
"""Two threads, so that one long text does not delay all others.  More threads would delay the event
loop more often."""


async def read(
    request: SpeechRequest, info: EngineInfo, front_end: FrontEnd, lead: float = 0.0
) -> SpeechRequest:
    """Like `parts.in_parts`."""
    if front_end.idle and request.characters <= LONG_TEXT_CHARACTERS:
        return in_parts(request, info, front_end, lead)
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_readers, in_parts, request, info, front_end, lead)


def warm_up(front_end: FrontEnd) -> None:
    """Load the libraries in a thread; otherwise the first text waits for most of a second."""
    if not front_end.as_written:
        asyncio.get_running_loop().run_in_executor(_readers, front_end.read, WARMING)


WARMING = "The **BBC** paid $2.50 for 3 kg on May 5, 2025 \N{EM DASH} caf\u00e9."
"""Uses each of the libraries."""
