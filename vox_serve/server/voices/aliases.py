"""Other names for a model's voices."""

from __future__ import annotations

from vox_serve.workers.client import EngineClient

VOICES = (
    "alloy",
    "ash",
    "ballad",
    "coral",
    "echo",
    "fable",
    "onyx",
    "nova",
    "sage",
    "shimmer",
    "verse",
    "marin",
    "cedar",
)
"""The names of OpenAI's own voices, assigned to the model's voices in order."""


def voice_of(client: EngineClient, name: str) -> str:
    """The name of one of the model's voices.

    Looks for a voice of that name, then a configured alias, then one of OpenAI's names.  Any other
    name is returned unchanged, for the engine to reject.
    """
    own = [voice for voice, _ in client.voices]
    if name in own:
        return name
    aliases = client.server.voice_aliases
    if name in aliases:
        return aliases[name]
    if name in VOICES and client.info is not None and client.info.voices:
        voices = client.info.voices  # without registered voices, which come and go
        return voices[VOICES.index(name) % len(voices)][0]
    return name
