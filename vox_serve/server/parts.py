"""A text to the requests that the engine speaks one after the other.

Text that a model cannot speak at once is cut at sentence borders.  Where the model follows
context, the parts are turns of a conversation of their own: each goes on as the last one sounded.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs

from vox_serve.engine.messages import EngineInfo, SpeechRequest
from vox_serve.text import pieces

PART_CHARACTERS = 400
"""Half a minute of speech: longer texts are cut also where the model names no limit."""
CHARACTERS_PER_SECOND = 12
CONTEXT_SHARE = 0.5
"""How much of the context a part's sound may take."""


def private_conversation(request_id: str) -> str:
    """The conversation of one request's parts; clients cannot name it."""
    return f"~{request_id}"


def parts(
    request: SpeechRequest, info: EngineInfo, normalise: Callable[[str], str] | None = None
) -> list[SpeechRequest]:
    """The request, cut where its text is too long to be spoken at once.

    Args:
        normalise: the checkpoint's own, whose result is what its limits count.

    Raises:
        UnspeakableText: it cannot be normalised.
    """
    if normalise is not None:
        request = attrs.evolve(request, text=normalise(request.text))
    context_seconds = info.max_positions / info.frame_rate
    room = int(context_seconds * CONTEXT_SHARE * CHARACTERS_PER_SECOND)
    limit = min(info.max_characters or PART_CHARACTERS, PART_CHARACTERS, max(1, room))
    texts = pieces(request.text, limit, info.max_words)
    if len(texts) < 2:
        return [request]
    conversation = request.conversation
    if conversation is None and info.takes_context:
        conversation = private_conversation(request.id)
    first = attrs.evolve(request, text=texts[0], later=tuple(texts[1:]), conversation=conversation)
    return [first, *(_following(first, n, text) for n, text in enumerate(texts[1:], 1))]


def _following(first: SpeechRequest, number: int, text: str) -> SpeechRequest:
    """A later part.  What the request brought as context is in the conversation by then."""
    return attrs.evolve(
        first,
        id=f"{first.id}~{number}",  # no client can choose such an id
        text=text,
        later=(),
        context=() if first.conversation is not None else first.context,
        continues=True,
    )
