"""Finds the voice that a request names."""

from __future__ import annotations

from vox_serve.errors import NotFound
from vox_serve.server.owner import Owner
from vox_serve.workers.interface import EngineClient

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
"""The names of OpenAI's voices, assigned to the model's voices in order."""


def voice_named(client: EngineClient, name: str, owner: Owner) -> str:
    """The inner name of the model's voice that this owner calls `name`.  Raises NotFound."""
    for shown, inner, _ in owner.seen(client.voices):
        if shown == name:
            return inner
    raise NotFound(f"unknown voice {name[:128]!r}; GET /voices lists them", "voice")


def voice_of(client: EngineClient, name: str, owner: Owner) -> str:
    """Like `voice_named`; if there is no voice with this name, it may be an alias.

    Tries a configured alias first, then OpenAI's names.  Raises NotFound.
    """
    if all(name != shown for shown, _, _ in owner.seen(client.voices)):
        aliases = client.server.voice_aliases
        if name in aliases:
            name = aliases[name]
        elif name in VOICES and client.info is not None and client.info.voices:
            voices = client.info.voices  # without registered voices, which come and go
            name = voices[VOICES.index(name) % len(voices)][0]
    return voice_named(client, name, owner)
