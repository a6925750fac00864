"""Names that mean one of a model's voices."""

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
"""OpenAI's own voices: names of the model's, in turn."""


def voice_of(client: EngineClient, name: str) -> str:
    """The name of one of the model's voices.

    In this order: a voice of that name, an alias of the server's, OpenAI's own names in turn.
    What is none of these stays as it is: the engine refuses it.
    """
    own = [voice for voice, _ in client.voices]
    if name in own:
        return name
    aliases = client.server.voice_aliases
    if name in aliases:
        return aliases[name]
    if name in VOICES and client.info is not None and client.info.voices:
        voices = client.info.voices  # without those that come and go
        return voices[VOICES.index(name) % len(voices)][0]
    return name
