"""What a plugin may do to the sound of requests before it is encoded: a watermark, for example."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeAlias

import attrs

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Sound: TypeAlias = npt.NDArray[np.float32]
    """Mono samples `[N]`, within -1 .. 1."""


@attrs.frozen
class SoundFacts:
    """What is known of a request whose sound begins.

    Args:
        sample_rate: of the sound, in Hz.
        model: by its name in `GET /models`.
        request_id: that the client sees.
        speaker: id; counts if there is no voice.
        voice: by name; None if the request chose a speaker.
    """

    sample_rate: int
    model: str
    request_id: str
    speaker: int
    voice: str | None


class SoundProcess(Protocol):
    """The state of one request.  It can be pickled: each piece may go to another process.

    Where the sound is cut into pieces depends on timing, so the result must not depend on it.
    """

    def process(self, sound: Sound) -> Sound:
        """The next samples `[N]`, of any number; returns those that are ready, perhaps none."""
        ...

    def finish(self) -> Sound:
        """The rest, after the last samples of the request."""
        ...


@attrs.frozen
class Postprocessor:
    """Something that can be done to sound.

    Args:
        name: what the user gives to `--postprocess`.
        summary: one line.
        begin: makes the state of a request.  It is a function of a module, and runs in another
            process: import large libraries inside it, not in the plugin's module.
    """

    name: str
    summary: str
    begin: Callable[[SoundFacts], SoundProcess]
