"""Cuts a long text into parts that a model can speak one after another.

Text is cut at sentence borders.  If the model follows context, the parts are turns of a private
conversation, so that each sounds like the one before.
"""

from __future__ import annotations

import attrs

from vox_serve.messages import EngineInfo, Finished, FinishReason, SpeechRequest
from vox_serve.text import FrontEnd, Normalize, likely_seconds, pieces

PART_CHARACTERS = 400
"""Half a minute of speech; longer texts are cut even if the model sets no limit."""
CONTEXT_SHARE = 0.5
"""The share of the context that a part's sound may take."""
_AS_WRITTEN = FrontEnd(language=None)


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


def as_read(request: SpeechRequest, front_end: FrontEnd | None) -> SpeechRequest:
    """The request with its text as the model is to read it.

    Raises:
        UnspeakableText, InvalidRequest: as `FrontEnd.read`.
    """
    how = request.normalize
    if front_end is None:  # apply only the client's pronunciations
        if not request.pronunciations:
            return request
        front_end, how = _AS_WRITTEN, Normalize.OFF
    if not request.text.strip():  # rejected later
        return request
    spoken = front_end.read(request.text, how, request.pronunciations)
    context = tuple(attrs.evolve(s, text=front_end.read(s.text, how).text) for s in request.context)
    return attrs.evolve(request, text=spoken.text, dropped=spoken.dropped, context=context)


def in_parts(
    request: SpeechRequest, info: EngineInfo, front_end: FrontEnd | None = None
) -> SpeechRequest:
    """The request for the first part of its text, with the others in `following`.

    Args:
        front_end: the model's; its output is what the limits apply to and the engine receives.

    Raises:
        UnspeakableText, InvalidRequest: as `FrontEnd.read`.
    """
    request = as_read(request, front_end)
    text, *following = cut(request.text, info)
    conversation = request.conversation
    if following and conversation is None and info.takes_context:
        conversation = private_conversation(request.id)
    return attrs.evolve(
        request,
        text=text,
        following=tuple(following),
        more=bool(following),
        conversation=conversation,
    )


class Parts:
    """The progress of a request spoken in parts: what has ended and what comes next.

    Args:
        request: the first part, out of `in_parts`.
        frame_rate: of the model, in Hz.
    """

    def __init__(self, request: SpeechRequest, frame_rate: float) -> None:
        self._request = request
        self._frame_rate = frame_rate
        self._texts = list(request.following)
        self._frames = 0
        self._capped = False

    def after(self, ended: Finished) -> SpeechRequest | Finished:
        """The request for the next part, or the end of the whole."""
        self._frames += ended.frames
        self._capped |= ended.reason is FinishReason.LENGTH
        left = self._request.max_seconds
        if left is not None:
            left -= self._frames / self._frame_rate
        spent = left is not None and (self._capped or left * self._frame_rate < 1)
        if not ended.more or spent:
            # A part that reaches the cap derived from its own text does not end the others.
            reason = FinishReason.LENGTH if self._capped else ended.reason
            return attrs.evolve(ended, reason=reason, frames=self._frames, more=False)
        text, *self._texts = self._texts
        return attrs.evolve(
            self._request,
            text=text,
            following=(),
            more=bool(self._texts),
            continues=True,
            context=(),  # the conversation remembers it
            # All parts share one seed, so that the reported seed reproduces the whole.
            sampling={**self._request.sampling, "seed": ended.seed},
            max_seconds=left,
        )
