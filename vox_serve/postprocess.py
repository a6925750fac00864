"""Plugins' processing of audio before it is encoded, for example a watermark."""

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
    """Facts about a request whose audio begins.

    Args:
        sample_rate: of the sound, in Hz.
        model: the name in `GET /models`.
        request_id: the id that the client sees.
        speaker: id; used only if `voice` is None.
        voice: name; None if the request chose a speaker.
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
        """Process any number of samples `[N]`; returns those that are ready, perhaps none."""
        ...

    def finish(self) -> Sound:
        """Return the remaining samples `[N]`, after the last samples of the request."""
        ...


@attrs.frozen
class Postprocessor:
    """A way to process audio.

    Args:
        name: the value of `--postprocess`.
        summary: a one-line description.
        begin: creates the state of a request.  It is a module-level function and runs in another
            process: import large libraries inside it, not in the plugin's module.
    """

    name: str
    summary: str
    begin: Callable[[SoundFacts], SoundProcess]
