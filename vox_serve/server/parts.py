"""A long text to parts that a model can speak one after the other.

Text is cut at sentence borders.  Where the model follows context, the parts are turns of a
conversation of their own: each goes on as the last one sounded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import attrs

from vox_serve.messages import EngineInfo, SpeechRequest
from vox_serve.text import likely_seconds, pieces

PART_CHARACTERS = 400
"""Half a minute of speech: longer texts are cut also where the model names no limit."""
CONTEXT_SHARE = 0.5
"""How much of the context a part's sound may take."""
_cutter = ThreadPoolExecutor(1, thread_name_prefix="cut")
"""One thread: more of them would only hold up the event loop more often."""


def private_conversation(request_id: str) -> str:
    """The conversation of one request's parts; clients cannot name it."""
    return f"~{request_id}"


def cut(text: str, info: EngineInfo) -> list[str]:
    """The parts of a text; one that can be spoken at once is left as it is."""
    seconds = info.max_positions / info.frame_rate * CONTEXT_SHARE
    room = int(seconds / likely_seconds(text) * len(text))
    limit = min(info.max_characters or PART_CHARACTERS, PART_CHARACTERS, max(1, room))
    texts = pieces(text, limit, info.max_words)
    return texts if len(texts) > 1 else [text]


def in_parts(
    request: SpeechRequest, info: EngineInfo, normalise: Callable[[str], str] | None = None
) -> SpeechRequest:
    """The request, with what is too long to be spoken at once moved to `later`.

    Args:
        normalise: the checkpoint's own, whose result is what its limits count.

    Raises:
        UnspeakableText: it cannot be normalised.
    """
    if normalise is not None:
        request = attrs.evolve(request, text=normalise(request.text))
    text, *later = cut(request.text, info)
    conversation = request.conversation
    if later and conversation is None and info.takes_context:
        conversation = private_conversation(request.id)
    return attrs.evolve(request, text=text, later=tuple(later), conversation=conversation)


async def in_parts_beside(
    request: SpeechRequest, info: EngineInfo, normalise: Callable[[str], str] | None = None
) -> SpeechRequest:
    """As `in_parts`, beside the event loop."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_cutter, in_parts, request, info, normalise)
