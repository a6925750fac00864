"""The voices of a model: built in, and added while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Rows

from vox_serve.engine.context_encoder import ContextEncoder
from vox_serve.errors import InvalidRequest, NotFound
from vox_serve.model import Prompt
from vox_serve.voice import Segment, Voice


class Voices:
    """Args: the model's voices, the encoder of segments, and a function that builds a prompt."""

    def __init__(
        self,
        built_in: Rows[Voice],
        encoder: ContextEncoder,
        build: Callable[[str, Voice, Rows[Segment]], Prompt],
    ) -> None:
        self._built_in = built_in
        self._encoder = encoder
        self._build = build
        self._added: dict[str, Voice] = {}

    def __iter__(self) -> Iterator[Voice]:
        # A copy: one thread may add a voice while another looks for one.
        return iter((*self._built_in, *self._added.values()))

    @property
    def names(self) -> tuple[tuple[str, int], ...]:
        """Names and speakers, built-in voices first."""
        return tuple((voice.name, voice.speaker) for voice in self)

    def choose(self, name: str | None, speaker: int) -> Voice:
        """The voice of this name or, without a name, the speaker's first.

        Raises:
            NotFound: there is none; lists those that exist.
        """
        for voice in self:
            if name == voice.name or (name is None and speaker == voice.speaker):
                return voice
        if name is not None:
            # Added voices are not listed, because each may belong to one client only.
            names = ", ".join(voice.name for voice in self._built_in)
            raise NotFound(f"unknown voice {name!r}; this model has {names}", "voice")
        speakers = ", ".join(str(n) for n in sorted({voice.speaker for voice in self}))
        raise NotFound(f"unknown speaker {speaker}; this model has {speakers}", "speaker")

    def add(self, name: str, speaker: int, segments: Rows[Segment]) -> None:
        """Add a voice, or replace an added one of the same name; may take seconds.

        Raises:
            RequestError: the model does not have the speaker, has a built-in voice of this name, or
                the segments do not fit.
        """
        if any(voice.name == name for voice in self._built_in):
            raise InvalidRequest(f"{name!r} is a built-in voice of the model", "name")
        self.choose(None, speaker)
        blank = tuple(self._encoder.blank(segment) for segment in segments)
        self._build("a", Voice(name, speaker, blank), ())  # before the costly part
        encoded = tuple(self._encoder.encode(segment) for segment in segments)
        self._added[name] = Voice(name, speaker, encoded)

    def remove(self, name: str) -> bool:
        """Forget an added voice; requests that have begun keep it.  False if there is none."""
        return self._added.pop(name, None) is not None
