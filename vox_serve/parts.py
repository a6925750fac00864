"""Cuts a long text into parts that a model can speak one after another.

Text is cut between sentences where possible.  If the model uses context, the parts are turns of a
private conversation, so that each sounds like the one before.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from vox_serve.audio.loudness import Ear
from vox_serve.messages import EngineInfo, Finished, FinishReason, SpeechRequest
from vox_serve.text import AS_WRITTEN, FrontEnd, Part, likely_seconds, pieces, speakable

PART_CHARACTERS = 400
"""About half a minute of speech; longer texts are cut even if the model sets no limit."""
CONTEXT_SHARE = 0.5
"""The share of the context that a part's audio may take."""
SAMPLE_BYTES = 2


def private_conversation(request_id: str) -> str:
    """The name of the conversation for one request's parts; clients cannot use such names."""
    return f"~{request_id}"


def cut(text: str, info: EngineInfo) -> list[str]:
    """Cut a text into parts; a text that fits in one part is unchanged."""
    seconds = info.max_positions / info.frame_rate * CONTEXT_SHARE
    room = int(seconds / likely_seconds(text) * len(text))
    limit = min(info.max_characters or PART_CHARACTERS, PART_CHARACTERS, max(1, room))
    texts = pieces(text, limit, info.max_words)
    return texts if len(texts) > 1 else [text]


def as_read(request: SpeechRequest, front_end: FrontEnd) -> tuple[SpeechRequest, Sequence[Part]]:
    """The request with its context, and the parts of its text, as the model will read them.

    Raises:
        UnspeakableText, InvalidRequest: as `FrontEnd.read`.
    """
    how = request.normalize
    if front_end.idle and not request.pronunciations:
        return request, [Part(request.text)]
    if not request.text.strip():  # rejected later
        return request, [Part(request.text)]
    spoken = front_end.read(request.text, how, request.pronunciations, request.language)
    context = tuple(attrs.evolve(s, text=front_end.read(s.text, how).text) for s in request.context)
    return attrs.evolve(request, dropped=spoken.dropped, context=context), spoken.parts


def in_parts(
    request: SpeechRequest,
    info: EngineInfo,
    front_end: FrontEnd = AS_WRITTEN,
    lead: float = 0.0,
) -> SpeechRequest:
    """The request for the first part of its text, with the others in `following`.

    Args:
        front_end: the model's; the limits apply to its output, and the engine receives its output.
        lead: seconds of silence before the text, in addition to pauses in the text.

    Raises:
        UnspeakableText, InvalidRequest: as `FrontEnd.read`.
    """
    request, parts = as_read(request, front_end)
    texts: list[str] = []
    pauses = [lead]
    for part in parts:
        if part.text or len(parts) == 1:
            found = cut(part.text, info)
            texts += found
            pauses += [0.0] * len(found)
        pauses[-1] += part.pause
    text, *following = texts
    most = request.max_seconds
    if most is not None:  # includes the first silence; the engine makes at least one frame
        pauses[0] = min(pauses[0], max(0.0, most - 1 / info.frame_rate))
        most -= pauses[0]
    conversation = request.conversation
    if following and conversation is None and info.takes_context:
        conversation = private_conversation(request.id)
    return attrs.evolve(
        request,
        text=text,
        following=tuple(following),
        pauses=tuple(pauses) if any(pauses) else (),
        more=bool(following),
        conversation=conversation,
        max_seconds=most,
    )


class Parts:
    """Tracks a request spoken in parts: its silences, and which part comes next.

    Args:
        request: the first part, from `in_parts`.
        frame_rate: of the model, in Hz.
        sample_rate: of its audio, in Hz.
    """

    def __init__(self, request: SpeechRequest, frame_rate: float, sample_rate: int) -> None:
        self._request = request
        self._frame_rate = frame_rate
        self._sample_rate = sample_rate
        self._texts = list(request.following)
        self._lead, *self._pauses = request.pauses or (0.0,)
        self._speakable = any(map(speakable, (request.text, *request.following)))
        self._ear = Ear(sample_rate)
        most = request.max_seconds
        self._most = None if most is None else most + self._lead
        self._seconds = 0.0  # of silence
        self._frames = 0
        self._capped = False

    def more_text(self, text: str) -> None:
        """Count text that has been added to the first part."""
        self._speakable = self._speakable or speakable(text)

    def sound(self, pcm: bytes) -> bytes:
        """The engine's audio, with the initial silence before its first piece."""
        self._ear.listen(pcm)
        return self._begun() + pcm

    def _begun(self) -> bytes:
        lead, self._lead = self._lead, 0.0
        return self._silence(lead)

    def _silence(self, seconds: float) -> bytes:
        left = self._left
        seconds = seconds if left is None else min(seconds, max(0.0, left))
        self._seconds += seconds
        return bytes(SAMPLE_BYTES * round(seconds * self._sample_rate))

    @property
    def _left(self) -> float | None:
        """Seconds left of `max_seconds`, including the current part; None if there is no limit."""
        spent = self._frames / self._frame_rate + self._seconds
        return None if self._most is None else self._most - spent

    def after(self, ended: Finished) -> tuple[bytes, SpeechRequest | Finished]:
        """The silence after a part, and the next part's request or the end of the whole request."""
        self._frames += ended.frames
        self._capped |= ended.reason is FinishReason.LENGTH
        silence = self._begun() + self._silence(self._pauses.pop(0) if self._pauses else 0.0)
        return silence, self._next(ended)

    def _next(self, ended: Finished) -> SpeechRequest | Finished:
        left = self._left
        spent = left is not None and (self._capped or left * self._frame_rate < 1)
        if not ended.more or spent:
            # A part that reaches the cap derived from its own text does not end the others.
            reason = FinishReason.LENGTH if self._capped or ended.more else ended.reason
            if reason is FinishReason.STOP and self._speakable and not self._ear.heard:
                reason = FinishReason.INAUDIBLE
            return attrs.evolve(ended, reason=reason, frames=self._frames, more=False)
        text, *self._texts = self._texts
        return attrs.evolve(
            self._request,
            text=text,
            following=(),
            pauses=(),
            more=bool(self._texts),
            continues=True,
            context=(),  # the conversation remembers it
            # All parts share one seed, so that the reported seed reproduces the whole.
            sampling={**self._request.sampling, "seed": ended.seed},
            max_seconds=left,
        )
